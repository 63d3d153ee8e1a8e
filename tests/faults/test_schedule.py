"""Real daemons, really killed between a firing and its end: it is finished exactly once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from orchestration.finalize import verify
from orchestration.folder import JobFolder, jobs
from orchestration.schedule.firing import Firing, Schedule
from orchestration.schedule.process import Process
from orchestration.schedule.store import Store
from tests import toy
from tests.faults.kill import ROOT, executed

Daemons = Callable[[], "subprocess.Popen[bytes]"]
ROWS = 24


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Daemons]:
    """Starts `calotype schedule run` in a process of its own; whatever is left ends with the test."""
    started: list[subprocess.Popen[bytes]] = []
    command = [sys.executable, "-m", "tests.faults.driver", "schedule", "run", "--store", url(tmp_path)]

    def start() -> subprocess.Popen[bytes]:
        with (tmp_path / f"daemon-{len(started)}.log").open("wb") as log:
            started.append(subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=log, stdout=log))
        return started[-1]

    yield start
    for daemon in started:
        daemon.kill()
        daemon.wait()
    for firing in Store(url(tmp_path)).firings(states=("running",)):
        if firing.process is not None and Process.parse(firing.process).alive:
            os.kill(Process.parse(firing.process).pid, signal.SIGKILL)


def url(folder: Path) -> str:
    return f"sqlite:///{folder / 'schedules.db'}"


def due_now(folder: Path, **params: object) -> Store:
    """A store with a schedule that has been due for some seconds, once a day; its job tells in `journal` which rows it ran."""
    (folder / "journal").mkdir()
    job = folder / "job.yaml"
    job.write_text(
        yaml.safe_dump(toy.job(folder, ROWS, params={"journal": str(folder / "journal"), **params}, output=f"{folder}/out/{{schedule}}"))
    )
    now = time.time()
    minute = datetime.fromtimestamp(now, UTC)
    store = Store(url(folder))
    store.add(Schedule("nightly", str(job), str(ROOT), f"{minute.minute} {minute.hour} * * *", "UTC"), now - 90)
    return store


def until(condition: Callable[[], bool], folder: Path, timeout_s: float = 150) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "\n".join(log.read_text() for log in folder.rglob("*.log"))
        time.sleep(0.1)


def the_firing(store: Store) -> Firing:
    (firing,) = store.firings()
    return firing


def finished_once(store: Store, folder: Path) -> Firing:
    """The one firing, after its end: all rows ok, in one folder that proves itself."""
    until(lambda: [firing.state for firing in store.firings()] == ["finished"], folder)
    firing = the_firing(store)
    assert (firing.exit_code, firing.ok, firing.failed) == (0, ROWS, 0)
    found = list(jobs(str(folder / "out" / "nightly")))
    assert [job.uri for job in found] == [firing.folder]
    assert found[0].name.startswith(firing.job_name)
    assert verify(JobFolder(str(firing.folder))) == []
    return firing


@pytest.mark.parametrize("job_survives", [True, False], ids=["the job goes on", "the job is killed too"])
def test_a_firing_whose_daemon_is_killed_is_finished_exactly_once_by_the_next(tmp_path: Path, daemons: Daemons, job_survives: bool) -> None:
    store = due_now(tmp_path, sleep_ms=150.0)
    killed = daemons()
    until(lambda: len(executed(tmp_path / "journal")) >= ROWS // 3, tmp_path)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    firing = the_firing(store)
    assert firing.state == "running"
    process = Process.parse(str(firing.process))
    if not job_survives:
        os.kill(process.pid, signal.SIGKILL)
        until(lambda: not process.alive, tmp_path)
    daemons()
    finished_once(store, tmp_path)
    rows = executed(tmp_path / "journal")
    assert set(rows) == {f"row-{i:04}" for i in range(ROWS)}
    assert len(rows) - ROWS <= (0 if job_survives else 8)  # only the blocks in flight are done again


def test_two_daemons_that_start_together_run_a_firing_once(tmp_path: Path, daemons: Daemons) -> None:
    store = due_now(tmp_path)
    one, two = daemons(), daemons()
    firing_ended = finished_once(store, tmp_path)
    assert firing_ended.tries == 0
    assert len(executed(tmp_path / "journal")) == ROWS
    for daemon in (one, two):
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(60) == 0


def test_a_process_is_known_from_another_one_of_its_number(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = Process.of(child.pid)
    assert process.alive
    assert Process.parse(str(process)) == process
    assert not Process(process.host, process.boot, process.pid, "1").alive
    assert not Process(process.host, "another boot", process.pid, process.born).alive
    child.communicate()
    assert not process.alive
