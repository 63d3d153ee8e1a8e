"""What stands around every stage: every row back once, suspects alone, the lease checked, the contract columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers import ids
from workers.guard import CONTRACT, Guarded, LeaseLost, Post, committed, left, with_contract
from workers.rows import Failure, Outcome
from workers.stage import Stage


class Recorder(Stage):
    """Notes which rows it is handed together; answers by `answer`."""

    name, micro_batch, adds = "recorder", 3, pa.schema([("out", pa.int64())])

    def __init__(self, answer: Any = lambda row: Outcome({"out": row["number"]}, model_ms=1.0)) -> None:
        self.answer, self.groups = answer, list[list[str]]()

    def run(self, table: pa.Table) -> list[Outcome]:
        self.groups.append(table["row_id"].to_pylist())
        return [self.answer(row) for row in table.to_pylist()]


def rows(count: int) -> pa.Table:
    return pa.table({"row_id": [f"r{i}" for i in range(count)], "number": list(range(count))})


def post(folder: Path, driver: str = "me") -> Post:
    (folder / "lease.json").write_text(json.dumps({"owner": "me"}))
    return Post(str(folder), driver)


def test_every_row_comes_back_once_in_order_with_the_contract_columns(tmp_path: Path) -> None:
    stage = Recorder(lambda row: Outcome(failure=Failure("ValueError", "odd")) if row["number"] == 4 else Outcome({"out": row["number"]}))
    out = Guarded(stage, post(tmp_path))(rows(7))
    assert stage.groups == [["r0", "r1", "r2"], ["r3", "r4", "r5"], ["r6"]]
    assert out["row_id"].to_pylist() == [f"r{i}" for i in range(7)]
    assert out["out"].to_pylist() == [0, 1, 2, 3, None, 5, 6]
    assert out["status"].to_pylist() == ["ok"] * 4 + ["failed"] + ["ok"] * 2
    failed = out.to_pylist()[4]
    assert (failed["error_type"], failed["error"], failed["stage"]) == ("ValueError", "odd", "recorder")


def test_a_row_that_failed_earlier_passes_through_untouched(tmp_path: Path) -> None:
    first = Recorder(lambda row: Outcome(failure=Failure("ValueError", "first")) if row["number"] == 1 else Outcome({"out": 0}))
    second = Recorder()
    at = post(tmp_path)
    out = Guarded(second, at)(Guarded(first, at)(rows(3)))
    assert second.groups == [["r0", "r2"]]
    assert out["error"].to_pylist() == [None, "first", None]
    assert out["out"].to_pylist() == [0, None, 2]


def test_rows_that_killed_a_process_run_alone_or_no_more(tmp_path: Path) -> None:
    at = post(tmp_path)
    journal = tmp_path / "attempts/gen-0"
    journal.mkdir(parents=True)
    for number, row_ids in enumerate((["r1", "r2"], ["r2"])):
        entry = {"ids": row_ids, "driver": "me", "stage": "elsewhere", "separate_process": True}
        (journal / f"{number}.json").write_text(json.dumps(entry))
    stage = Recorder()
    out = Guarded(stage, at)(rows(4))
    assert stage.groups == [["r0", "r3"], ["r1"]]
    assert out["status"].to_pylist() == ["ok", "ok", "failed", "ok"]
    assert (out["error_type"][2].as_py(), out["stage"][2].as_py(), out["attempts"][2].as_py()) == ("ProcessDied", "elsewhere", 2)


@pytest.mark.parametrize("lease", [None, {"owner": "someone else"}])
def test_a_process_that_lost_its_lease_hands_nothing_on(tmp_path: Path, lease: dict[str, str] | None) -> None:
    stage = Recorder()
    guarded = Guarded(stage, post(tmp_path))
    if lease is None:
        (tmp_path / "lease.json").unlink()
    else:
        (tmp_path / "lease.json").write_text(json.dumps(lease))
    with pytest.raises(LeaseLost):
        guarded(rows(2))
    assert stage.groups == []


def test_a_lease_lost_while_the_stage_works_is_noticed_before_its_rows_are_handed_on(tmp_path: Path) -> None:
    def lose(row: dict[str, Any]) -> Outcome:
        (tmp_path / "lease.json").write_text(json.dumps({"owner": "someone else"}))
        return Outcome({"out": 1})

    with pytest.raises(LeaseLost):
        Guarded(Recorder(lose), post(tmp_path))(rows(1))


def test_a_value_that_its_column_cannot_hold_costs_only_its_row(tmp_path: Path) -> None:
    stage = Recorder(lambda row: Outcome({"out": "text" if row["number"] == 1 else row["number"]}))
    out = Guarded(stage, post(tmp_path))(rows(3))
    assert out["out"].to_pylist() == [0, None, 2]
    assert out["status"].to_pylist() == ["ok", "failed", "ok"]
    assert "text" in out["error"][1].as_py()


@given(done=st.sets(st.integers(0, 30)), count=st.integers(0, 30))
def test_left_keeps_exactly_the_rows_that_are_not_done(done: set[int], count: int) -> None:
    hashes = np.sort(ids.hashes([f"r{i}" for i in done]))
    assert left(rows(count), hashes)["row_id"].to_pylist() == [f"r{i}" for i in range(count) if i not in done]


def test_committed_rows_have_the_schema_also_where_every_row_failed() -> None:
    schema = pa.schema([("row_id", pa.string()), ("out", pa.int64()), *CONTRACT])
    table = committed(rows(2), schema)
    assert table.schema == schema
    assert table["out"].to_pylist() == [None, None]
    assert with_contract(with_contract(rows(2))).schema == with_contract(rows(2)).schema
