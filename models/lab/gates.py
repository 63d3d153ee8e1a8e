"""What a lab proof must show: statements with what was measured, told one by one and as the first table of its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Gate:
    """A statement that must hold, and what was measured."""

    claim: str
    measured: str
    holds: bool

    def __str__(self) -> str:
        return f"{'holds' if self.holds else 'DOES NOT HOLD'}: {self.claim}: {self.measured}"


def gate_table(gates: Sequence[Gate]) -> str:
    """Markdown, a line a gate."""
    rows = [f"| {gate.claim} | {gate.measured} | {'holds' if gate.holds else '**does not hold**'} |" for gate in gates]
    return "\n".join(["| gate | measured | |", "|---|---|---|", *rows])
