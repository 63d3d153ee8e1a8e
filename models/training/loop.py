"""What every recipe needs to be resumable: randomness keyed by the step, checkpoints that are whole or absent, averaged weights."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class OtherTraining(ValueError):
    """A checkpoint belongs to a training with another configuration."""

    def __init__(self, path: Path, changed: Mapping[str, tuple[Any, Any]]) -> None:
        listed = ", ".join(f"{name} {before!r} -> {now!r}" for name, (before, now) in changed.items())
        super().__init__(f"{path} was trained with another configuration ({listed}); use the same one or another --out.")


def keyed(seed: int, step: int, purpose: str = "") -> torch.Generator:
    """The generator of one step: a resumed training draws what an unbroken one would have drawn."""
    digest = hashlib.sha256(f"{seed}/{step}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def save_checkpoint(path: Path, state: Mapping[str, Any], cfg: Any) -> None:
    """Write a checkpoint under a temporary name, then rename it. `cfg`: the recipe's frozen dataclass."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    torch.save({"config": {key: str(value) for key, value in asdict(cfg).items()}, **state}, partial)
    os.replace(partial, path)


def load_checkpoint(path: Path, cfg: Any, may_differ: tuple[str, ...] = ()) -> dict[str, Any] | None:
    """The checkpoint, or None where there is none. Raises OtherTraining if a setting outside `may_differ` was another one."""
    if not path.is_file():
        return None
    state = torch.load(path, weights_only=True)
    before, now = state.pop("config"), {key: str(value) for key, value in asdict(cfg).items()}
    changed = {key: (before.get(key), now.get(key)) for key in before.keys() | now.keys() if before.get(key) != now.get(key)}
    changed = {key: value for key, value in changed.items() if key not in may_differ}
    if changed:
        raise OtherTraining(path, changed)
    return state


def learning_rate(step: int, steps: int, peak: float, warmup: int, decay: float) -> float:
    """Rises over `warmup` steps, stays, and falls to zero over the last share `decay` of all steps."""
    falling = max(1.0, decay * steps)
    return peak * min(1.0, (step + 1) / warmup, max(0.0, (steps - step) / falling))


class Averaged:
    """Exponential moving average of a module's parameters; the average is what ships."""

    def __init__(self, module: nn.Module, keep: float) -> None:
        self.keep = keep
        self.values = {name: value.detach().clone() for name, value in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take in the parameters after `step` (from 0); early steps are forgotten faster."""
        keep = min(self.keep, (1 + step) / (10 + step))
        for name, value in module.named_parameters():
            self.values[name].lerp_(value, 1 - keep)

    def load_state_dict(self, values: Mapping[str, Tensor]) -> None:
        self.values = {name: value.clone() for name, value in values.items()}

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Put the average into a module of the same shape."""
        for name, value in module.named_parameters():
            value.copy_(self.values[name])
