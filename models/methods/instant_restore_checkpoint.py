"""InstantRestore's weights: the lab's folders and the authors' checkpoint layout (spec section 4).

A lab folder holds card.json (method, tier, settings, codec, and how it was made), unet/ in diffusers layout, reference_unet/ if that is
another network, and caption.safetensors. The authors' checkpoint holds the four networks with their LoRA by peft names; configurations and
the text encoder come from a base folder in diffusers layout.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from models.catalog import ModelNotFound, read_card
from models.checkpoints import CheckpointMismatch, UnreadableCheckpoint, load_strict, read_checkpoint, read_tensors
from models.methods.instant_restore import Networks, Settings
from models.nets.codecs import LatentCodec, PixelCodec

logger = logging.getLogger(__name__)

CAPTION = "A high-quality photo of a person; professional, 8k"
PARTS = ("unet", "vae", "original_unet", "original_vae")
UNUSED_PARTS = ("text_encoder",)  # frozen in training; the caption is encoded by the base's
UNET_FILE = "diffusion_pytorch_model.safetensors"
UNET_LORA = (
    *("to_q", "to_k", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_shortcut", "conv_out"),
    *("proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
)
VAE_LORA = ("conv_in", "conv_out", "conv", "conv1", "conv2", "conv_shortcut", "to_q", "to_k", "to_v", "to_out.0")


class UnlicensedWeights(ValueError):
    """Weights whose authors state no licence were to be loaded without the user's word."""


