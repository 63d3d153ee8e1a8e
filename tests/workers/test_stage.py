"""A plain function over rows as a stage."""

from __future__ import annotations

import threading
import time
from typing import Any

import pyarrow as pa
import pytest

from workers.rows import Failure, JobStopped, Outcome, Retry
from workers.stage import MapRows

NUMBERS = pa.table({"row_id": [f"row-{i}" for i in range(20)], "number": list(range(20))})
ADDS = pa.schema([("double", pa.int64())])


def double(row: dict[str, Any]) -> dict[str, Any]:
    time.sleep(0.001 * (row["number"] % 3))  # so that threads end out of order
    if row["number"] == 5:
        raise ValueError("five")
    return {"double": 2 * row["number"]}


@pytest.mark.parametrize("threads", [1, 4])
def test_rows_come_back_in_order_and_a_bad_one_fails_alone(threads: int) -> None:
    out = MapRows("double", double, adds=ADDS, threads=threads).run(NUMBERS)
    expected = [Outcome({"double": 2 * i}) if i != 5 else Outcome(failure=Failure("ValueError", "five")) for i in range(20)]
    assert out == expected


def test_threads_work_beside_each_other() -> None:
    together = threading.Barrier(4, timeout=10)

    def meet(row: dict[str, Any]) -> dict[str, Any]:
        together.wait()
        return {"double": row["number"]}

    assert all(outcome.failure is None for outcome in MapRows("meet", meet, adds=ADDS, threads=4).run(NUMBERS.slice(0, 4)))


def test_transient_trouble_of_one_row_is_retried_in_place() -> None:
    tries = dict[int, int]()

    def flaky(row: dict[str, Any]) -> dict[str, Any]:
        tries[row["number"]] = tries.get(row["number"], 0) + 1
        if row["number"] == 3 and tries[3] < 3:
            raise ConnectionError
        return {"double": row["number"]}

    out = MapRows("flaky", flaky, adds=ADDS, retry=Retry(3, 0.001)).run(NUMBERS)
    assert [outcome.attempts for outcome in out] == [3 if i == 3 else 1 for i in range(20)]


def test_what_stops_the_job_leaves_the_stage() -> None:
    def stop(row: dict[str, Any]) -> dict[str, Any]:
        raise JobStopped("the disk is full")

    with pytest.raises(JobStopped, match="full"):
        MapRows("stop", stop, adds=ADDS).run(NUMBERS)
