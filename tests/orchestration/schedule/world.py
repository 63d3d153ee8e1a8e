"""A world in which the clock, the daemons and the jobs are pretended; the store and what the daemons do with it are real."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from orchestration.schedule.daemon import Daemon
from orchestration.schedule.firing import Firing, Schedule
from orchestration.schedule.process import Process
from orchestration.schedule.store import Store

START = 1_795_502_400.0  # 2026-11-24 06:40 UTC, a Tuesday


@dataclass
class PretendedJob:
    """A started `calotype run`: lives until the test ends it, unless another one is at the same job, or the job is finished."""

    world: World
    name: str
    process: Process
    code: int | None = None
    log: str = "somewhere.log"

    def poll(self) -> int | None:
        return self.code

    def summary(self) -> dict[str, Any]:
        return {"ok": 3, "failed": 0, "folder": f"/out/{self.name}-000000000000"} if self.code in (0, 2) else {}

    def end(self, code: int) -> None:
        """End it; with 0 or 2 it has done the job's work."""
        self.code = code
        self.world.living.discard(str(self.process))
        if code in (0, 2):
            self.world.done[self.name] += 1


@dataclass
class World:
    """`done`: how often each job's work was done; `started`: every process, in order."""

    folder: Path
    now: float = START
    since_boot: float = 0.0
    living: set[str] = field(default_factory=set)
    done: Counter[str] = field(default_factory=Counter)
    started: list[PretendedJob] = field(default_factory=list)
    pids: count[int] = field(default_factory=lambda: count(100))

    def __post_init__(self) -> None:
        self.store = Store("sqlite://")  # in memory: nobody else looks

    def schedule(self, name: str = "nightly", cron: str = "0 * * * *", **keys: Any) -> Schedule:
        schedule = Schedule(name, "/nowhere/job.yaml", str(self.folder), cron, "UTC", **keys)
        self.store.add(schedule, self.now)
        return schedule

    def process(self, host: str = "here") -> Process:
        process = Process(host, "boot", next(self.pids), "born")
        self.living.add(str(process))
        return process

    def daemon(self, host: str = "here") -> Daemon:
        """A daemon as if in a process of its own; it does only what `look` does."""
        me = self.process(host)

        def alive(process: Process) -> bool:
            return process.host == host and str(process) in self.living  # nobody sees the processes of another machine

        def launch(schedule: Schedule, firing: Firing) -> PretendedJob:
            job = PretendedJob(self, firing.job_name, self.process(host))
            if any(j.name == job.name and j.code is None for j in self.started):
                job.end(75)  # the job's lease
            elif self.done[job.name]:
                job.code = 0  # nothing left to run
                self.living.discard(str(job.process))
            self.started.append(job)
            return job

        return Daemon(self.store, launch, me, alive, lambda: self.now, lambda: self.since_boot)

    def kill(self, daemon: Daemon) -> None:
        """The daemon is gone; what it started lives on."""
        self.living.discard(str(daemon.me))

    def passes(self, seconds: float) -> None:
        """Time goes by."""
        self.now += seconds
        self.since_boot += seconds

    @property
    def running(self) -> list[PretendedJob]:
        return [job for job in self.started if job.code is None]

    def firings(self, *states: str) -> list[Firing]:
        """The earliest first."""
        return self.store.firings(states=states)[::-1]
