"""The proof on a transformer with random weights: it measures everything and finds that nothing holds that must be learned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from models.catalog import lab_path
from models.lab import proof_stable_flow
from models.lab.proof_stable_flow import Sizes, prove
from models.methods.vital_layers import FILE, VitalLayers, transformer_hash

SIZES = Sizes(prompts=2, sources=2, swept=2, portraits=2, real=2, steps=2, real_steps=2)


def random_base(folder: Path) -> Path:
    """On the lab U-Net's autoencoder and text tower."""
    for part in ("vae", "text_encoder", "tokenizer"):
        (folder / part).symlink_to(lab_path("unet") / part)
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    channels = json.loads((folder / "vae" / "config.json").read_text())["latent_channels"]
    width = json.loads((folder / "text_encoder" / "config.json").read_text())["hidden_size"]
    torch.manual_seed(0)
    FluxTransformer2DModel(
        patch_size=1, in_channels=4 * channels, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=width, pooled_projection_dim=width, axes_dims_rope=(4, 6, 6),
    ).save_pretrained(folder / "transformer")  # fmt: skip
    (folder / "card.json").write_text(json.dumps({"method": "text_to_image", "tier": "lab"}))
    VitalLayers("base", transformer_hash(folder), "towers", "", scores=(0.3, 0.2, 0.1), chosen=(0, 1)).write(folder / FILE)
    return folder


def test_everything_is_measured_and_what_does_not_hold_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for name, value in {"COUNTS": (1, 3), "NUDGES": (1.0, 1.15), "INVERSION_STEPS": (2, 6), "STRENGTHS": (0.6,)}.items():
        monkeypatch.setattr(proof_stable_flow, name, value)
    said: list[str] = []
    assert not prove(tmp_path / "out", None, said.append, random_base(base), SIZES)
    assert [line.split(": ")[1][:2] for line in said] == ["a.", "b.", "c.", "d.", "e.", "e."]
    assert any(line.startswith("DOES NOT HOLD: d.") for line in said)
    assert said[-1].startswith("holds: e. the aligned reference ends as the (nudged) source latent")
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert {"spearman", "vital", "all layers", "portraits vital", "real nudge 1.15", "real authors_index", "inversion 6"} <= scores.keys()
    report = (tmp_path / "out" / "report.md").read_text()
    for told in ("| 2 (single 1) |", "SDEdit from sigma 0.6", "The price of preservation", "**does not hold**"):
        assert told in report
    assert {file.name for file in (tmp_path / "out").glob("*.png")} == {"generated.png", "portraits.png", "real.png"}
