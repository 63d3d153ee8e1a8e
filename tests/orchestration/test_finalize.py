"""Sealing a folder, and checking a sealed one."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration import fingerprint, ledger
from orchestration.finalize import Incomplete, seal, verify
from orchestration.folder import JobFolder, block_name

PARTS = {"kind": "toy"}


def planned(folder: Path, *generations: list[str]) -> JobFolder:
    """An unfinished job folder with a plan and no data."""
    number = fingerprint.digest(PARTS)
    job = JobFolder(str(folder / f"toy-{number[:12]}"))
    for generation, row_ids in enumerate(generations):
        path = Path(job.uri) / f"plan/gen-{generation}"
        path.mkdir(parents=True)
        pq.write_table(pa.table({"row_id": pa.array(row_ids, pa.string())}), path / "part-00000.parquet")
    job.write_json("job.json", {"parts": PARTS, "fingerprint": number, "plans": [{}] * len(generations)})
    return job


def commit(job: JobFolder, ok: list[str], failed: list[str] | None = None, generation: int = 0, **columns: list[Any]) -> None:
    failed = failed or []
    status = ["ok"] * len(ok) + ["failed"] * len(failed)
    ledger.BlockWriter(job, generation).commit(pa.table({"row_id": [*ok, *failed], "status": status, **columns}))


def test_a_complete_folder_is_sealed_counted_and_verified(tmp_path: Path) -> None:
    job = planned(tmp_path, ["a", "b", "c"])
    commit(job, ["a"], ["b"])
    commit(job, ["c"])
    tally = seal(job)
    assert (tally.planned, tally.ok, tally.failed, tally.void) == (3, 2, 1, 0)
    assert verify(job) == []
    manifest = Path(job.uri, "_manifest.json").read_bytes()
    assert Path(job.uri, "_SUCCESS").read_text().strip() == hashlib.sha256(manifest).hexdigest()
    listed = json.loads(manifest)["generations"][0]
    assert sum(f["rows"] for f in listed["files"]) == 3
    assert seal(job) == tally


@pytest.mark.parametrize(
    ("ok", "message"), [(["a"], "1 planned rows uncommitted and 0"), (["a", "b", "x"], "0 planned .* 1 rows unplanned")]
)
def test_a_folder_with_missing_or_unplanned_rows_is_not_sealed(tmp_path: Path, ok: list[str], message: str) -> None:
    job = planned(tmp_path, ["a", "b"])
    commit(job, ok)
    with pytest.raises(Incomplete, match=message):
        seal(job)
    assert not job.finished
    assert verify(job) == [f"{job.uri} is not finished: run the same command again"]


def test_uncommitted_data_is_no_result(tmp_path: Path) -> None:
    job = planned(tmp_path, ["a", "b"])
    commit(job, ["a"])
    commit(job, ["b"])
    Path(job.join(job.ledger_files(0)[0])).unlink()
    with pytest.raises(Incomplete):
        seal(job)


@settings(max_examples=25)
@given(copies=st.lists(st.integers(1, 3), min_size=1, max_size=8))
def test_of_rows_committed_several_times_one_copy_counts_and_the_others_are_void(copies: list[int]) -> None:
    with tempfile.TemporaryDirectory() as place:
        row_ids = [f"r{i}" for i in range(len(copies))]
        job = planned(Path(place), row_ids)
        for turn in range(max(copies)):
            block = [r for r, n in zip(row_ids, copies, strict=True) if n > turn]
            commit(job, block, turn=[turn] * len(block))
        tally = seal(job)
        assert (tally.planned, tally.ok, tally.void) == (len(row_ids), len(row_ids), sum(copies) - len(copies))
        assert verify(job) == []
        assert sorted(job.results()["row_id"].to_pylist()) == row_ids
        void = [i for entry in job.read_json("_manifest.json")["void"] for i in entry["row_ids"]]
        assert sorted(void) == sorted(r for r, n in zip(row_ids, copies, strict=True) for _ in range(n - 1))


def test_the_copy_that_was_committed_first_holds_also_where_it_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = planned(tmp_path, ["a", "b"])
    commit(job, ["b"], ["a"], turn=[0, 0])
    commit(job, ["a"], turn=[1])
    first = block_name(next(n for n in job.files("data") if "failed" in n))
    info = type(job.fs).info

    def moment(fs: Any, path: str, **options: Any) -> dict[str, Any]:
        return {**info(fs, path, **options), "created": 1.0 if block_name(str(path)) == first else 2.0}

    monkeypatch.setattr(type(job.fs), "info", moment)
    seal(job)
    monkeypatch.undo()
    assert job.results(["turn"]).sort_by("row_id")["turn"].to_pylist() == [0, 0]
    assert job.results().sort_by("row_id")["status"].to_pylist() == ["failed", "ok"]


def test_a_row_s_result_is_its_last_generation_s(tmp_path: Path) -> None:
    job = planned(tmp_path, ["a", "b", "c"], ["a", "b"], ["b"])
    commit(job, ["c"], ["a", "b"], 0, turn=[0, 0, 0])
    commit(job, ["a"], ["b"], 1, turn=[1, 1])
    commit(job, ["b"], [], 2, turn=[2])
    tally = seal(job)
    assert (tally.planned, tally.ok, tally.failed) == (3, 3, 0)
    results = job.results(["turn"]).sort_by("row_id")
    assert results["turn"].to_pylist() == [1, 2, 0]
    assert results["generation"].to_pylist() == [1, 2, 0]
    assert verify(job) == []


def first(job: JobFolder, part: str) -> Path:
    return Path(job.join(job.files(part)[0]))


def edit(job: JobFolder, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    content = job.read_json(name)
    change(content)
    job.write_json(name, content)


def reseal(job: JobFolder) -> None:
    Path(job.uri, "_SUCCESS").write_text(hashlib.sha256(Path(job.uri, "_manifest.json").read_bytes()).hexdigest())


DAMAGES: dict[str, tuple[Callable[[JobFolder], object], str]] = {
    "a data file is gone": (lambda job: first(job, "data").unlink(), "is missing"),
    "a data file has one byte more": (
        lambda job: first(job, "data").write_bytes(first(job, "data").read_bytes() + b"x"),
        "has been changed",
    ),
    "a plan file is changed": (lambda job: first(job, "plan").write_bytes(b"x"), "has been changed"),
    "the plan is gone": (lambda job: shutil.rmtree(job.join("plan")), "is missing"),
    "the manifest is edited": (lambda job: edit(job, "_manifest.json", lambda m: m.update(ok=1)), "not the one that was sealed"),
    "the manifest is edited and sealed again": (
        lambda job: (edit(job, "_manifest.json", lambda m: m.update(ok=1)), reseal(job)),
        "counts 1 ok and 1 failed; the data holds 2 and 1",
    ),
    "a file is left out of the manifest": (
        lambda job: (edit(job, "_manifest.json", lambda m: m["generations"][0]["files"].pop()), reseal(job)),
        "planned rows are missing",
    ),
    "a file is listed twice": (
        lambda job: (edit(job, "_manifest.json", lambda m: m["generations"][0]["files"].extend(m["generations"][0]["files"])), reseal(job)),
        "3 rows are there twice",
    ),
    "the parameters are edited": (lambda job: edit(job, "job.json", lambda j: j["parts"].update(kind="x")), "does not match the folder's"),
    "the folder is another job's": (
        lambda job: edit(job, "job.json", lambda j: j.update(fingerprint="0" * 64)),
        "does not match the folder's",
    ),
    "a retry was planned and not run": (lambda job: edit(job, "job.json", lambda j: j["plans"].append({})), "a generation .* is missing"),
    "job.json is gone": (lambda job: Path(job.uri, "job.json").unlink(), "job.json is missing"),
    "the seal is gone": (lambda job: Path(job.uri, "_SUCCESS").unlink(), "is not finished"),
    "a picture is gone": (lambda job: Path(job.uri, "artifacts/a.jpg").unlink(), "artifacts/a.jpg is missing"),
    "a picture is changed": (lambda job: Path(job.uri, "artifacts/a.jpg").write_bytes(b"other"), "artifacts/a.jpg has been changed"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_says_what_is_wrong(tmp_path: Path, damage: str) -> None:
    job = planned(tmp_path, ["a", "b", "c"])
    (Path(job.uri) / "artifacts").mkdir()
    Path(job.uri, "artifacts/a.jpg").write_bytes(b"a picture")
    digest = hashlib.sha256(b"a picture").hexdigest()
    commit(job, ["a", "c"], ["b"], picture_uri=["artifacts/a.jpg", None, None], picture_sha256=[digest, None, None])
    seal(job)
    assert verify(job) == []
    harm, message = DAMAGES[damage]
    harm(job)
    problems = verify(job)
    assert re.search(message, "\n".join(problems))
