"""The failure matrix on the Ray engine, with real processes killed for real; each engine finishes what the other began."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from orchestration.folder import JobFolder
from orchestration.job import parse
from orchestration.run import run
from tests import toy
from tests.faults import kill
from tests.faults.test_inline import failed_rows, nothing_lost_nothing_twice


@pytest.fixture(scope="module", autouse=True)
def one_cluster() -> Iterator[None]:
    """The tests' own drivers share a cluster; killed drivers bring their own."""
    import ray

    from orchestration.engines import ray as engine
    from orchestration.job import Resources

    engine.start(Resources())
    yield
    ray.shutdown()


def test_bad_hanging_and_killing_rows_cost_only_themselves(tmp_path: Path) -> None:
    actions = {1: "die", 3: "raise", 5: "hang", 7: "flaky", 9: "missing", 11: "oom", 13: "huge"}
    summary = run(parse(toy.job(tmp_path, rows=24, actions=actions, engine="ray", resources={"block_rows": 12, "row_timeout_s": 2})))
    folder = nothing_lost_nothing_twice(summary, 24)
    assert failed_rows(folder) == {
        "row-0001": "ProcessDied",
        "row-0003": "ValueError",
        "row-0005": "RowTimeout",
        "row-0009": "FileNotFoundError",
        "row-0013": "MemoryError",
    }
    assert run(parse(toy.job(tmp_path, engine="ray", resources={"block_rows": 12, "row_timeout_s": 2}))).executed == 0


def test_a_killed_replica_costs_no_row(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    journal.mkdir()
    content = toy.job(tmp_path, rows=32, engine="ray", params={"sleep_ms": 50, "journal": str(journal)}, resources={"block_rows": 8})
    driver = kill.start(tmp_path, content)
    kill.wait_for(lambda: len(kill.executed(journal)) >= 6, driver)
    os.kill(int(next(journal.iterdir()).name), signal.SIGKILL)
    summary = kill.finish(driver, 0)
    assert (summary["ok"], summary["failed"]) == (32, 0)
    nothing_lost_nothing_twice(run(parse(content)), 32)


@pytest.mark.parametrize(("first", "second", "blocks"), [("ray", "ray", 1), ("ray", "inline", 2), ("inline", "ray", 2)])
def test_each_engine_finishes_a_job_that_was_killed_on_the_other(tmp_path: Path, first: str, second: str, blocks: int) -> None:
    journal = tmp_path / "journal"
    journal.mkdir()
    content = toy.job(tmp_path, rows=48, engine=first, params={"sleep_ms": 60, "journal": str(journal)}, resources={"block_rows": 6})
    driver = kill.start(tmp_path, content)
    kill.wait_for(lambda: kill.committed(tmp_path / "out") >= blocks, driver)
    kill.kill(driver)
    summary = run(parse({**content, "engine": second}))
    nothing_lost_nothing_twice(summary, 48)
    assert summary.executed <= 48 - 6 * blocks
    assert max(Counter(kill.executed(journal)).values()) <= 2


def test_replicas_of_a_killed_driver_never_cause_a_second_copy(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    journal.mkdir()
    content = toy.job(tmp_path, rows=32, engine="ray", params={"sleep_ms": 100, "journal": str(journal)}, resources={"block_rows": 8})
    driver = kill.start(tmp_path, content)
    kill.wait_for(lambda: len(kill.executed(journal)) >= 3, driver)
    replica = int(next(journal.iterdir()).name)
    os.kill(replica, signal.SIGSTOP)  # it outlives its driver, asleep, until Ray finds out
    kill.kill(driver)
    other = kill.start(tmp_path, {**content, "engine": "inline"})
    _, error = other.communicate(timeout=120)
    assert other.returncode in (0, 75)
    if other.returncode == 75:  # it still lived after the wait: the lease is not taken over
        assert "its driver is gone, but its replicas" in error
        assert str(replica) in error
    with suppress(ProcessLookupError):
        os.kill(replica, signal.SIGCONT)
    nothing_lost_nothing_twice(run(parse({**content, "engine": "inline"})), 32)
    assert max(Counter(kill.executed(journal)).values()) <= 2


def test_weights_that_cannot_be_loaded_stop_the_job_fast(tmp_path: Path) -> None:
    content = toy.job(tmp_path, rows=8, engine="ray", params={"fail_load": True})
    with pytest.raises(Exception, match="the weights can't be loaded"):
        run(parse(content))
    folder = kill.the_folder(tmp_path / "out")
    assert isinstance(folder, JobFolder)
    assert not folder.finished
