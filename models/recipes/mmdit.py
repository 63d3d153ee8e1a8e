"""Train the lab's text-to-image transformer of FLUX's topology on the drawn world by flow matching (`calotype train mmdit`).

Its text tower starts from the lab towers' and is trained with it; its hidden states are the text stream, its pooled output the vector that
modulates every block.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn
from transformers import CLIPTextModel

from models.catalog import lab_path
from models.checkpoints import save_network
from models.lab.captions import tokenizer
from models.recipes.autoencoder import cache_folder
from models.recipes.towers import CAPTIONS
from models.training.drawings import captions
from models.training.latents import latents
from models.training.loop import fit, keyed
from models.training.times import noisy_share

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 9_600  # optimizer steps; may be changed on resuming
    minutes: float | None = None
    pictures: int = 48_000
    cache: str | None = None  # folder of drawn pictures and latents, to share between recipes; default: <out>/cache
    autoencoder: str | None = None  # folder of the autoencoder; default: the one that ships
    text: str | None = None  # folder whose text_encoder is the start; default: the lab towers
    batch: int = 32
    heads: int = 4
    head_dim: int = 32
    double: int = 4  # blocks with a stream for the text and one for the picture
    single: int = 6  # blocks with one stream
    axes: tuple[int, int, int] = (8, 12, 12)  # rotary channels
    text_drop: float = 0.1  # share of pictures without a caption, for guidance
    time_mean: float = 0.5  # of the logit-normal times
    noisy: float = 0.4  # share of pictures in the noisiest tenth of the times, where places are decided
    lr: float = 1.5e-3
    warmup: int = 200
    decay: float = 0.35
    weight_decay: float = 1e-2
    clip: float = 1.0
    average: float = 0.998
    save_every: int = 200
    seed: int = 0


class TextToImage(nn.Module):
    """The transformer and its text tower, trained together. Latents are packed in 2 x 2 patches, as FLUX's are."""

    def __init__(self, cfg: Config, text: Any, latent_channels: int) -> None:
        super().__init__()
        self.text = text
        self.transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=4 * latent_channels,
            num_layers=cfg.double,
            num_single_layers=cfg.single,
            attention_head_dim=cfg.head_dim,
            num_attention_heads=cfg.heads,
            joint_attention_dim=text.config.hidden_size,
            pooled_projection_dim=text.config.hidden_size,
            guidance_embeds=False,
            axes_dims_rope=cfg.axes,
        )


def train(cfg: Config, out: Path) -> None:
    """Train until `cfg.steps` (or `cfg.minutes`), resuming from out/checkpoint.pt; then write the lab folder out/mmdit (diffusers layout)."""
    vae_folder = Path(cfg.autoencoder) if cfg.autoencoder else lab_path("autoencoder")
    text_folder = Path(cfg.text) if cfg.text else lab_path("towers")
    vae = AutoencoderKL.from_pretrained(vae_folder / "vae").eval().requires_grad_(False)
    cache = cache_folder(cfg.cache, out)
    pictures = packed(latents(vae, cfg.pictures, cache))
    ids = captions(cfg.pictures, CAPTIONS, cache)
    empty = torch.tensor(tokenizer()("", padding="max_length").input_ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        text = CLIPTextModel.from_pretrained(text_folder / "text_encoder", torch_dtype=torch.float32)
        model = TextToImage(cfg, text, pictures.shape[2] // 4)
    places = positions(4)
    no_places = torch.zeros(ids.shape[-1], 3)

    def loss(step: int) -> tuple[Tensor, Mapping[str, float]]:
        generator = keyed(cfg.seed, step)
        at = torch.randint(cfg.pictures, (cfg.batch,), generator=generator)
        said = ids[at, torch.randint(CAPTIONS, (cfg.batch,), generator=generator)]
        said[torch.rand(cfg.batch, generator=generator) < cfg.text_drop] = empty
        clean = pictures[at].float()
        noise = torch.randn(clean.shape, generator=generator)
        times = torch.sigmoid(cfg.time_mean + torch.randn(cfg.batch, generator=generator))  # 1: noise
        times = noisy_share(times, cfg.noisy, generator)
        noisy = clean + times[:, None, None] * (noise - clean)
        told = model.text(input_ids=said)
        found = model.transformer(
            hidden_states=noisy,
            encoder_hidden_states=told.last_hidden_state,
            pooled_projections=told.pooler_output,
            timestep=times,
            img_ids=places,
            txt_ids=no_places,
        ).sample
        return (found - (noise - clean)).square().mean(), {}

    steps = fit(model, loss, cfg, out)
    export(model, vae, out, {"recipe": "mmdit", "seed": cfg.seed, "steps": steps, "samples": steps * cfg.batch, "data": "drawn world"})


def export(model: TextToImage, vae: Any, out: Path, facts: Mapping[str, Any]) -> None:
    """Write the lab folder out/mmdit in diffusers layout, fp16, with its card."""
    folder = out / "mmdit"
    for name, network in (("transformer", model.transformer), ("text_encoder", model.text), ("vae", vae)):
        save_network(network, folder / name)
    tokenizer().save_pretrained(folder / "tokenizer")
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    card = {
        "summary": "text to image of the drawn world, 32 px, FLUX's topology",
        "method": "text_to_image",
        "tier": "lab",
        "topology": "flux",
        **facts,
    }
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")


def packed(latents_NCHW: Tensor) -> Tensor:
    """(N, C, H, W) to (N, H/2 W/2, 4C): each 2 x 2 patch is one token, as in FLUX."""
    n, c, h, w = latents_NCHW.shape
    return latents_NCHW.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 4, 4 * c)


def positions(side: int) -> Tensor:
    """(side * side, 3) of token positions: 0, row, column."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).float()
