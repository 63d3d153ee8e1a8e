"""What is scheduled and what came of it: a schedule, and its firings."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any, Literal

from orchestration.schedule.cron import Cron, ScheduleError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,46}")  # with the fire time behind it, still a name of a job
MEANING = {
    0: "every row ok",
    2: "finished, some rows failed or files left out",
    64: "job file, manifest or command line is wrong",
    1: "stopped on an error",
    130: "stopped by Ctrl-C",
}

State = Literal["due", "running", "finished", "coalesced"]


@dataclass(frozen=True)
class Schedule:
    """A job file and when to run it. `directory`: the working directory of `schedule add`, to which the job file's paths are relative."""

    name: str
    job: str
    directory: str
    cron: str
    timezone: str
    sets: tuple[str, ...] = ()  # more --set for every firing
    keep: int | None = None  # finished jobs that stay; None: all
    on_failure: str | None = None  # a command
    webhook: str | None = None  # an address, may hold $VARIABLES of the daemon's environment
    created: float = 0.0  # unix seconds

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ScheduleError(
                f"{self.name!r} can't name a schedule: letters, digits, dots, dashes and underscores, at most 47, the first a letter or digit"
            )
        if self.keep is not None and self.keep < 1:
            raise ScheduleError("--keep: 1 at the least; the last finished job is what the next one may reuse")

    @property
    def times(self) -> Cron:
        """When it fires. Raises ScheduleError."""
        return _times(self.cron, self.timezone)


@dataclass(frozen=True)
class Firing:
    """One time at which a schedule fired, and what came of it. All times in unix seconds.

    `missed_since`: it stands for this time too and for all between, at which no daemon ran. `daemon` and `process`: who runs it
    (`Process` as text). `hook`: None for none, "due", "done", or why it failed. `retired`: its job folder was deleted to keep the newest.
    """

    schedule: str
    fire_time: int
    state: State
    missed_since: int | None = None
    daemon: str | None = None
    process: str | None = None
    heartbeat: float | None = None
    tries: int = 0  # runs that stopped on an error
    started: float | None = None
    finished: float | None = None
    exit_code: int | None = None
    ok: int | None = None  # rows
    failed: int | None = None
    folder: str | None = None
    log: str | None = None
    hook: str | None = None
    retired: float | None = None

    @property
    def key(self) -> tuple[str, int]:
        return self.schedule, self.fire_time

    @property
    def job_name(self) -> str:
        """The name its job runs under."""
        return f"{self.schedule}-{compact(self.fire_time)}"

    def describe(self) -> dict[str, Any]:
        """For people and machines: ISO times, links, what the exit code means."""
        facts = {k: v for k, v in asdict(self).items() if k not in ("daemon", "process", "heartbeat")}
        for key in ("fire_time", "missed_since", "started", "finished", "retired"):
            facts[key] = None if facts[key] is None else iso(facts[key])
        page = f"{self.folder}/review/index.html" if self.folder and self.retired is None and self.exit_code in (0, 2) else None
        return {**facts, "job": self.job_name, "meaning": meaning(self.exit_code), "review": page}


@cache
def _times(cron: str, timezone: str) -> Cron:
    return Cron(cron, timezone)


def meaning(exit_code: int | None) -> str | None:
    """An exit code in words."""
    if exit_code is None:
        return None
    return MEANING.get(exit_code, f"killed by signal {exit_code - 128}" if exit_code > 128 else f"exit code {exit_code}")


def compact(time: float) -> str:
    """20261124T020000Z"""
    return datetime.fromtimestamp(time, UTC).strftime("%Y%m%dT%H%M%SZ")


def iso(time: float) -> str:
    """2026-11-24T02:00:00Z"""
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
