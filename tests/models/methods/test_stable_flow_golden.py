from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.checkpoints import CheckpointMismatch
from models.proofs import GoldenFileError, golden
from tests.models.tiny_bases import tiny_transformer

FOLDERS = [Path(os.environ.get("CALOTYPE_GOLDEN", "")), Path(__file__).parents[4] / "shared" / "golden"]
AUTHORS = next((folder / "stable_flow.safetensors" for folder in FOLDERS if (folder / "stable_flow.safetensors").is_file()), None)
needs_authors = pytest.mark.skipif(AUTHORS is None, reason="no golden file; set CALOTYPE_GOLDEN to the folder of stable_flow.safetensors")


def with_facts(facts: dict[str, str], folder: Path) -> Path:
    """The authors' file with other metadata."""
    assert AUTHORS is not None
    with safe_open(AUTHORS, "pt") as stream:
        metadata = {**stream.metadata(), **facts}
    file = folder / "changed.safetensors"
    save_file(load_file(AUTHORS), file, metadata)
    return file


@needs_authors
def test_every_result_of_the_authors_code_is_met() -> None:
    assert AUTHORS is not None
    comparisons = golden("stable-flow", AUTHORS)
    assert {c.name for c in comparisons} == {name.removeprefix("outputs/") for name in load_file(AUTHORS) if name.startswith("outputs/")}
    assert [c for c in comparisons if not c.ok] == []


@needs_authors
@pytest.mark.parametrize(
    ("facts", "wrong"),
    [
        ({"inject_multimodal": "[]", "inject_single": "[]"}, ["injected"]),
        ({"inject_multimodal": "[0, 1]"}, ["injected"]),
        ({"inject_single": "[1, 2]"}, ["injected"]),
        ({"bypass_single": "[3]"}, ["bypassed"]),
        ({"nudge": "1.1"}, ["inversion_trajectory", "redenoised"]),
        ({"mu": "0.8"}, ["sigmas", "inversion_trajectory", "redenoised"]),
    ],
)
def test_another_layer_nudge_or_shift_would_be_seen(facts: dict[str, str], wrong: list[str], tmp_path: Path) -> None:
    failed = {c.name: c for c in golden("stable_flow", with_facts(facts, tmp_path)) if not c.ok}
    assert sorted(failed) == sorted(wrong)
    assert all(c.max_abs > 20 * c.tolerance for c in failed.values())


def small_file() -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of the layout, without the authors' results: it proves the reading, not the mathematics."""
    transformer = tiny_transformer(0, guidance_embeds=True)
    shapes = {"hidden_states": (3, 4, 16), "encoder_hidden_states": (3, 5, 16), "pooled_projections": (3, 16), "timestep": (3,)}
    tensors = {f"inputs/{name}": torch.rand(shape) for name, shape in {**shapes, "guidance": (3,), "img_ids": (4, 3)}.items()}
    results = {"sigmas": (3,), "inversion_trajectory": (2, 4, 16), "redenoised": (1, 4, 16)}
    results |= dict.fromkeys(("plain", "injected", "bypassed"), (3, 4, 16))
    tensors |= {f"outputs/{name}": torch.zeros(shape) for name, shape in results.items()}
    tensors |= {f"weights/{name}": value for name, value in transformer.state_dict().items()}
    config = {key: value for key, value in transformer.config.items() if not key.startswith("_")}
    facts = {"config": config, "inject_multimodal": [0], "inject_single": [1], "bypass_multimodal": [], "bypass_single": [0]}
    return tensors, {name: json.dumps(value) for name, value in {**facts, "steps": 2, "mu": 0.9, "nudge": 1.15, "text_tokens": 5}.items()}


def test_a_file_of_other_sizes_is_read_and_its_wrong_results_are_seen(tmp_path: Path) -> None:
    file = tmp_path / "small.safetensors"
    save_file(*small_file()[:1], file, small_file()[1])
    comparisons = golden("stable_flow", file)
    assert len(comparisons) == 6
    assert not any(c.ok for c in comparisons)


def test_what_is_missing_from_a_file_or_foreign_to_it_is_named(tmp_path: Path) -> None:
    file, (tensors, facts) = tmp_path / "small.safetensors", small_file()
    save_file({name: tensor for name, tensor in tensors.items() if name != "outputs/plain"}, file, facts)
    with pytest.raises(GoldenFileError, match=r"1 tensors missing \(outputs/plain\)"):
        golden("stable_flow", file)
    save_file({name: tensor for name, tensor in tensors.items() if name != "weights/proj_out.bias"}, file, facts)
    with pytest.raises(CheckpointMismatch, match=r"missing proj_out\.bias"):
        golden("stable_flow", file)
    save_file(tensors, file, {name: value for name, value in facts.items() if name != "nudge"})
    with pytest.raises(GoldenFileError, match="metadata lacks nudge"):
        golden("stable_flow", file)
    save_file(tensors, file, {**facts, "text_tokens": "7"})
    with pytest.raises(GoldenFileError, match="text_tokens is 7; the texts have 5"):
        golden("stable_flow", file)
    save_file(tensors, file, {**facts, "config": '{"layers": 3}'})
    with pytest.raises(GoldenFileError, match="its config is not that of a FLUX transformer"):
        golden("stable_flow", file)
