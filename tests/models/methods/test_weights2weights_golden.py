from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from models.methods import weights2weights_layout
from models.methods.weights2weights_golden import prove_golden
from models.proofs import GoldenFileError, golden

NAME = "weights2weights.safetensors"
FOLDERS = [Path(os.environ.get("CALOTYPE_GOLDEN", "")), Path(__file__).parents[4] / "shared" / "golden"]
AUTHORS = next((folder / NAME for folder in FOLDERS if (folder / NAME).is_file()), None)
needs_authors = pytest.mark.skipif(AUTHORS is None, reason=f"no golden file; set CALOTYPE_GOLDEN to the folder of {NAME}")


def changed(file: Path, facts: dict[str, str], **tensors: torch.Tensor) -> Path:
    assert AUTHORS is not None
    with safe_open(AUTHORS, "pt") as opened:
        metadata = {**opened.metadata(), **facts}
    save_file({**load_file(AUTHORS), **tensors}, file, metadata)
    return file


@needs_authors
def test_the_authors_adapters_give_what_ours_give() -> None:
    assert AUTHORS is not None
    comparisons = golden("weights2weights", AUTHORS)
    assert {c.name for c in comparisons} == {"base", "with_identity"}
    assert [c for c in comparisons if not c.ok] == []


@needs_authors
@pytest.mark.parametrize("facts", [{"alpha": "26"}, {"targets": '["to_q","to_k"]'}], ids=str)
def test_another_scale_or_other_layers_would_be_seen(facts: dict[str, str], tmp_path: Path) -> None:
    comparisons = golden("weights2weights", changed(tmp_path / "changed.safetensors", facts))
    assert {c.name: c.ok for c in comparisons} == {"base": True, "with_identity": False}


@needs_authors
def test_the_order_of_the_network_s_own_state_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Down, up, mid instead of down, mid, up: the control of the spec, further off than the whole effect of the adapter."""
    assert AUTHORS is not None
    places = {"down_blocks": 0, "up_blocks": 1, "mid_block": 2}

    def by_state(keys: object) -> list[str]:
        return sorted(keys, key=lambda key: (places[key.split(".")[2]], key))  # pyright: ignore[reportArgumentType, reportCallIssue, reportAttributeAccessIssue]

    monkeypatch.setattr(weights2weights_layout, "sorted", by_state, raising=False)
    found = {c.name: c.max_abs for c in prove_golden(AUTHORS)}
    effect = (load_file(AUTHORS)["outputs/with_identity"] - load_file(AUTHORS)["outputs/base"]).abs().max().item()
    assert found["with_identity"] > effect


@needs_authors
def test_a_file_in_another_order_or_of_another_method_is_none(tmp_path: Path) -> None:
    with pytest.raises(GoldenFileError, match="in the order of state dict"):
        prove_golden(changed(tmp_path / "order.safetensors", {"order": "state dict"}))
    other = tmp_path / "other.safetensors"
    save_file({"inputs/latents": torch.zeros(1)}, other, {"steps": "8"})
    with pytest.raises(GoldenFileError, match="no golden file of weights2weights: its metadata lacks config"):
        prove_golden(other)
