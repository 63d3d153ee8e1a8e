"""A firing's process: `calotype run` on its own, which outlives the daemon that started it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy.engine import make_url

from orchestration.schedule.firing import Firing, Schedule, compact
from orchestration.schedule.process import Process
from orchestration.schedule.store import data_folder


class Running(Protocol):
    """A started process."""

    @property
    def process(self) -> Process: ...

    @property
    def log(self) -> str:
        """Where its errors and warnings go."""
        ...

    def poll(self) -> int | None:
        """Its exit code, 128 + n for signal n; None while it runs."""
        ...

    def summary(self) -> dict[str, Any]:
        """What it printed for machines; empty if it did not get so far."""
        ...


Launch = Callable[[Schedule, Firing], Running]


@dataclass
class Started:
    """A real process, whose standard output is a file: a pipe would end with the daemon."""

    popen: subprocess.Popen[bytes]
    process: Process
    printed: Path
    log: str

    def poll(self) -> int | None:
        code = self.popen.poll()
        return code if code is None or code >= 0 else 128 - code

    def summary(self) -> dict[str, Any]:
        try:
            found = json.loads(self.printed.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Launcher:
    """Starts firings with the program that the daemon is itself; what they say goes to `logs`, a log a firing."""

    logs: Path
    program: Sequence[str]

    def __call__(self, schedule: Schedule, firing: Firing) -> Started:
        """Start it, or start it again: the same command goes on. Raises OSError."""
        log = self.logs / firing.schedule / f"{compact(firing.fire_time)}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        printed = log.with_suffix(".json")
        with printed.open("wb") as out, log.open("ab") as err:
            popen = subprocess.Popen(
                [*self.program, *arguments(schedule, firing)],
                cwd=schedule.directory,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,  # Ctrl-C is for the daemon
            )
        return Started(popen, Process.of(popen.pid), printed, str(log))


def arguments(schedule: Schedule, firing: Firing) -> list[str]:
    """What a firing says to calotype."""
    sets = [part for item in (*schedule.sets, f"name={firing.job_name}") for part in ("--set", item)]
    return ["run", schedule.job, "--json", *sets, "--schedule", schedule.name]


def this_program() -> list[str]:
    """The command that this process was started by, without its arguments: a script, or `python -m module`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return [sys.executable, "-m", spec.name] if spec is not None else [sys.executable, sys.argv[0]]


def log_folder(store_url: str) -> Path:
    """Beside a SQLite file; among the user's data for any other store."""
    url = make_url(store_url)
    if url.drivername.startswith("sqlite") and url.database:
        return Path(url.database).absolute().parent / "logs"
    return data_folder() / "logs"
