"""One driver's right to a job folder."""

from __future__ import annotations

import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestration.folder import JobFolder
from orchestration.lease import Lease, LeaseHeld, judge, process_alive
from workers import storage
from workers.guard import LeaseLost

NOW = 1_000_000.0


def lease(**changes: Any) -> dict[str, Any]:
    return {"owner": "a", "host": "here", "pid": 1, "started": 5.0, "heartbeat": NOW - 10, "ttl_s": 60, **changes}


def replica(pid: int = 7, **changes: Any) -> dict[str, Any]:
    return {"driver": "a", "host": "here", "pid": pid, "started": 5.0, **changes}


@pytest.mark.parametrize(
    ("held", "replicas", "alive", "free", "why"),
    [
        (None, [], [], True, "nobody"),
        (lease(), [], [1], False, "held by process 1 on this machine"),
        (lease(), [], [], True, "are gone"),
        (lease(heartbeat=NOW - 61), [], [1], True, "silent for 61 s"),
        (lease(heartbeat=NOW - 61, host="there"), [replica()], [7], True, "silent"),
        (lease(heartbeat=NOW - 60), [], [1], False, "held by"),
        (lease(host="there"), [], [], False, "held by process 1 on there, last heard 10 s ago"),
        (lease(), [replica()], [7], False, r"its replicas \[7\] still run"),
        (lease(), [replica(), replica(8)], [8], False, r"its replicas \[8\] still run"),
        (lease(), [replica()], [], True, "are gone"),
        (lease(), [replica(driver="an earlier driver")], [7], True, "are gone"),
        (lease(), [replica(host="there")], [], False, "replicas elsewhere; it can be taken over in 50 s"),
    ],
)
def test_a_lease_is_free_only_when_its_driver_and_replicas_are_gone_or_silent(
    held: dict[str, Any] | None, replicas: list[dict[str, Any]], alive: list[int], free: bool, why: str
) -> None:
    verdict = judge(held, replicas, NOW, "here", lambda pid, started: pid in alive and started == 5.0)
    assert verdict.free is free
    assert re.search(why, verdict.why)


def test_a_later_process_of_the_same_number_is_another_one() -> None:
    started = psutil.Process().create_time()
    assert process_alive(os.getpid(), started)
    assert not process_alive(os.getpid(), started - 100)
    assert not process_alive(2**22 + 1, started)


def test_the_lease_is_taken_renewed_and_given_back(tmp_path: Path) -> None:
    folder = JobFolder(str(tmp_path))
    with Lease(folder, 1) as held:
        first = folder.read_json("lease.json")
        assert (first["owner"], first["pid"]) == (held.owner, os.getpid())
        deadline = time.monotonic() + 20
        while folder.read_json("lease.json")["heartbeat"] == first["heartbeat"]:
            assert time.monotonic() < deadline, "it was never renewed"
            time.sleep(0.02)
        held.check()
    assert not folder.exists("lease.json")


def test_a_second_driver_is_turned_away_at_once_and_may_come_when_the_first_has_left(tmp_path: Path) -> None:
    folder = JobFolder(str(tmp_path))
    with Lease(folder, 60), pytest.raises(LeaseHeld, match="held by process"), Lease(folder, 60):
        pass
    with Lease(folder, 60):
        pass


def test_an_error_inside_gives_the_lease_back(tmp_path: Path) -> None:
    folder = JobFolder(str(tmp_path))
    with pytest.raises(ValueError, match="inside"), Lease(folder, 60):
        raise ValueError("inside")
    assert not folder.exists("lease.json")


def test_of_many_drivers_that_find_a_silent_lease_one_takes_it(tmp_path: Path) -> None:
    folder = JobFolder(str(tmp_path))
    folder.write_json("lease.json", lease(heartbeat=time.time() - 100))
    start, done, took, held = threading.Barrier(8), threading.Event(), list[str](), list[str]()

    def drive() -> None:
        start.wait()
        try:
            with Lease(folder, 60) as mine:
                took.append(mine.owner)
                done.wait(20)
        except LeaseHeld as error:
            held.append(str(error))

    drivers = [threading.Thread(target=drive) for _ in range(8)]
    for driver in drivers:
        driver.start()
    deadline = time.monotonic() + 20
    while len(took) + len(held) < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (len(took), len(held)) == (1, 7)
    assert folder.read_json("lease.json")["owner"] == took[0]
    done.set()
    for driver in drivers:
        driver.join(10)


def test_a_claim_left_by_a_driver_that_died_before_taking_over_is_passed_over_in_time(tmp_path: Path) -> None:
    folder = JobFolder(str(tmp_path))
    folder.write_json("lease.json", lease(heartbeat=time.time() - 100))
    claim = folder.join("attempts", "takeover-a-0")
    storage.create_once(folder.fs, claim, str(time.time()).encode())
    with pytest.raises(LeaseHeld, match="another driver was faster"), Lease(folder, 60, wait_s=0):
        pass
    storage.write_atomic(folder.fs, claim, str(time.time() - 61).encode())
    with Lease(folder, 60) as mine:
        assert folder.read_json("lease.json")["owner"] == mine.owner


def test_a_driver_whose_lease_is_taken_or_removed_notices_and_leaves_the_other_s_alone(tmp_path: Path) -> None:
    folder = JobFolder(str(tmp_path))
    with Lease(folder, 1) as held:
        other = lease(owner="b", heartbeat=time.time())
        folder.write_json("lease.json", other)
        assert held.lost.wait(20)
        with pytest.raises(LeaseLost, match="lost to another driver"):
            held.check()
    assert folder.read_json("lease.json") == other
    (tmp_path / "lease.json").unlink()
    with Lease(folder, 1) as held:
        (tmp_path / "lease.json").unlink()
        assert held.lost.wait(20)


def test_a_driver_that_cannot_renew_for_its_time_to_live_stops_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> None:
        raise OSError(5, "the store is unreachable")

    with Lease(JobFolder(str(tmp_path)), 1) as held:
        monkeypatch.setattr(storage, "write_atomic", unreachable)
        assert not held.lost.wait(0.6)  # one failure is none
        assert held.lost.wait(20)
        monkeypatch.undo()
