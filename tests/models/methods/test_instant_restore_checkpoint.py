from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.catalog import ModelNotFound, lab_path, model_revision
from models.checkpoints import CheckpointMismatch, UnreadableCheckpoint, read_checkpoint
from models.keys_values import References
from models.methods.instant_restore import InstantRestore, Networks, Settings, capture_keys_values, shared_layers, shared_noise
from models.methods.instant_restore_checkpoint import (
    CAPTION,
    PARTS,
    UnlicensedWeights,
    build_networks,
    load_lab,
    read_caption,
    save_lab,
    settings_from,
    split_parts,
)
from models.nets.codecs import LatentCodec, PixelCodec
from tests.models.methods.tiny_authors_checkpoint import tiny_parts, unet, vae, write_checkpoint
from tests.models.methods.tiny_instant_restore import SETTINGS, tiny_networks, tiny_request


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    unet().save_config(folder / "unet")
    vae().save_config(folder / "vae")
    save_file({"caption": torch.randn(1, 5, 12)}, folder / "caption.safetensors")
    return folder


def load(base: Path, checkpoint: Path, **options: Any) -> InstantRestore:
    sources = {"base": base, "checkpoint": checkpoint}
    return InstantRestore.load(sources, accept_unlicensed_weights=True, device="cpu", **options)


@torch.inference_mode()
def eps(networks: Networks, settings: Settings) -> Tensor:
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return shared_noise(networks, x[:1], References(capture_keys_values(networks, x[1:], settings), [[0, 1]]), settings)


# --- the authors' layout ---


def test_both_prefixes_of_the_authors_names_come_off() -> None:
    tensors = {f"{part}.x": torch.zeros(1) for part in PARTS}
    for prefix in ("net.", "net.module.", "module.", ""):
        assert split_parts({prefix + name: tensor for name, tensor in tensors.items()}, "test").keys() == set(PARTS)


def test_the_authors_checkpoint_is_loaded_merged_and_equal_to_its_lora(base: Path, tmp_path: Path) -> None:
    parts, file = tiny_parts(), tmp_path / "ckpt.pt"
    write_checkpoint(file, parts, "net.module.", use_adain=False, train_input=True)
    method = load(base, file, settings={"timestep": 499, "max_references": None})
    assert (method.settings.adain, method.settings.own_kv) == (False, True)  # the checkpoint's
    assert (method.settings.timestep, method.settings.max_references) == (499, 4)
    assert not any("lora" in name for name, _ in method.networks.unet.named_parameters())
    assert isinstance(method.networks.codec, LatentCodec)
    assert not any("lora" in name for name, _ in method.networks.codec.vae.named_parameters())
    apart = build_networks(unet().config, vae().config, parts, method.networks.caption, "test")
    assert (eps(method.networks, method.settings) - eps(apart, method.settings)).abs().max() < 1e-5
    latents = torch.randn(1, 4, 8, 8)
    assert (method.networks.codec.decode(latents) - apart.codec.decode(latents)).abs().max() < 1e-5


def test_all_nine_decoder_self_attentions_of_stable_diffusions_topology_are_shared() -> None:
    assert list(shared_layers(unet())) == [f"up_blocks.{i}.attentions.{j}.transformer_blocks.0.attn1" for i in (1, 2, 3) for j in (0, 1, 2)]


def test_weights_without_a_licence_need_the_users_word(base: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "ckpt.pt", tiny_parts(), use_adain=True, train_input=False)
    with pytest.raises(UnlicensedWeights, match="accept_unlicensed_weights"):
        InstantRestore.load({"base": base, "checkpoint": tmp_path / "ckpt.pt"}, device="cpu")


