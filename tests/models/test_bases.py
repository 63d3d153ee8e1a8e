"""Bases from folders in diffusers layout: what is loaded is what was saved, and what is missing is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.bases import PROMPTS_A_PASS, FlowBase, UNetBase, load_base
from models.catalog import ModelNotFound
from models.checkpoints import CheckpointMismatch
from models.sampling import Request, sample
from tests.models.tiny_bases import save, tiny_flow_base, tiny_unet_base

REQUESTS = [Request(prompt="a red star", seed=1, steps=2), Request(prompt="a blue circle", seed=2, steps=2)]


@pytest.mark.parametrize("make", [tiny_unet_base, tiny_flow_base, lambda: tiny_flow_base(t5=True)], ids=["unet", "flow", "flow with T5"])
def test_a_saved_base_makes_the_same_pictures(make, tmp_path: Path) -> None:
    base = make()
    loaded = load_base(save(base, tmp_path), device="cpu")
    assert type(loaded) is type(base)
    if isinstance(loaded, FlowBase) and isinstance(base, FlowBase):
        loaded.longest_text = base.longest_text
    for one, other in zip(sample(base, REQUESTS), sample(loaded, REQUESTS), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(part: str, tmp_path: Path) -> None:
    folder = save(tiny_unet_base(), tmp_path)
    shutil.rmtree(folder / part)
    with pytest.raises(ModelNotFound, match=part):
        UNetBase.load(folder)


def test_a_folder_of_neither_topology_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="neither unet/ nor transformer/"):
        load_base(tmp_path)


def test_weights_with_a_key_missing_or_too_many_are_refused_by_name(tmp_path: Path) -> None:
    folder = save(tiny_unet_base(), tmp_path)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["stranger"] = weights.pop("conv_in.bias")
    save_file(weights, file)
    with pytest.raises(CheckpointMismatch, match=r"missing conv_in\.bias.*unknown stranger"):
        UNetBase.load(folder)


def test_latents_come_back_through_the_autoencoders_scale() -> None:
    base = tiny_flow_base()
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    z = base.encode(pixels)
    posterior = base.vae.encode(pixels).latent_dist.mean
    assert torch.allclose(z, (posterior - 0.11) * 0.36)
    assert torch.allclose(base.decode(z), base.vae.decode(posterior).sample.clamp(-1, 1), atol=1e-5)


def test_more_prompts_than_fit_one_pass_are_encoded_like_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_unet_base()
    prompts = [f"a {word}" for word in ("dog", "cat", "star", "circle", "square")]
    together = base.encode_text(prompts).states
    assert len(prompts) < PROMPTS_A_PASS
    monkeypatch.setattr("models.bases.PROMPTS_A_PASS", 2)
    assert torch.allclose(base.encode_text(prompts).states, together, atol=1e-6)
