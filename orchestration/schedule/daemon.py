"""The daemon: makes firings of the times that come, starts them, and sees each through to its end, its own and those of daemons that died.

It may be killed at any point, and several may watch one store: what has happened stands in the store, and running a firing's command again
is always right: it goes on with the job, does nothing where it is finished, or ends with 75 where another driver is at it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy.exc import SQLAlchemyError

from orchestration.schedule import folders, hooks
from orchestration.schedule.firing import Firing, Schedule, iso, meaning
from orchestration.schedule.launch import Launch, Running
from orchestration.schedule.process import Process
from orchestration.schedule.store import Store

log = logging.getLogger(__name__)

OK, ERROR, FAILED_ROWS, USAGE, HELD = 0, 1, 2, 64, 75
TRIES = 3  # runs of a firing that stop on an error
WAIT_S = 30.0  # before the same command again: after an error, times the number of errors; half of it where another driver is at it
BEAT_S = 30.0
SILENT_S = 180.0  # a daemon on another machine that is silent for so long may be replaced; the job's own lease guards the job


@dataclass
class Daemon:
    """One watcher of a store. `me`: the process it is; `alive`, `clock`, `monotonic`: replaced in tests."""

    store: Store
    launch: Launch
    me: Process
    alive: Callable[[Process], bool] = lambda process: process.alive
    clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    _children: dict[tuple[str, int], Running] = field(default_factory=dict)
    _again: dict[tuple[str, int], float] = field(default_factory=dict)  # when to start it again, on the monotonic clock
    _beaten: float = float("-inf")

    def run(self, stop: threading.Event, poll_s: float = 1.0) -> int:
        """Watch until `stop` is set. Returns how many firings still run; they go on by themselves, and the next daemon takes them up."""
        while not stop.is_set():
            try:
                self.look()
            except (SQLAlchemyError, OSError) as error:
                log.error("the store could not be used; tried again: %s", str(error).splitlines()[0])
            stop.wait(poll_s)
        return sum(child.poll() is None for child in self._children.values())

    def look(self) -> None:
        """One look at the clock, the store and the processes. Never waits for a job."""
        if self.monotonic() - self._beaten >= BEAT_S:
            self.store.beat(str(self.me), self.clock())
            self._beaten = self.monotonic()
        schedules = {schedule.name: schedule for schedule in self.store.schedules(removed=True)}
        for firing in self.store.firings(states=("running",)):
            self._see_to(schedules[firing.schedule], firing)
        for schedule in self.store.schedules():
            due = self.store.note_due(schedule, self.clock())
            if due is not None and due.missed_since is not None:
                log.info("%s: %s stands for all times since %s", schedule.name, iso(due.fire_time), iso(due.missed_since))
        for name in {firing.schedule for firing in self.store.firings(states=("due",))}:
            claimed = self.store.claim(name, str(self.me), self.clock())
            if claimed is not None:
                self._start(schedules.get(name) or self.store.get(name), claimed)
        for firing in self.store.firings(hook="due"):
            held = firing if firing.daemon == str(self.me) else None if self._lives(firing) else self._adopt(firing)
            if held is not None:
                self._tell(schedules[firing.schedule], held)

    def _see_to(self, schedule: Schedule, firing: Firing) -> None:
        """A firing that runs: is its process at its end, and whose is it?"""
        if firing.daemon != str(self.me):
            if self._lives(firing) or (firing.process is not None and self.alive(Process.parse(firing.process))):
                return
            adopted = self._adopt(firing)
            if adopted is not None:
                log.info("%s: %s was left by a daemon that is gone; going on with it", firing.schedule, iso(firing.fire_time))
                self._start(schedule, adopted)
            return
        child = self._children.get(firing.key)
        if child is not None:
            code = child.poll()
            if code is not None:
                del self._children[firing.key]
                self._ended(schedule, firing, code, child)
        elif self.monotonic() >= self._again.get(firing.key, 0.0):
            self._start(schedule, firing)

    def _adopt(self, firing: Firing) -> Firing | None:
        return self.store.adopt(firing, str(self.me), self.clock())

    def _lives(self, firing: Firing) -> bool:
        """True if the daemon of a firing is there, or may be."""
        assert firing.daemon is not None
        daemon = Process.parse(firing.daemon)
        if daemon.host == self.me.host:
            return self.alive(daemon)
        return firing.heartbeat is not None and abs(self.clock() - firing.heartbeat) < SILENT_S

    def _start(self, schedule: Schedule, firing: Firing) -> None:
        self._again.pop(firing.key, None)
        try:
            child = self.launch(schedule, firing)
        except OSError as error:
            log.error("%s: %s could not be started: %s", firing.schedule, iso(firing.fire_time), error)
            self._failed(schedule, firing, ERROR)
            return
        self._children[firing.key] = child
        self.store.change(firing, process=str(child.process), log=child.log)
        log.info("%s: %s runs as %s, process %d", firing.schedule, iso(firing.fire_time), firing.job_name, child.process.pid)

    def _ended(self, schedule: Schedule, firing: Firing, code: int, child: Running) -> None:
        if code == HELD:
            log.info("%s: another driver is at %s; waiting for it", firing.schedule, firing.job_name)
            self._again[firing.key] = self.monotonic() + WAIT_S / 2
        elif code in (OK, FAILED_ROWS, USAGE):
            self._finish(schedule, firing, code, child)
        else:
            self._failed(schedule, firing, code)

    def _failed(self, schedule: Schedule, firing: Firing, code: int) -> None:
        """It stopped on an error: the same command goes on, some times."""
        held = self.store.change(firing, tries=firing.tries + 1)
        if held is None:
            return
        if held.tries >= TRIES:
            self._finish(schedule, held, code, None)
            return
        wait_s = WAIT_S * held.tries
        log.warning("%s: %s: %s; again in %.0f s", firing.schedule, firing.job_name, meaning(code), wait_s)
        self._again[firing.key] = self.monotonic() + wait_s

    def _finish(self, schedule: Schedule, firing: Firing, code: int, child: Running | None) -> None:
        summary = child.summary() if child is not None else {}
        done = self.store.change(
            firing,
            state="finished",
            finished=self.clock(),
            exit_code=code,
            hook="due" if code != OK and hooks.wanted(schedule) else None,
            ok=summary.get("ok"),
            failed=summary.get("failed"),
            folder=summary.get("folder") or folders.find(schedule, firing),
        )
        if done is None:
            return  # another daemon took it over, and will see that it is finished
        log.info("%s: %s ended: %s", firing.schedule, firing.job_name, meaning(code))
        folders.retire(self.store, schedule, self.clock())

    def _tell(self, schedule: Schedule, firing: Firing) -> None:
        """The hooks of a firing that failed; it is finished whatever they do."""
        problem = hooks.call(schedule, firing)
        if problem is not None:
            log.error("%s: the hook for %s failed: %s", firing.schedule, firing.job_name, problem)
        self.store.change(firing, hook=problem or "done")
