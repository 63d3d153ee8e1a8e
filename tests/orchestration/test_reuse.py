"""`reuse`: rows that were ok in an earlier job under the same content, parameters, model and code are not run again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestration.check import check
from orchestration.finalize import verify
from orchestration.folder import REUSED, JobFolder
from orchestration.inspect import describe
from orchestration.job import JobFileError, parse
from orchestration.reuse import base_name, contents
from orchestration.run import Summary, run
from orchestration.schedule.folders import reused_by
from tests import toy


def night(folder: Path, hour: int, rows: list[tuple[str, int, str]], **keys: Any) -> Summary:
    """A job of one night over rows (row_id, number, action)."""
    names = ["row_id", "number", "action"]
    pq.write_table(pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows]), folder / "manifest.parquet")
    content = toy.job(folder, **{"name": f"nightly-20261124T{hour:02}0000Z", "schedule": "nightly", "reuse": "last", **keys})
    return run(parse(content))


def good(*numbers: int) -> list[tuple[str, int, str]]:
    return [(f"row-{number}", number, "ok") for number in numbers]


def executed(folder: Path) -> list[str]:
    return sorted(line for file in folder.iterdir() for line in file.read_text().split())


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    (tmp_path / "journal").mkdir()
    return tmp_path / "journal"


def test_only_rows_that_are_new_or_failed_or_changed_run_again(tmp_path: Path, journal: Path) -> None:
    params = {"journal": str(journal)}
    first = night(tmp_path, 1, [*good(1, 2, 3), ("bad", 4, "raise")], params=params)
    assert (first.ok, first.failed, first.reused) == (3, 1, 0)
    for file in journal.iterdir():
        file.unlink()
    second = night(tmp_path, 2, [*good(1, 2), ("row-3", 30, "ok"), ("bad", 4, "raise"), *good(5)], params=params)
    assert (second.planned, second.ok, second.failed, second.reused) == (3, 2, 1, 2)
    assert set(executed(journal)) == {"row-3", "bad", "row-5"}
    folder = JobFolder(second.folder)
    assert folder.reused() == {first.folder: ["row-1", "row-2"]}
    assert reused_by(folder) == {first.folder}
    assert verify(folder) == []
    assert (describe(folder)["planned"], describe(folder)["reused"]) == (3, 2)
    third = night(tmp_path, 3, [*good(1, 2), ("row-3", 30, "ok"), *good(5)], params=params)
    assert (third.planned, third.reused, third.exit_code) == (0, 4, 0)  # nothing left to do
    places = JobFolder(third.folder).reused()
    assert {uri: sorted(rows) for uri, rows in places.items()} == {first.folder: ["row-1", "row-2"], second.folder: ["row-3", "row-5"]}
    assert verify(JobFolder(third.folder)) == []
    assert night(tmp_path, 3, [*good(1, 2), ("row-3", 30, "ok"), *good(5)], params=params).executed == 0


@pytest.mark.parametrize("change", [{"params": {"factor": 3}}, {"seed": 1}, {"media": "columns"}])
def test_under_other_settings_nothing_is_reused_and_job_json_says_why(tmp_path: Path, change: dict[str, Any]) -> None:
    night(tmp_path, 1, good(1, 2))
    second = night(tmp_path, 2, good(1, 2), **change)
    assert (second.ok, second.reused) == (2, 0)
    assert JobFolder(second.folder).read_json("job.json")["reuse"]["differs"]


def test_last_is_the_newest_finished_job_of_the_same_name_and_kind(tmp_path: Path) -> None:
    night(tmp_path, 1, good(1), name="other-20261124T010000Z")
    assert night(tmp_path, 2, good(1)).reused == 0
    assert night(tmp_path, 3, good(1)).reused == 1
    assert night(tmp_path, 4, good(1), name="nightly-2026-11-25").reused == 1
    assert base_name("a-20261124T020000Z") == base_name("a-2026-11-24") == base_name("a") == "a"
    assert base_name("a-2026") == "a-2026"


def test_a_named_folder_must_be_a_finished_job(tmp_path: Path) -> None:
    first = night(tmp_path, 1, good(1, 2), reuse=None)
    second = night(tmp_path, 2, good(1, 2, 3), name="elsewhere", reuse=first.folder)
    assert (second.ok, second.reused) == (1, 2)
    with pytest.raises(JobFileError, match="no finished job"):
        night(tmp_path, 3, good(1), name="third", reuse=str(tmp_path))


def test_filters_come_first_and_double_ids_are_found_among_reused_rows_too(tmp_path: Path) -> None:
    night(tmp_path, 1, good(1, 2, 3))
    second = night(tmp_path, 2, good(1, 2, 3, 4), where={"row_id": ["row-1", "row-4"]})
    assert (second.planned, second.reused) == (1, 1)
    with pytest.raises(ValueError, match="must be unique; these are not: row-1"):
        night(tmp_path, 3, good(1, 1))


def test_verify_says_when_a_reused_result_is_gone_or_its_list_was_changed(tmp_path: Path) -> None:
    first, second = night(tmp_path, 1, good(1, 2)), night(tmp_path, 2, good(1, 2, 3))
    folder = JobFolder(second.folder)
    listed = Path(second.folder) / REUSED
    table = pq.read_table(listed)
    pq.write_table(pa.concat_tables([table, pa.table({"row_id": ["row-9"], "folder": [first.folder]})]), listed)
    problems = verify(folder)
    assert any("reused.parquet has been changed" in p for p in problems)
    assert any("row-9" in p for p in problems)
    shutil.rmtree(first.folder)
    assert any("are gone" in p for p in verify(folder))


def test_a_job_killed_before_its_plan_stood_decides_anew_what_it_reuses(tmp_path: Path) -> None:
    night(tmp_path, 1, good(1))
    second = night(tmp_path, 2, good(1, 2))
    (Path(second.folder) / "job.json").unlink()
    (Path(second.folder) / "_SUCCESS").unlink()
    shutil.rmtree(next((tmp_path / "out").glob("nightly-20261124T01*")))
    again = night(tmp_path, 2, good(1, 2))
    assert (again.planned, again.reused) == (2, 0)


def test_check_counts_reused_rows(tmp_path: Path) -> None:
    night(tmp_path, 1, good(1, 2))
    pq.write_table(
        pa.Table.from_pylist([{"row_id": f"row-{i}", "number": i, "action": "ok"} for i in (1, 2, 3)]), tmp_path / "manifest.parquet"
    )
    report = check(parse(toy.job(tmp_path, name="nightly", reuse="last")))
    assert (report.rows, report.reused) == (1, 2)
    assert any(line.startswith("reused") for line in report.lines())


def test_a_row_s_content_is_all_its_columns_but_not_their_order_nor_nulls() -> None:
    table = pa.table({"row_id": ["a", "b"], "image": [b"x", None], "boxes": [[[0.5]], None]})
    other = pa.table({"boxes": [[[0.5]], None], "row_id": ["a", "b"], "image": [b"x", None], "note": ["n", "n"], "more": [None, None]})
    columns = ["row_id", "image", "boxes", "more"]
    assert (contents(table, columns) == contents(other, columns)).all()
    changed = table.set_column(1, "image", pa.array([b"y", None]))
    assert (contents(table, columns) == contents(changed, columns)).tolist() == [False, True]
    assert contents(table.slice(0, 0), columns).dtype == np.uint64
