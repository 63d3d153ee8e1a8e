"""The frozen, validated copy of the manifest."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestration import plan
from orchestration.folder import JobFolder
from orchestration.job import parse
from orchestration.plan import ManifestRefused
from pipelines.pipeline import Context, Model
from tests import toy
from workers import ids

PIPELINE = toy.build(toy.ToyParams(), Context(Model("toy", "toy", "lab", {}, "r")))


def manifest(path: Path, row_ids: list[Any], numbers: list[int] | None = None, **columns: Any) -> Path:
    table = {"row_id": pa.array(row_ids, pa.string()), "number": pa.array(numbers or range(len(row_ids)), pa.int64()), **columns}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path)
    return path


def planned(folder: Path, **keys: Any) -> tuple[JobFolder, dict[str, Any]]:
    """The plan of a toy job; `manifest` is in `folder` unless given."""
    spec = parse(toy.job(folder, **{"manifest": str(folder / "manifest.parquet"), **keys}))
    job = JobFolder(str(folder / "job-000000000000"))
    return job, plan.write(spec, PIPELINE, plan.survey(spec, PIPELINE), job, 1)


def ids_of(job: JobFolder) -> list[str]:
    return job.planned(0, ["row_id"])["row_id"].to_pylist()


@pytest.fixture
def small_spools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_SPOOL_BYTES", 128)
    monkeypatch.setattr(plan, "_BATCH_ROWS", 5)


letters = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(
    rows=st.lists(st.tuples(letters, st.integers(0, 4)), min_size=1, max_size=60, unique_by=lambda row: row[0]),
    block_rows=st.integers(1, 20),
    files=st.integers(1, 3),
    spool_bytes=st.sampled_from([2**20, 256]),
)
def test_every_id_is_planned_once_and_rows_that_share_work_are_neighbours(
    rows: list[tuple[str, int]], block_rows: int, files: int, spool_bytes: int
) -> None:
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "_SPOOL_BYTES", spool_bytes)
        patch.setattr(plan, "_BATCH_ROWS", 7)
        folder = Path(place)
        for number in range(files):
            part = rows[number::files]
            manifest(folder / f"in/{number}.parquet", [i for i, _ in part], [n for _, n in part])
        job, entry = planned(folder, manifest=str(folder / "in"), resources={"block_rows": block_rows})
        table = job.planned(0)
        assert sorted(table["row_id"].to_pylist()) == sorted(i for i, _ in rows)
        assert dict(zip(table["row_id"].to_pylist(), table["number"].to_pylist(), strict=True)) == dict(rows)
        numbers = table["number"].to_pylist()
        changes = sum(a != b for a, b in pairwise(numbers))
        assert changes == len(set(numbers)) - 1
        assert (entry["rows"], entry["block_rows"], entry["files"]) == (len(rows), block_rows, job.files("plan", "gen-0"))
        sizes = [pq.ParquetFile(folder / "job-000000000000" / name).metadata for name in entry["files"]]
        groups = [m.row_group(i).num_rows for m in sizes for i in range(m.num_row_groups)]
        assert groups[:-1] == [block_rows] * (len(groups) - 1)
        assert 0 < groups[-1] <= block_rows


@pytest.mark.usefixtures("small_spools")
@pytest.mark.parametrize("how", ["neighbours", "far apart", "in two files"])
def test_double_ids_are_refused_and_named_wherever_they_are(tmp_path: Path, how: str) -> None:
    names = [f"r{i}" for i in range(30)]
    if how == "in two files":
        manifest(tmp_path / "in/a.parquet", names)
        manifest(tmp_path / "in/b.parquet", ["x", "r7"])
    else:
        manifest(tmp_path / "in/a.parquet", [*names, "r29"] if how == "neighbours" else ["r29", *names])
    with pytest.raises(ManifestRefused, match=r"row_id must be unique; these are not: r(7|29)\. "):
        planned(tmp_path, manifest=str(tmp_path / "in"))


def test_many_double_ids_are_listed_up_to_a_limit(tmp_path: Path) -> None:
    manifest(tmp_path / "manifest.parquet", [f"r{i:02}" for i in range(30)] * 2)
    with pytest.raises(ManifestRefused, match=r"r00, r01, .* and 10 more"):
        planned(tmp_path)


def test_null_and_over_long_ids_are_refused_and_counted(tmp_path: Path) -> None:
    manifest(tmp_path / "manifest.parquet", ["a", None, "b", None])
    with pytest.raises(ManifestRefused, match="2 rows have no row_id"):
        planned(tmp_path)
    manifest(tmp_path / "manifest.parquet", ["a", "写" * 30, "b" * 300])
    with pytest.raises(ManifestRefused, match="2 row ids are too long"):
        planned(tmp_path)


def test_ids_of_any_letters_are_planned_as_they_are(tmp_path: Path) -> None:
    odd = ["a/b", "../up", 'say "x"', "it's", "zwei\nZeilen", "写真", " ", "", "%2F", "a=b", "\x00", "🙂"]
    manifest(tmp_path / "manifest.parquet", odd)
    assert sorted(ids_of(planned(tmp_path)[0])) == sorted(odd)


@given(sample=st.floats(0.05, 1), limit=st.none() | st.integers(1, 50), wanted=st.sets(st.integers(0, 3), min_size=1))
def test_where_sample_and_limit_choose_rows_whatever_the_batches(sample: float, limit: int | None, wanted: set[int]) -> None:
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        folder = Path(place)
        row_ids = [f"r{i}" for i in range(40)]
        manifest(folder / "manifest.parquet", row_ids, [i % 4 for i in range(40)])
        hashes = dict(zip(row_ids, ids.hashes(row_ids), strict=True))
        chosen = [r for i, r in enumerate(row_ids) if i % 4 in wanted and int(hashes[r]) < sample * 2**64]
        for batch_rows in (7, 1000):
            patch.setattr(plan, "_BATCH_ROWS", batch_rows)
            keys = {"where": {"number": sorted(wanted)}, "sample": sample, "limit": limit}
            if chosen:
                assert sorted(ids_of(planned(folder, **keys)[0])) == sorted(chosen[:limit])
            else:
                with pytest.raises(ManifestRefused, match="holds no row to run \\(rows in the files: 40"):
                    planned(folder, **keys)


def test_a_filter_may_name_one_value_several_or_none(tmp_path: Path) -> None:
    manifest(tmp_path / "manifest.parquet", ["a", "b", "c"], subject=pa.array(["x", None, "y"]).dictionary_encode())
    assert ids_of(planned(tmp_path, where={"subject": "x"})[0]) == ["a"]
    assert sorted(ids_of(planned(tmp_path, where={"subject": ["x", "y"]})[0])) == ["a", "c"]
    assert ids_of(planned(tmp_path, where={"subject": None})[0]) == ["b"]
    with pytest.raises(ManifestRefused, match="the manifest has no column subjct; it has row_id"):
        planned(tmp_path, where={"subjct": "x"})
    with pytest.raises(ManifestRefused, match="where: number is int64, and 'x' does not fit"):
        planned(tmp_path, where={"number": "x"})


def test_a_manifest_may_be_a_file_a_folder_or_a_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest(tmp_path / "in/deep/a.parquet", ["a"])
    manifest(tmp_path / "in/b.parquet", ["b"])
    (tmp_path / "in/notes.txt").write_text("no Parquet")
    manifest(tmp_path / "in [1]?.parquet", ["c"])
    monkeypatch.chdir(tmp_path)
    for given_as, found in (
        ("in", ["a", "b"]),
        ("in/", ["a", "b"]),
        ("in/b.parquet", ["b"]),
        ("in/*.parquet", ["b"]),
        ("in/**/*.parquet", ["a", "b"]),
        ("in [1]?.parquet", ["c"]),
        ((tmp_path / "in").as_uri(), ["a", "b"]),
    ):
        assert sorted(ids_of(planned(tmp_path, manifest=given_as)[0])) == found
    for nothing in ("nowhere", "in/*.csv", "in/deep/none.parquet"):
        with pytest.raises(ManifestRefused, match=r"no Parquet file at .*calotype manifest"):
            planned(tmp_path, manifest=nothing)


def test_large_dictionary_and_narrow_columns_are_taken_as_what_they_mean(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    first = {"row_id": pa.array(["a"], pa.large_string()), "number": pa.array([1], pa.int8()), "extra": pa.array(["x"]).dictionary_encode()}
    second = {
        "row_id": pa.array(["b"]).dictionary_encode(),
        "number": pa.array([2], pa.int64()),
        "extra": pa.array(["y"], pa.large_string()),
    }
    pq.write_table(pa.table(first), tmp_path / "in/1.parquet")
    pq.write_table(pa.table(second), tmp_path / "in/2.parquet")
    table = planned(tmp_path, manifest=str(tmp_path / "in"))[0].planned(0)
    assert (table.schema.field("row_id").type, table.schema.field("number").type) == (pa.string(), pa.int64())
    assert table.sort_by("row_id").to_pylist() == [{"row_id": "a", "number": 1, "extra": "x"}, {"row_id": "b", "number": 2, "extra": "y"}]


def test_columns_that_one_file_lacks_are_null_there(tmp_path: Path) -> None:
    manifest(tmp_path / "in/1.parquet", ["a"], action=pa.array(["ok"]))
    manifest(tmp_path / "in/2.parquet", ["b"])
    table = planned(tmp_path, manifest=str(tmp_path / "in"))[0].planned(0).sort_by("row_id")
    assert table["action"].to_pylist() == ["ok", None]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"row_id": ["a"]}, r"column number \(int64\) is missing"),
        ({"row_id": ["a"], "number": pa.array([[1]])}, "column number is list<.*>, needed is int64"),
        ({"row_id": ["a"], "number": ["seven"]}, "column number holds what is no int64"),
    ],
)
def test_a_column_that_is_missing_or_of_another_kind_is_named(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "manifest.parquet")
    with pytest.raises(ManifestRefused, match=message):
        planned(tmp_path)


def test_files_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    manifest(tmp_path / "in/1.parquet", ["a"], extra=pa.array([1]))
    manifest(tmp_path / "in/2.parquet", ["b"], extra=pa.array(["text"]))
    with pytest.raises(ManifestRefused, match=r"do not fit together: .*extra"):
        planned(tmp_path, manifest=str(tmp_path / "in"))


def test_the_same_rows_have_the_same_digest_wherever_they_lie(tmp_path: Path) -> None:
    def digest(path: Path) -> str:
        return plan.survey(parse(toy.job(tmp_path, manifest=str(path))), PIPELINE).digest

    one = digest(manifest(tmp_path / "one/m.parquet", ["a", "b"]))
    assert digest(manifest(tmp_path / "two/other.parquet", ["a", "b"])) == one
    assert digest(manifest(tmp_path / "three/m.parquet", ["a", "c"])) != one


def test_a_plan_that_was_cut_off_is_written_anew(tmp_path: Path) -> None:
    manifest(tmp_path / "manifest.parquet", ["a", "b"])
    stale = tmp_path / "job-000000000000/plan/gen-0/part-00009.parquet"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"half a file")
    assert sorted(ids_of(planned(tmp_path)[0])) == ["a", "b"]


@example(rows=1, replicas=1, row_bytes=5e-324)  # its inverse is infinite
@given(rows=st.integers(1, 10**7), replicas=st.integers(1, 64), row_bytes=st.floats(0, 10**9))
def test_blocks_are_bounded_in_rows_and_bytes_and_feed_every_replica(rows: int, replicas: int, row_bytes: float) -> None:
    block = plan.choose_block_rows(rows, replicas, "auto", row_bytes)
    assert 1 <= block <= 512
    assert block == 1 or block * row_bytes <= 64 * 2**20
    if rows >= 32 * replicas:
        assert math.ceil(rows / block) >= 4 * replicas * 0.75
    assert plan.choose_block_rows(rows, replicas, 37, row_bytes) == 37


@pytest.mark.usefixtures("small_spools")
@pytest.mark.parametrize("groups", [{}, {"group": pa.nulls(40, pa.string())}], ids=["no such column", "all null"])
def test_rows_that_belong_to_nobody_are_never_sorted_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: dict[str, Any]
) -> None:
    sizes, as_before = list[int](), plan._sorted
    monkeypatch.setattr(plan, "_sorted", lambda table, by: sizes.append(len(table)) or as_before(table, by))
    spec = parse(toy.job(tmp_path, manifest=str(manifest(tmp_path / "m.parquet", [f"r{i}" for i in range(40)], **groups))))
    job, pipeline = JobFolder(str(tmp_path / "job-000000000000")), replace(PIPELINE, sort_by=["group"])
    plan.write(spec, pipeline, plan.survey(spec, pipeline), job, 1)
    assert sum(sizes) == 40
    assert max(sizes) < 40
