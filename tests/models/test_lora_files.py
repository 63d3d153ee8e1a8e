"""LoRA files: the same content is the same bytes, and what is cut off is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.checkpoints import UnreadableCheckpoint
from models.lora_files import lora_bytes, read_lora

METADATA = {"concept": "warm «sepia»", "base_hash": "ab", "state": "generated", "seed": "7", "job": "j", "row_id": "r"}
LORA = {"a.lora_A": torch.arange(6.0).reshape(2, 3), "a.lora_B": torch.zeros(4, 2), "b.lora_A": torch.ones(1, 1, 3, 3)}
PROGRAM = """
import hashlib
from tests.models.test_lora_files import LORA, METADATA, lora_bytes
print(hashlib.sha256(lora_bytes(LORA, METADATA)).hexdigest())
"""


def test_what_is_written_is_read_again_and_by_safetensors_itself(tmp_path: Path) -> None:
    from safetensors import safe_open

    file = tmp_path / "a.safetensors"
    file.write_bytes(lora_bytes(LORA, METADATA))
    tensors, metadata = read_lora(file)
    assert metadata == METADATA
    assert tensors.keys() == LORA.keys()
    assert all(torch.equal(tensors[name], LORA[name]) for name in LORA)
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == METADATA
        assert torch.equal(opened.get_tensor("a.lora_A"), LORA["a.lora_A"])


def test_the_same_lora_is_the_same_bytes_in_any_process() -> None:
    made = {subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout for _ in range(3)}
    assert len(made) == 1


def test_half_precision_is_half_the_size_and_read_as_fp32() -> None:
    whole, half = lora_bytes(LORA, METADATA), lora_bytes(LORA, METADATA, torch.float16)
    assert len(half) < len(whole)
    assert read_lora(half)[0]["a.lora_A"].dtype == torch.float32


def test_a_file_that_is_cut_off_or_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableCheckpoint, match="no complete safetensors"):
        read_lora(lora_bytes(LORA, METADATA)[:-4])
    with pytest.raises(UnreadableCheckpoint, match="There is no LoRA file"):
        read_lora(tmp_path / "nowhere.safetensors")
