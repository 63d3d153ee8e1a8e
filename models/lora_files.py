"""One LoRA a file: safetensors of `<module>.lora_A` and `<module>.lora_B`, with what it is in the metadata.

The same tensors and metadata give the same bytes: safetensors orders tensors, but not metadata, so the header is written again in order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from models.checkpoints import UnreadableCheckpoint

_LENGTH = 8  # bytes of the header's length, little endian


class ForeignBase(ValueError):
    """Weights were made for another base network; nothing was loaded."""

    def __init__(self, what: str, made_for: str, base: str) -> None:
        super().__init__(
            f"{what} was made for the base {made_for[:12]}, this one is {base[:12]}. Name the base that belongs to it, "
            "or make it again for this one."
        )


def lora_bytes(lora: Mapping[str, Tensor], metadata: Mapping[str, str], dtype: torch.dtype = torch.float32) -> bytes:
    """A LoRA file. `metadata`: concept, base_hash, state (generated, tuned or trained), and what else there is to say."""
    data = save({name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in lora.items()}, metadata=dict(metadata))
    length = int.from_bytes(data[:_LENGTH], "little")
    header = json.dumps(json.loads(data[_LENGTH : _LENGTH + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _LENGTH)  # tensors begin at a multiple of 8
    return len(header).to_bytes(_LENGTH, "little") + header + data[_LENGTH + length :]


def read_lora(file: Path | bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The fp32 tensors of a LoRA file and its metadata. Raises UnreadableCheckpoint if it is missing, cut off or of another kind."""
    if isinstance(file, Path) and not file.is_file():
        raise UnreadableCheckpoint(f"There is no LoRA file {file}.")
    data = file.read_bytes() if isinstance(file, Path) else file
    try:
        tensors = load(data)
    except SafetensorError as error:
        named = str(file) if isinstance(file, Path) else "What was given"
        raise UnreadableCheckpoint(f"{named} is no complete safetensors file ({error}); fetch or write it again.") from error
    length = int.from_bytes(data[:_LENGTH], "little")
    metadata = json.loads(data[_LENGTH : _LENGTH + length]).get("__metadata__", {})
    return {name: tensor.float() for name, tensor in tensors.items()}, metadata