def sd_turbo_scheduler() -> DDPMScheduler:
    """SD-Turbo's training schedule: 1000 steps, scaled linear, epsilon prediction."""
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def save_lab(networks: Networks, settings: Settings, folder: Path, card: Mapping[str, Any]) -> None:
    """Write a lab folder in half precision; the codec must be the pixel codec. `card` adds to card.json (recipe, data).

    card.json is written last: a folder without it is no model.
    """
    if not isinstance(networks.codec, PixelCodec):
        raise ValueError(f"A lab folder keeps a PixelCodec, not {type(networks.codec).__name__}.")
    unets = {"unet": networks.unet}
    if networks.reference_unet is not networks.unet:
        unets["reference_unet"] = networks.reference_unet
    for name, unet in unets.items():
        unet.save_config(folder / name)
        save_file(_half(unet.state_dict()), folder / name / UNET_FILE)
    save_file(_half({"caption": networks.caption}), folder / "caption.safetensors")
    facts = {
        "method": "instant_restore",
        "tier": "lab",
        "settings": asdict(settings),
        "codec": {"pixel_unshuffle": networks.codec.factor},
        "image_size": settings.image_size,
        **card,
    }
    (folder / "card.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


def load_lab(folder: Path) -> tuple[Networks, Settings]:
    """Networks (fp32, CPU) and settings of a lab folder. Raises CheckpointMismatch, UnreadableCheckpoint or ModelNotFound."""
    card = read_card(folder)
    if card.method != "instant_restore":
        raise ModelNotFound(f"{folder} is a model of {card.method}, not of instant_restore.")
    try:
        settings = Settings(**card.facts["settings"])
        codec = PixelCodec(card.facts["codec"]["pixel_unshuffle"])
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableCheckpoint(f"{folder / 'card.json'} does not describe an instant_restore lab model: {error!r}.") from error
    unet = _read_unet(folder / "unet")
    reference_unet = _read_unet(folder / "reference_unet") if (folder / "reference_unet").is_dir() else unet
    return Networks(unet, reference_unet, codec, codec, sd_turbo_scheduler(), read_caption(folder)), settings


def load_sources(
    sources: Mapping[str, Path], asked: Mapping[str, Any], accept_unlicensed_weights: bool = False
) -> tuple[Networks, Settings]:
    """Networks and settings from a lab `folder`, or from the authors' `checkpoint` over a `base` and maybe another `vae`.

    `asked` replaces the lab model's settings; what the authors' checkpoint says of itself wins over `asked`.
    """
    if sources.keys() == {"folder"}:
        networks, settings = load_lab(sources["folder"])
        return networks, settings.with_options(asked)
    if not {"base", "checkpoint"} <= sources.keys() <= {"base", "checkpoint", "vae"}:
        raise ModelNotFound(f"instant_restore loads from a folder, or from base, checkpoint and maybe vae, not from {', '.join(sources)}.")
    base, checkpoint = sources["base"], sources["checkpoint"]
    if not accept_unlicensed_weights:
        raise UnlicensedWeights(
            f"The authors state no licence for {checkpoint.name}; set accept_unlicensed_weights: true if you may use it."
        )
    return load_authors(base, sources.get("vae", base / "vae"), checkpoint, Settings().with_options(asked))


def load_authors(base: Path, vae: Path, checkpoint: Path, settings: Settings) -> tuple[Networks, Settings]:
    """Networks (fp32, CPU, LoRA merged) of the authors' checkpoint, and `settings` with what the checkpoint's `cfg` says.

    `base` has unet/config.json and either caption.safetensors (`caption`, (1,L,C)) or tokenizer/ and text_encoder/; `vae` has config.json.
    Raises CheckpointMismatch or UnreadableCheckpoint.
    """
    content = read_checkpoint(checkpoint)
    missing = {"state_dict", "cfg"} - content.keys()
    if missing:
        raise CheckpointMismatch(str(checkpoint), missing, ())
    parts = split_parts(content["state_dict"], str(checkpoint))
    networks = build_networks(_read_config(base / "unet"), _read_config(vae), parts, read_caption(base), str(checkpoint))
    assert isinstance(networks.codec, LatentCodec)
    for network in (networks.unet, networks.codec.vae):
        network.fuse_lora()
        network.unload_lora()
    return networks, settings_from(content["cfg"], settings, str(checkpoint))


def split_parts(state: Mapping[str, Tensor], source: str) -> dict[str, dict[str, Tensor]]:
    """The four networks' tensors by part, without `net.` and `module.`. Raises CheckpointMismatch for a missing part or a foreign key."""
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    unknown = []
    for key, tensor in state.items():
        part, _, name = key.removeprefix("net.").removeprefix("module.").partition(".")
        if part in parts:
            parts[part][name] = tensor
        elif part not in UNUSED_PARTS:
            unknown.append(key)
    missing = [f"{part}.*" for part, tensors in parts.items() if not tensors]
    if missing or unknown:
        raise CheckpointMismatch(source, missing, unknown)
    return parts


def build_networks(
    unet_config: Mapping[str, Any], vae_config: Mapping[str, Any], parts: Mapping[str, Mapping[str, Tensor]], caption: Tensor, source: str
) -> Networks:
    """Both pairs of networks, their LoRA attached but not merged, strictly loaded; rank as in the tensors, alpha half of it."""
    unet, reference_unet = (_unet(unet_config) for _ in range(2))
    vae, reference_vae = (_vae(vae_config) for _ in range(2))
    unet.add_adapter(_lora(parts["unet"], UNET_LORA, source))
    vae.add_adapter(_lora(parts["vae"], VAE_LORA, source), adapter_name="vae_skip")
    for part, module in zip(PARTS, (unet, vae, reference_unet, reference_vae), strict=True):
        load_strict(module, parts[part], f"{source}, part {part},")
        module.eval().requires_grad_(False)
    return Networks(unet, reference_unet, LatentCodec(vae), LatentCodec(reference_vae), sd_turbo_scheduler(), caption)


def settings_from(cfg: Any, settings: Settings, source: str) -> Settings:
    """`settings` with the checkpoint's own `use_adain` and `train_input`, which win. Raises CheckpointMismatch if it does not say."""
    options: Mapping[str, Any] = vars(cfg) if isinstance(cfg, argparse.Namespace) else cfg
    if not isinstance(options, Mapping) or not {"use_adain", "train_input"} <= options.keys():
        raise CheckpointMismatch(source, ["cfg.use_adain", "cfg.train_input"], ())
    own = replace(settings, adain=bool(options["use_adain"]), own_kv=bool(options["train_input"]))
    if own != settings:
        logger.warning("checkpoint_wins adain=%s own_kv=%s source=%s", own.adain, own.own_kv, source)
    return own


def read_caption(folder: Path) -> Tensor:
    """The encoded caption (1,L,C): stored in caption.safetensors, or encoded once by the folder's text encoder, which is then dropped."""
    stored = folder / "caption.safetensors"
    if stored.is_file():
        tensors = read_tensors(stored)
        if tensors.keys() != {"caption"}:
            raise CheckpointMismatch(str(stored), {"caption"} - tensors.keys(), tensors.keys() - {"caption"})
        return tensors["caption"].float()
    if not (folder / "text_encoder").is_dir() or not (folder / "tokenizer").is_dir():
        raise UnreadableCheckpoint(
            f"{folder} has neither caption.safetensors nor text_encoder/ and tokenizer/; fetch the whole base model."
        )
    from transformers import CLIPTextModel, CLIPTokenizer  # seconds to import, and only full-size bases need it

    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", local_files_only=True).eval()
    tokens = tokenizer(CAPTION, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        return encoder(tokens.input_ids)[0].float().clone()


def _lora(tensors: Mapping[str, Tensor], targets: tuple[str, ...], source: str) -> LoraConfig:
    ranks = {tensor.shape[0] for name, tensor in tensors.items() if ".lora_A." in name}
    if len(ranks) != 1:
        raise CheckpointMismatch(source, ["lora_A of one rank"], [])
    rank = ranks.pop()
    return LoraConfig(r=rank, lora_alpha=rank // 2, init_lora_weights="gaussian", target_modules=list(targets))


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UnreadableCheckpoint(
            f"{file} is no diffusers configuration ({error}); the base must be a folder in diffusers layout."
        ) from error


def _unet(config: Mapping[str, Any]) -> UNet2DConditionModel:
    unet = UNet2DConditionModel.from_config(dict(config))
    assert isinstance(unet, UNet2DConditionModel)
    return unet


def _vae(config: Mapping[str, Any]) -> AutoencoderKL:
    vae = AutoencoderKL.from_config(dict(config))
    assert isinstance(vae, AutoencoderKL)
    return vae


def _read_unet(folder: Path) -> UNet2DConditionModel:
    unet = _unet(_read_config(folder))
    load_strict(unet, read_tensors(folder / UNET_FILE), str(folder))
    return unet.eval().requires_grad_(False)


def _half(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().half().contiguous().cpu() for name, tensor in tensors.items()}
