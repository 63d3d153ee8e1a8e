"""The dry run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.check import advise_block_rows, check
from orchestration.job import JobFileError, parse
from orchestration.plan import ManifestRefused
from tests import toy


def files(folder: Path) -> set[tuple[str, int]]:
    return {(str(p), p.stat().st_mtime_ns) for p in folder.rglob("*")}


def test_a_sound_job_is_measured_and_nothing_is_written(tmp_path: Path) -> None:
    content = toy.job(tmp_path, rows=40, params={"sleep_ms": 5}, resources={"price_per_hour": 36})
    before = files(tmp_path)
    report = check(parse(content), rows=8)
    assert files(tmp_path) == before
    assert (report.rows, report.measured_rows, report.measured_failed, report.runnable) == (40, 8, [], True)
    assert report.row_ms >= 5
    assert report.rows_per_s == pytest.approx(1000 / report.row_ms)
    assert report.seconds >= 40 * 0.005
    assert report.cost == pytest.approx(0.01 * report.seconds * report.replicas)
    assert report.folder.startswith(str(tmp_path / "out/toy-"))
    assert any("40" in line for line in report.lines())


def test_missing_and_forbidden_files_are_named(tmp_path: Path) -> None:
    there = tmp_path / "there.jpg"
    there.write_bytes(b"x")
    uris = [str(there), str(tmp_path / "gone.jpg"), "https://example.org/a.jpg", None]
    table: dict[str, Any] = {"row_id": list("abcd"), "number": [1, 2, 3, 4], "action": ["ok"] * 4, "image_uri": uris}
    table["reference_image_uris"] = [[str(there)], [str(tmp_path / "gone2.jpg")], None, []]
    pq.write_table(pa.table(table), tmp_path / "manifest.parquet")
    report = check(parse(toy.job(tmp_path)))
    assert report.looked_at == 4
    assert [m for m in report.missing if m.startswith(str(tmp_path))] == [str(tmp_path / "gone.jpg"), str(tmp_path / "gone2.jpg")]
    assert len([m for m in report.missing if "allowed_roots" in m]) == 1
    assert any("3 of 4 named files are missing" in line for line in report.lines())


def test_a_job_whose_every_measured_row_fails_is_not_runnable(tmp_path: Path) -> None:
    all_bad = check(parse(toy.job(tmp_path, rows=4, actions=dict.fromkeys(range(4), "raise"))))
    assert not all_bad.runnable
    assert "row-0000: ValueError: row-0000 is bad" in all_bad.measured_failed
    (tmp_path / "manifest.parquet").unlink()
    one_bad = check(parse(toy.job(tmp_path, rows=4, actions={1: "raise"})))
    assert one_bad.runnable
    assert len(one_bad.measured_failed) == 1


def test_what_run_would_refuse_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"row_id": ["a", "a"], "number": [1, 2]}), tmp_path / "manifest.parquet")
    with pytest.raises(ManifestRefused, match="unique"):
        check(parse(toy.job(tmp_path)))
    with pytest.raises(JobFileError, match="unknown key"):
        check(parse(toy.job(tmp_path, params={"x": 1})))


def test_unreadable_files_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    toy.write_manifest(folder / "good.parquet", 4)
    (folder / "bad.parquet").write_bytes(b"x")
    report = check(parse(toy.job(tmp_path, manifest=str(folder), on_bad_source="skip")))
    assert (report.rows, report.rejected_files) == (4, 1)


@given(rate=st.floats(0, 10**5), rows=st.integers(1, 10**7), replicas=st.integers(1, 64))
def test_advised_blocks_hold_some_seconds_of_work_and_feed_every_replica(rate: float, rows: int, replicas: int) -> None:
    block = advise_block_rows(rate, rows, replicas)
    assert 1 <= block <= 4096
    assert block <= max(8, 20 * rate)
    assert block <= -(-rows // (4 * replicas))
