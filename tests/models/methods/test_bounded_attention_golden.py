from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from models.proofs import GoldenFileError, golden

NAME = "bounded_attention.safetensors"
FOLDERS = [Path(os.environ.get("CALOTYPE_GOLDEN", "")), Path(__file__).parents[4] / "shared" / "golden"]
AUTHORS = next((folder / NAME for folder in FOLDERS if (folder / NAME).is_file()), None)
needs_authors = pytest.mark.skipif(AUTHORS is None, reason=f"no golden file; set CALOTYPE_GOLDEN to the folder of {NAME}")


@needs_authors
def test_every_result_of_the_authors_code_is_met_with_guidance_on_one_half_and_on_both() -> None:
    assert AUTHORS is not None
    comparisons = golden("bounded-attention", AUTHORS)
    stored = {name.removeprefix("outputs/") for name in load_file(AUTHORS) if name.startswith("outputs/")}
    assert {c.name for c in comparisons} == {f"{name} (guidance on: {half})" for name in stored for half in ("conditional", "both")}
    assert [c for c in comparisons if not c.ok] == []


@needs_authors
@pytest.mark.parametrize(
    "changed",
    [
        {"boxes": [[0.05, 0.2, 0.45, 0.8], [0.55, 0.2, 0.95, 0.55]]},
        {"filter_tokens": [1, 4, 5]},
        {"eos_token": 11},
        {"loss_layers": [14, 15, 16, 17, 18, 19]},
        {"step_size": [8, 3]},
    ],
    ids=str,
)
def test_another_layout_layer_or_step_would_be_seen(changed: dict[str, object], tmp_path: Path) -> None:
    assert AUTHORS is not None
    with safe_open(AUTHORS, "pt") as stream:
        metadata = {**stream.metadata(), **{name: json.dumps(value) for name, value in changed.items()}}
    file = tmp_path / "changed.safetensors"
    save_file(load_file(AUTHORS), file, metadata)
    failed = {c.name.split(" ")[0] for c in golden("bounded_attention", file) if not c.ok}
    assert {"losses", "latents_after_guidance", "latents_after_step"} <= failed


def test_a_file_without_the_facts_is_none(tmp_path: Path) -> None:
    import torch

    file = tmp_path / "other.safetensors"
    save_file({"inputs/latents": torch.zeros(1)}, file, {"steps": "8"})
    with pytest.raises(GoldenFileError, match="no golden file of bounded_attention: its metadata lacks config, scheduler"):
        golden("bounded_attention", file)