def test_a_key_too_few_or_too_many_is_named(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "ckpt.pt"
    parts = tiny_parts()
    lost = parts["vae"].pop("decoder.conv_in.lora_A.vae_skip.weight")
    write_checkpoint(file, parts, use_adain=True, train_input=False)
    with pytest.raises(CheckpointMismatch, match=r"part vae.*missing decoder\.conv_in\.lora_A\.vae_skip\.weight"):
        load(base, file)
    parts["vae"]["decoder.conv_in.lora_A.vae_skip.weight"] = lost
    write_checkpoint(file, {**parts, "discriminator": {"w": lost}}, use_adain=True, train_input=False)
    with pytest.raises(CheckpointMismatch, match=r"unknown net\.discriminator\.w"):
        load(base, file)
    tiny_vae_state = parts.pop("original_vae")
    write_checkpoint(file, parts, use_adain=True, train_input=False)
    with pytest.raises(CheckpointMismatch, match=r"missing original_vae\.\*"):
        load(base, file)
    parts["original_vae"] = tiny_vae_state
    write_checkpoint(file, parts)
    with pytest.raises(CheckpointMismatch, match=r"missing cfg\.train_input, missing cfg\.use_adain"):
        load(base, file)
    torch.save({"weights": {}}, file)
    with pytest.raises(CheckpointMismatch, match="missing cfg, missing state_dict"):
        load(base, file)
    assert read_checkpoint(file) == {"weights": {}}


def test_options_kept_as_a_namespace_count_too() -> None:
    cfg = argparse.Namespace(use_adain=False, train_input=True, rank=4)
    assert settings_from(cfg, Settings(), "test") == Settings(adain=False, own_kv=True)


def test_the_caption_is_encoded_by_the_bases_text_encoder_where_it_is_not_stored(base: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    (base / "caption.safetensors").unlink()
    with pytest.raises(UnreadableCheckpoint, match=r"neither caption\.safetensors nor text_encoder"):
        read_caption(base)
    letters = sorted(set(CAPTION.lower().replace(" ", "")))
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (base / "tokenizer").mkdir()
    (base / "tokenizer" / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (base / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(base / "tokenizer" / "vocab.json"), str(base / "tokenizer" / "merges.txt"), model_max_length=77).save_pretrained(
        base / "tokenizer"
    )
    config = CLIPTextConfig(vocab_size=len(tokens), hidden_size=12, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    CLIPTextModel(config).save_pretrained(base / "text_encoder")
    caption = read_caption(base)
    assert caption.shape == (1, 77, 12)
    assert torch.equal(caption, read_caption(base))


# --- lab folders ---


def lab_networks() -> Networks:
    networks = tiny_networks()
    networks.reference_unet = networks.unet
    return networks


def test_a_lab_model_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    networks, settings = lab_networks(), Settings(image_size=32, noise=0.0, freeu=False, own_kv=True)
    save_lab(networks, settings, tmp_path / "instant-restore", {"recipe": "instant-restore", "minutes": 1.5})
    loaded, loaded_settings = load_lab(tmp_path / "instant-restore")
    assert loaded_settings == settings
    assert loaded.reference_unet is loaded.unet
    assert isinstance(loaded.codec, PixelCodec)
    assert loaded.codec.factor == 4
    for name, tensor in networks.unet.state_dict().items():
        assert torch.equal(loaded.unet.state_dict()[name], tensor.half().float())
    card = json.loads((tmp_path / "instant-restore" / "card.json").read_text())
    assert (card["method"], card["tier"], card["minutes"], card["image_size"]) == ("instant_restore", "lab", 1.5, 32)


def test_saving_the_same_model_twice_gives_the_same_revision(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_lab(lab_networks(), SETTINGS, tmp_path / name, {})
    assert model_revision(tmp_path / "a") == model_revision(tmp_path / "b")


def test_a_separate_reference_network_is_kept(tmp_path: Path) -> None:
    networks = tiny_networks()
    save_lab(networks, SETTINGS, tmp_path / "m", {})
    loaded, _ = load_lab(tmp_path / "m")
    assert not torch.equal(loaded.reference_unet.conv_in.weight, loaded.unet.conv_in.weight)


def test_a_lab_model_runs_as_a_method_with_the_jobs_settings_on_top(tmp_path: Path) -> None:
    save_lab(lab_networks(), SETTINGS, tmp_path / "m", {})
    method = InstantRestore.load({"folder": str(tmp_path / "m")}, settings={"own_kv": True, "adain": None}, device="cpu", cache_bytes=0)
    assert method.settings == Settings(image_size=32, own_kv=True)
    assert method.attention_backend == "sdpa"
    assert method([tiny_request(1, 2)])[0].restored.shape == (3, 32, 32)
    with pytest.raises(ValueError, match="no setting 'own_vk'"):
        InstantRestore.load({"folder": tmp_path / "m"}, settings={"own_vk": True})


def test_half_precision_runs_from_end_to_end(tmp_path: Path) -> None:
    save_lab(lab_networks(), SETTINGS, tmp_path / "m", {})
    whole, half = (
        InstantRestore.load({"folder": tmp_path / "m"}, device="cpu", dtype=dtype)([tiny_request(1, 2)])[0].restored
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert half.dtype == torch.float32
    assert (whole - half).abs().max() < 0.3


def test_a_folder_that_is_none_of_this_method_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no card\.json"):
        load_lab(tmp_path)
    (tmp_path / "card.json").write_text(json.dumps({"method": "stable_flow", "tier": "lab"}))
    with pytest.raises(ModelNotFound, match="a model of stable_flow, not of instant_restore"):
        load_lab(tmp_path)
    (tmp_path / "card.json").write_text(json.dumps({"method": "instant_restore", "tier": "lab", "settings": {"timestep": 5, "own": 1}}))
    with pytest.raises(UnreadableCheckpoint, match="does not describe an instant_restore lab model"):
        load_lab(tmp_path)
    with pytest.raises(ModelNotFound, match="loads from a folder, or from base, checkpoint"):
        InstantRestore.load({"base": tmp_path})


def test_only_a_model_over_pixels_is_a_lab_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keeps a PixelCodec, not LatentCodec"):
        save_lab(tiny_networks(latent=True), SETTINGS, tmp_path / "m", {})


def test_the_shipped_lab_model_loads() -> None:
    try:
        folder = lab_path("lab/instant-restore")
    except ModelNotFound:
        pytest.skip("no lab/instant-restore in this checkout yet")
    networks, settings = load_lab(folder)
    assert networks.unet.config["in_channels"] == 3 * networks.codec.factor**2
    assert settings.image_size % networks.codec.factor == 0
