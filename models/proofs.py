"""Proofs by method, as `calotype prove METHOD` runs them.

With `--golden FILE`: that a method equals its authors' mathematics, compared tensor by tensor with what their code computed. Without: that it
does in the lab what its paper claims, measured and held against gates.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from models.checkpoints import UnreadableCheckpoint, read_tensors

GOLDEN = {
    "instant_restore": "models.methods.instant_restore_golden:prove_golden",
    "bounded_attention": "models.methods.bounded_attention_golden:prove_golden",
    "stable_flow": "models.methods.stable_flow_golden:prove_golden",
    "weights2weights": "models.methods.weights2weights_golden:prove_golden",
}
"""Method -> module:function that takes a golden file and returns its comparisons."""

CLAIMS: dict[str, str] = {
    "instant_restore": "models.lab.proof_instant_restore:prove",
    "bounded_attention": "models.lab.proof_bounded_attention:prove",
    "stable_flow": "models.lab.proof_stable_flow:prove",
    "neural_weights": "models.lab.proof_neural_weights:prove",
    "weights2weights": "models.lab.proof_weights2weights:prove",
}
"""Method -> module:function that takes (output folder, data folder or None, say) and returns whether every gate of its lab proof holds."""


class GoldenFileError(ValueError):
    """A golden file is damaged, or is not one of this method; nothing was compared."""


@dataclass(frozen=True)
class Comparison:
    """One tensor compared: the largest absolute difference and what is allowed."""

    name: str
    max_abs: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Within tolerance; a NaN never is."""
        return self.max_abs <= self.tolerance


def golden(method: str, file: Path) -> list[Comparison]:
    """Run `method` on a golden file's inputs and compare with its results. Raises ValueError, GoldenFileError for the file's faults."""
    return _find(GOLDEN, method, "golden")(file)


def claim(method: str, output: Path, data: Path | None, say: Callable[[str], None]) -> bool:
    """Measure a method's claim in the lab, write figures to `output`, tell `say` each line; whether every gate holds. Raises ValueError."""
    return _find(CLAIMS, method, "lab")(output, data, say)


def _find(proofs: Mapping[str, str], method: str, kind: str) -> Callable[..., Any]:
    name = method.replace("-", "_")
    if name not in proofs:
        raise ValueError(f"There is no {kind} proof for {method!r}; methods that have one: {', '.join(sorted(proofs)) or 'none yet'}.")
    module, function = proofs[name].split(":")
    return getattr(importlib.import_module(module), function)


def read_golden(file: Path) -> dict[str, Tensor]:
    """All tensors of a golden file. Raises GoldenFileError if it is missing, cut off or of another kind."""
    try:
        return read_tensors(file)
    except UnreadableCheckpoint as error:
        raise GoldenFileError(str(error)) from error


def check_names(file: Path, tensors: Iterable[str], expected: Iterable[str]) -> None:
    """Raises GoldenFileError naming what is missing from a golden file and what does not belong there."""
    missing, unknown = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or unknown:
        raise GoldenFileError(
            f"{file} is no golden file of this method: {len(missing)} tensors missing ({', '.join(missing[:5])}), "
            f"{len(unknown)} unknown ({', '.join(unknown[:5])})."
        )


def compare(name: str, computed: Tensor, stored: Tensor, tolerance: float) -> Comparison:
    """Largest absolute difference of two tensors of one shape. Raises GoldenFileError if the shapes differ."""
    if computed.shape != stored.shape:
        raise GoldenFileError(f"{name} has shape {tuple(stored.shape)} in the file; these weights and inputs give {tuple(computed.shape)}.")
    difference = (computed.double() - stored.double()).abs()
    return Comparison(name, difference.max().item() if difference.numel() else 0.0, tolerance)


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name begins with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
