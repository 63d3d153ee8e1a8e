"""Curves of errors over training, a line an arm, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from models.lab.races import Curve

COLOURS = ("#222222", "#d95f02", "#7570b3", "#1b9e77", "#a6761d", "#999999", "#e7298a", "#1f78b4")


def write_curves(path: Path, panels: Mapping[str, Mapping[str, Curve]], *, error: str, levels: Mapping[str, float] | None = None) -> None:
    """A panel a title, side by side, each with its arms' errors over seconds (logarithmic from a hundredth of a second; step 0 at its left end).

    `levels`: title -> the error that was raced to, as a dotted line. Raises ModuleNotFoundError with the package to install.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError("curves are drawn by matplotlib: pip install matplotlib") from missing
    figure = Figure(figsize=(5.2 * len(panels), 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Sequence = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (title, arms) in zip(axes, panels.items(), strict=True):
        for colour, (name, curve) in zip(COLOURS * (1 + len(arms) // len(COLOURS)), arms.items(), strict=False):
            seconds = [max(at, 1e-2) for at in curve.seconds]
            ax.plot(seconds, curve.errors, color=colour, label=name, linewidth=1.6)
            ax.plot(seconds[:1], curve.errors[:1], "o", color=colour, markersize=4)
        if levels and title in levels:
            ax.axhline(levels[title], color="#555555", linestyle=":", linewidth=1)
        ax.set_xscale("log")
        ax.set_xlabel("CPU seconds of one thread")
        ax.set_ylabel(error)
        ax.set_title(title, fontsize=10)
        ax.grid(alpha=0.25)
    axes[-1].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
