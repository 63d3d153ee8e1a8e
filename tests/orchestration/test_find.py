"""Rows of a job by what they hold."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestration.find import find_rows
from orchestration.job import JobFileError
from orchestration.plan import REUSED
from tests.orchestration.review.folders import job_folder, row


def test_a_row_is_found_by_an_input_and_says_where_its_file_is(tmp_path: Path) -> None:
    folder = job_folder(tmp_path, [row("a", person_id="anna"), row("b", person_id="bert")])
    (found,) = find_rows(folder, {"person_id": "bert"})
    assert (found["row_id"], found["status"]) == ("b", "ok")
    assert Path(found["restored_uri"]).is_file()


def test_a_row_is_found_by_an_output_and_shows_what_is_asked_for(tmp_path: Path) -> None:
    rows = [row("a"), row("b", status="failed", error_type="ImageBroken", error="cut off", stage="decode")]
    (found,) = find_rows(job_folder(tmp_path, rows), {"status": "failed"}, ["error"])
    assert (found["row_id"], found["error"]) == ("b", "cut off")


def test_reused_rows_are_found_where_they_are(tmp_path: Path) -> None:
    last = job_folder(tmp_path / "last", [row("kept", person_id="anna"), row("other", person_id="anna")])
    tonight = job_folder(tmp_path / "tonight", [row("new", person_id="anna")])
    pq.write_table(pa.table({"row_id": ["kept"], "folder": [last.uri]}), tonight.join(REUSED))
    found = find_rows(tonight, {"person_id": "anna"})
    assert [r["row_id"] for r in found] == ["new", "kept"]
    assert str(tmp_path / "last") in found[1]["restored_uri"]
    assert len(find_rows(tonight, {"person_id": "anna"}, limit=1)) == 1


def test_an_unknown_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(JobFileError, match=r"no column concpt; it has .*person_id"):
        find_rows(job_folder(tmp_path, [row("a")]), {"concpt": "x"})
