"""How a benchmark reports: the state of the machine, medians with their range, tables in Markdown."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median


def machine(*packages: str) -> str:
    """Date, commit, cores, load average and versions, as a line."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    versions = ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)])
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{now}, commit {found.stdout.strip() or 'unknown'}, {os.cpu_count()} cores, OMP_NUM_THREADS {threads}, {load()}; {versions}"


def load() -> str:
    """The load average over 1 and 5 minutes: what else the machine was doing."""
    one, five, _ = os.getloadavg()
    return f"load average {one:.1f} / {five:.1f}"


def command(module: str) -> str:
    """The command that was given, as a reader would give it."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def spread(values: Sequence[float], digits: int) -> str:
    """`median (lowest-highest)`, or the one value."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def heading(heads: Sequence[str]) -> str:
    """The first two lines of a Markdown table, first column to the left, numbers to the right."""
    return f"{line(heads)}\n{line(['---', *['---:'] * (len(heads) - 1)])}"


def line(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A whole Markdown table."""
    return "\n".join([heading(heads), *map(line, rows)])
