"""What the commands share: streams, exit codes, arguments that several take, and the bar of a running job."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

OK, ERROR, FAILED_ROWS, USAGE, HELD, INTERRUPTED = 0, 1, 2, 64, 75, 130  # exit codes, DESIGN section 4

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

JobFile = Annotated[Path, typer.Argument(help="The job file (YAML). `calotype init KIND` writes one.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override any key of the job file, such as params.format=jpeg.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


class _Noise(io.TextIOBase):
    """Where Ray prints to while a job runs: the debug log. Standard output is for the result."""

    def write(self, text: str) -> int:
        if text.strip():
            logging.getLogger("ray.printed").debug(text.rstrip())
        return len(text)


@contextmanager
def progress(name: str, *, quiet: bool) -> Iterator[Callable[[Any], None] | None]:
    """Show how far a job is, on the error stream; nothing unless rows run. What else is printed meanwhile goes to the debug log."""
    with redirect_stdout(_Noise()):
        if quiet:
            yield None
        else:
            with _bar(name) as show:
                yield show


@contextmanager
def _bar(name: str) -> Iterator[Callable[[Any], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[rows]}"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[eta]}"),
        TextColumn("{task.fields[failed]}"),
    )
    with Progress(*columns, console=err, redirect_stdout=False) as bar:
        task = bar.add_task(name, total=None, rows="", rate="", eta="", failed="")
        shown = False

        def show(point: Any) -> None:
            nonlocal shown
            shown = True
            left = point.planned - point.done
            eta = f"{left / point.rows_per_s:.0f} s left" if point.rows_per_s > 0 and left else ""
            failed = f"{point.failed} failed" if point.failed else ""
            rows, rate = f"{point.done}/{point.planned} rows", f"{point.rows_per_s:.1f} rows/s"
            bar.update(task, total=point.planned, completed=point.done, rows=rows, rate=rate, eta=eta, failed=failed)

        try:
            yield show
        finally:
            bar.update(task, visible=shown)  # a job that was finished before has no bar
