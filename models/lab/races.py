"""Time to quality: when each run of a race reached an error, and how many times sooner one start gets there than another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

Run = tuple[str, int]  # concept and seed


@dataclass(frozen=True)
class Curve:
    """One run's checks: optimiser steps, seconds of preparation and training (not of checking) up to each, and the error then."""

    steps: tuple[int, ...]
    seconds: tuple[float, ...]
    errors: tuple[float, ...]


@dataclass(frozen=True)
class Reached:
    """The first check at or below an error; where none was, the whole budget, and `missed`."""

    seconds: float
    steps: int
    missed: bool


@dataclass(frozen=True)
class Ratio:
    """Median over concepts of the median over seeds, with its 95 % bootstrap interval over concepts."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.1f} [{self.low:.1f}, {self.high:.1f}]"


def reach(curve: Curve, error: float) -> Reached:
    """When a run got to `error`."""
    for steps, seconds, found in zip(curve.steps, curve.seconds, curve.errors, strict=True):
        if found <= error:
            return Reached(seconds, steps, missed=False)
    return Reached(curve.seconds[-1], curve.steps[-1], missed=True)


def ratio(slow: Mapping[Run, Reached], fast: Mapping[Run, Reached], *, steps: bool = False) -> Ratio:
    """How many times sooner `fast` is there than `slow`, run by run: in seconds, or in steps (none counts as one, so that there is a ratio)."""
    by_concept: dict[str, list[float]] = {}
    for run, late in slow.items():
        early = fast[run]
        found = max(late.steps, 1) / max(early.steps, 1) if steps else late.seconds / early.seconds
        by_concept.setdefault(run[0], []).append(found)
    return median_of([median(values) for values in by_concept.values()])


def median_of(values: Sequence[float], draws: int = 2000) -> Ratio:
    """The median with its interval, resampled over the values. Raises ValueError for fewer than two."""
    x = np.asarray(values, dtype=np.float64)
    if x.size < 2:
        raise ValueError(f"an interval needs two values or more, got {x.size}")
    chosen = np.random.default_rng(0).integers(0, x.size, size=(draws, x.size))
    low, high = np.quantile(np.median(x[chosen], axis=1), [0.025, 0.975])
    return Ratio(float(np.median(x)), float(low), float(high))


def misses(reached: Mapping[Run, Reached]) -> list[Run]:
    """The runs that never got there."""
    return sorted(run for run, found in reached.items() if found.missed)


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean over runs that were checked at the same steps; a run that ended sooner stays at its last error."""
    longest = max(curves, key=lambda curve: len(curve.steps))
    length = len(longest.steps)
    errors = np.array([curve.errors + (curve.errors[-1],) * (length - len(curve.errors)) for curve in curves])
    seconds = np.array([[np.interp(step, curve.steps, curve.seconds) for step in longest.steps] for curve in curves])
    return Curve(longest.steps, tuple(seconds.mean(0)), tuple(errors.mean(0)))
