"""The proof on a U-Net with random weights: it measures everything and finds that nothing holds that must be learned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from models.catalog import lab_path
from models.lab import proof_bounded_attention
from models.lab.proof_bounded_attention import SHOWN, prove

SETTINGS = {
    "num_inference_steps": 3,
    "guidance_scale": 1.0,
    "guidance_steps": 1,
    "guidance_iterations": 1,
    "refine_from": 1,
    "refine_every": 1,
}


def random_base(folder: Path) -> Path:
    """On the lab U-Net's autoencoder, text tower and scheduler."""
    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        (folder / part).symlink_to(lab_path("unet") / part)
    channels = json.loads((folder / "vae" / "config.json").read_text())["latent_channels"]
    width = json.loads((folder / "text_encoder" / "config.json").read_text())["hidden_size"]
    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=8, in_channels=channels, out_channels=channels, block_out_channels=(8, 16), layers_per_block=1, attention_head_dim=2,
        cross_attention_dim=width, norm_num_groups=4, down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
    ).save_pretrained(folder / "unet")  # fmt: skip
    (folder / "card.json").write_text(json.dumps({"method": "text_to_image", "tier": "lab", "settings": SETTINGS}))
    return folder


def test_everything_is_measured_and_what_does_not_hold_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for name, value in {"PROMPTS": 4, "REPORTED": 2, "SINGLE": 2}.items():
        monkeypatch.setattr(proof_bounded_attention, name, value)
    said: list[str] = []
    assert not prove(tmp_path / "out", None, said.append, random_base(base))
    gates = [line for line in said if line.startswith(("holds", "DOES NOT HOLD"))]
    assert len(gates) == 5
    assert any(line.startswith("DOES NOT HOLD: bounded puts the right object into more boxes") for line in gates)
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores.keys() == {f"{arm}: {name}" for arm in ("plain sampling", "guidance only", "bounded") for name in SHOWN}
    report = (tmp_path / "out" / "report.md").read_text()
    for told in (
        "**does not hold**",
        "| no refinement |",
        "| self mask only |",
        "| bounded, prompts name places |",
        "refined masks",
        "### One subject",
    ):
        assert told in report
    assert (tmp_path / "out" / "scenes.png").is_file()
