"""Rectified flow along a schedule of sigmas: from noise to a picture, and from a picture back to its noise.

dx/ds = v(x, s), s from 1 (noise) to 0 (picture). N steps have N + 1 sigmas s_0 > ... > s_N = 0; "level i" is the latent at s_i.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from models.sampling import flow_shift

Velocity = Callable[[Tensor, float], Tensor]
"""(latents (B,N,C), sigma) -> velocity (B,N,C)."""


def sigmas(steps: int, mu: float) -> list[float]:
    """The N + 1 sigmas: s = linspace(1, 1/N, N), shifted e^mu / (e^mu + 1/s - 1), then 0. Source: Esser et al. 2024, eq. 23, as FLUX has it."""
    if steps < 1:
        raise ValueError(f"{steps} steps; at least one is needed.")
    even = torch.linspace(1, 1 / steps, steps, dtype=torch.float64)
    shifted = math.exp(mu) / (math.exp(mu) + 1 / even - 1)
    return [*shifted.tolist(), 0.0]


def shift_of(scheduler: Mapping[str, Any], image_tokens: int) -> float:
    """mu of a FlowMatchEulerDiscreteScheduler's configuration: by the number of image tokens where it says so, else its constant shift's log."""
    if not scheduler["use_dynamic_shifting"]:
        return math.log(scheduler["shift"])
    return flow_shift(scheduler, image_tokens)


def step(velocity: Velocity, x: Tensor, sigma: float, to: float) -> Tensor:
    """x + (s' - s) v(x, s)."""
    return x + (to - sigma) * velocity(x, sigma)


def denoise(velocity: Velocity, x: Tensor, schedule: list[float], after_step: Callable[[int, Tensor], Tensor] | None = None) -> Tensor:
    """From level 0 to level N; `after_step(i, x)` may change the latents that step i has brought to level i + 1."""
    for i in range(len(schedule) - 1):
        x = step(velocity, x, schedule[i], schedule[i + 1])
        x = after_step(i, x) if after_step is not None else x
    return x


def invert(velocity: Velocity, x: Tensor, schedule: list[float]) -> list[Tensor]:
    """From level N to level 0: x_i = x_{i+1} + (s_i - s_{i+1}) v(x_{i+1}, s_i), the velocity taken at the sigma gone to.

    Returns the N + 1 latents by level: the last is `x` itself, the first its noise. The authors' list[j] is level N - 1 - j.
    """
    levels = [x]
    for i in reversed(range(len(schedule) - 1)):
        levels.append(levels[-1] + (schedule[i] - schedule[i + 1]) * velocity(levels[-1], schedule[i]))
    return levels[::-1]


def realigned(levels: list[Tensor], i: int, how: str) -> Tensor:
    """What the reference is overwritten with after step i: `aligned` level i + 1, `authors_index` the authors' list[-i] (spec section 5)."""
    if how == "aligned":
        return levels[i + 1]
    if how == "authors_index":
        return levels[i - 1] if i > 0 else levels[-2]
    raise ValueError(f"There is no realignment {how!r}; choose aligned or authors_index.")
