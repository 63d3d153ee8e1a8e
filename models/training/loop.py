"""What every recipe needs to be resumable: randomness keyed by the step, checkpoints that are whole or absent, averaged weights."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)


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


def fit(
    model: nn.Module,
    loss: Callable[[int], tuple[Tensor, Mapping[str, float]]],
    cfg: Any,
    out: Path,
    betas: tuple[float, float] = (0.9, 0.98),
) -> int:
    """Train `model` until cfg.steps or cfg.minutes, resuming from out/checkpoint.pt; leaves its averaged weights in it. Returns the steps done.

    `loss(step)` gives the loss and what to log; it draws from generators keyed by the step. `cfg` has steps, minutes, lr, warmup, decay,
    weight_decay, average, clip (None: not clipped), save_every. Raises OtherTraining if the checkpoint is another configuration's.
    """
    started = time.monotonic()
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay, betas=betas, fused=True)
    average, step = Averaged(model, cfg.average), 0
    state = load_checkpoint(out / "checkpoint.pt", cfg, may_differ=("steps", "minutes", "save_every", "cache", "data"))
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.load_state_dict(state["average"])
        step = state["step"]
        logger.info("resumed step=%d", step)
    out_of_time = False
    while step < cfg.steps and not out_of_time:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, cfg.steps, cfg.lr, cfg.warmup, cfg.decay)
        value, facts = loss(step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        if cfg.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
        optimizer.step()
        average.update(model, step)
        step += 1
        seconds = time.monotonic() - started
        out_of_time = cfg.minutes is not None and seconds > 60 * cfg.minutes
        if step % 50 == 0:
            told = " ".join(f"{name}={fact:.4f}" for name, fact in facts.items())
            logger.info("step=%d of=%d s=%.0f loss=%.4f %s", step, cfg.steps, seconds, float(value.detach()), told)
        if step % cfg.save_every == 0 or step == cfg.steps or out_of_time:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average.values, "step": step}
            save_checkpoint(out / "checkpoint.pt", state, cfg)
    average.copy_to(model)
    return step
