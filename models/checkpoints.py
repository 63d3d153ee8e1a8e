"""Weights from disk, read strictly and safely. Which models there are: models/catalog.py."""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

PICKLES = (".pt", ".pth", ".ckpt", ".bin")
ALLOWED_IN_PICKLES: list[Any] = [argparse.Namespace]  # how training scripts keep their options; everything else is refused


class CheckpointMismatch(ValueError):
    """A checkpoint was made for another model; nothing was loaded."""

    def __init__(self, source: str, missing: Iterable[str], unknown: Iterable[str]) -> None:
        self.missing, self.unknown = sorted(missing), sorted(unknown)
        named = [f"missing {key}" for key in self.missing[:3]] + [f"unknown {key}" for key in self.unknown[:3]]
        super().__init__(
            f"{source} does not fit: {len(self.missing)} keys missing, {len(self.unknown)} unknown, e.g. {', '.join(named)}. "
            "Use the checkpoint that belongs to this base and method."
        )


class UnreadableCheckpoint(ValueError):
    """A weight file is damaged, of an unknown kind, or holds more than tensors and plain values."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU. Raises UnreadableCheckpoint if it is missing, cut off or of another kind."""
    if not path.is_file():
        raise UnreadableCheckpoint(f"There is no weight file {path}.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UnreadableCheckpoint(f"{path} is no complete safetensors file ({error}); fetch or write it again.") from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a training script saved: a safetensors file's tensors, or a torch file's tensors and plain values.

    Torch files are read with `weights_only=True`: no code in them is run. Raises UnreadableCheckpoint for anything else.
    """
    if path.suffix == ".safetensors":
        return dict(read_tensors(path))
    if path.suffix not in PICKLES:
        raise UnreadableCheckpoint(f"{path} is neither a .safetensors nor a torch file ({', '.join(PICKLES)}).")
    if not path.is_file():
        raise UnreadableCheckpoint(f"There is no weight file {path}.")
    try:
        with torch.serialization.safe_globals(ALLOWED_IN_PICKLES):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnreadableCheckpoint(
            f"{path} cannot be read as weights ({reason}). Save its tensors as .safetensors if you trust where it comes from."
        ) from error
    if not isinstance(content, dict):
        raise UnreadableCheckpoint(f"{path} holds a {type(content).__name__}, not a dictionary of tensors.")
    return content


def save_network(network: Any, folder: Path) -> None:
    """Write a diffusers or transformers network into `folder`: fp16 safetensors, and a configuration that names no path of this machine."""
    network.half().save_pretrained(folder)
    file = folder / "config.json"
    config = {key: value for key, value in json.loads(file.read_text()).items() if key != "_name_or_path"}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def load_strict(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Put `tensors` into `module`, all of them and nothing else; `source` names them in the error. Raises CheckpointMismatch."""
    wanted = module.state_dict()
    missing, unknown = wanted.keys() - tensors.keys(), tensors.keys() - wanted.keys()
    wrong = [key for key in wanted.keys() & tensors.keys() if wanted[key].shape != tensors[key].shape]
    if missing or unknown or wrong:
        shapes = [f"{key} of shape {tuple(tensors[key].shape)} instead of {tuple(wanted[key].shape)}" for key in wrong]
        raise CheckpointMismatch(source, missing, [*unknown, *shapes])
    module.load_state_dict(tensors)
