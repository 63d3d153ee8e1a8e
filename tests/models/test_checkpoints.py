from __future__ import annotations

import argparse
import pathlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models.checkpoints import CheckpointMismatch, UnreadableCheckpoint, load_strict, read_checkpoint, read_tensors


def test_a_checkpoint_that_fits_is_loaded() -> None:
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    load_strict(target, source.state_dict(), "source")
    assert torch.equal(target.weight, source.weight)


def test_missing_unknown_and_misshapen_keys_are_named_and_nothing_is_loaded() -> None:
    module = nn.Linear(3, 2)
    before = module.weight.clone()
    with pytest.raises(CheckpointMismatch, match=r"1 keys missing, 1 unknown.*missing bias.*unknown scale") as caught:
        load_strict(module, {"weight": torch.zeros(2, 3), "scale": torch.zeros(1)}, "weights.safetensors")
    assert caught.value.missing == ["bias"]
    assert caught.value.unknown == ["scale"]
    with pytest.raises(CheckpointMismatch, match=r"weight of shape \(3, 3\) instead of \(2, 3\)"):
        load_strict(module, {"weight": torch.zeros(3, 3), "bias": torch.zeros(2)}, "weights.safetensors")
    assert torch.equal(module.weight, before)


def test_a_safetensors_file_that_was_cut_off_is_named(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(100)}, file)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UnreadableCheckpoint, match=r"w\.safetensors is no complete safetensors file"):
        read_tensors(file)
    with pytest.raises(UnreadableCheckpoint, match="There is no weight file"):
        read_tensors(tmp_path / "absent.safetensors")


def test_a_torch_file_of_tensors_and_options_is_read(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    torch.save({"state_dict": {"a": torch.ones(2)}, "cfg": argparse.Namespace(rank=4)}, file)
    content = read_checkpoint(file)
    assert content["cfg"].rank == 4
    assert torch.equal(content["state_dict"]["a"], torch.ones(2))


def test_a_torch_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return pathlib.Path.touch, (ran,)

    file = tmp_path / "w.pt"
    torch.save({"state_dict": Trap()}, file)
    with pytest.raises(UnreadableCheckpoint, match="cannot be read as weights"):
        read_checkpoint(file)
    assert not ran.exists()


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.npz").write_bytes(b"")
    (tmp_path / "w.pt").write_bytes(b"not a torch file")
    with pytest.raises(UnreadableCheckpoint, match=r"neither a \.safetensors nor a torch file"):
        read_checkpoint(tmp_path / "w.npz")
    with pytest.raises(UnreadableCheckpoint, match="cannot be read as weights"):
        read_checkpoint(tmp_path / "w.pt")
