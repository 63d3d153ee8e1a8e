"""Bounded Attention's guidance: latents are moved until subjects' attention lies in their regions.

With fg_s the attention from the cells of M_s to context s, bg_s that from B, summed over heads, cells and context and averaged over layers:
    IoU_s = fg_s / (fg_s + S bg_s)
    L = 1.5 sum_s (1 - IoU_s^cross)^2 + 0.5 sum_s (1 - IoU_s^self)^2
    z <- z - beta_i dL/dz,   beta_i = b0 + (b1 - b0) i / steps
Context s: its tokens and the end token (cross), the keys of its region (self). Source: arXiv 2403.16990 and its authors' code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.methods.bounded_layers import Call, Entry
from models.methods.bounded_layout import Bounds, Grid


class NonFiniteLoss(ValueError):
    """A row's loss is no number; its latents have left what the network knows."""


class LossComplete(Exception):
    """Ends a forward pass after the last layer that the loss reads."""


@dataclass
class Guided:
    """How a row's guidance went."""

    losses: list[float] = field(default_factory=list)  # L of every iteration, before its update
    updates: int = 0


def step_size(index: int, steps: int, first: float, last: float) -> float:
    """beta of step `index`: from `first`, towards `last` where guidance ends."""
    return first + (last - first) * index / steps


def iou(fg_S: Tensor, bg_S: Tensor) -> Tensor:
    """fg / (fg + S bg), (S,)."""
    return fg_S / (fg_S + len(fg_S) * bg_S)


def foreground_background(attention_nM: Tensor, contexts_SM: Tensor, regions_Sn: Tensor) -> Tensor:
    """(2,S): attention to each subject's context, summed over the cells of its region, and over the cells of none."""
    seen_nS = attention_nM @ contexts_SM.to(attention_nM).T
    background_n = ~regions_Sn.any(0)
    return torch.stack([(seen_nS.T * regions_Sn).sum(1), seen_nS[background_n].sum(0)])


def token_contexts(bounds: Bounds, tokens: int) -> Tensor:
    """(S,T) bool: a subject's tokens and the end token."""
    contexts_ST = torch.zeros(len(bounds), tokens, dtype=torch.bool)
    for subject, positions in enumerate(bounds.layout.subject_tokens):
        contexts_ST[subject, [*positions, bounds.layout.end_token]] = True
    return contexts_ST


class Losses:
    """Collects what the loss layers show of a call's conditional halves; `of` then gives a row's L, differentiable."""

    def __init__(self, call_layers: Sequence[int], grid_of: Callable[[int], Grid], weights: tuple[float, float], *, stop: bool) -> None:
        self.layers, self.grid_of, self.stop = call_layers, grid_of, stop
        self.cross_weight, self.self_weight = weights
        self.seen: dict[tuple[int, bool], list[Tensor]] = {}

    def watch(self, number: int, probabilities_EHnM: Tensor, entries: Sequence[Entry]) -> None:
        """A loss layer's probabilities. Raises LossComplete after the last layer where the pass may end there."""
        cross, grid = bool(number % 2), self.grid_of(number)
        for attention_HnM, entry in zip(probabilities_EHnM, entries, strict=True):
            if not entry.conditional:
                continue
            attention_nM = attention_HnM.to(torch.promote_types(attention_HnM.dtype, torch.float32)).sum(0)
            regions_Sn = entry.bounds.regions(grid)
            contexts = token_contexts(entry.bounds, attention_nM.shape[1]) if cross else regions_Sn
            device = attention_nM.device
            found = foreground_background(attention_nM, contexts.to(device), regions_Sn.to(device))
            self.seen.setdefault((entry.row, cross), []).append(found)
        if self.stop and number == max(self.layers):
            raise LossComplete

    def of(self, row: int) -> Tensor:
        """L of a row."""
        cross_S, self_S = (iou(*torch.stack(self.seen[row, cross]).mean(0)) for cross in (True, False))
        return self.cross_weight * (1 - cross_S).square().sum() + self.self_weight * (1 - self_S).square().sum()


@torch.enable_grad()
def losses_of(
    forward: Callable[[Tensor, Call], object], z_ECHW: Tensor, call: Call, weights: tuple[float, float], rows: Sequence[int], *, stop: bool
) -> Tensor:
    """L of `rows`, whose halves are the entries of `call`; `forward` runs the network on latents under a call."""
    layers = call.table.loss
    collected = Losses(layers, lambda number: call.table.grid(number, call.latents), weights, stop=stop)
    call.watched, call.watch = frozenset(layers), collected.watch
    with suppress(LossComplete):
        forward(z_ECHW, call)
    return torch.stack([collected.of(row) for row in rows])


def descend(
    losses: Callable[[Tensor, list[int]], Tensor],
    z_RCHW: Tensor,
    subjects: Sequence[int],
    guided: Sequence[Guided],
    *,
    beta: float,
    iterations: int,
    threshold: float,
) -> Tensor:
    """Up to `iterations` gradient steps on each row's latents; a row whose L / S is below `threshold` stays as it is.

    `losses` takes latents of some rows, which may require gradients, and their numbers, and returns their L. Raises NonFiniteLoss.
    """
    z_RCHW, going = z_RCHW.clone(), list(range(len(subjects)))
    for _ in range(iterations):
        with torch.enable_grad():
            z = z_RCHW[going].detach().requires_grad_()
            found = losses(z, going)
            values = found.tolist()
            for row, value in zip(going, values, strict=True):
                if value != value or abs(value) == float("inf"):
                    raise NonFiniteLoss(f"the layout loss became {value} after {guided[row].updates} updates; lower step_size.")
                guided[row].losses.append(value)
            keep = [at for at, row in enumerate(going) if values[at] / subjects[row] >= threshold]
            if not keep:
                break
            (gradient,) = torch.autograd.grad(found[keep].sum(), z)
        going = [going[at] for at in keep]
        z_RCHW[going] = z.detach()[keep] - beta * gradient[keep]
        for row in going:
            guided[row].updates += 1
    return z_RCHW
