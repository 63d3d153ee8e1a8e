"""A job from its file to its finished folder, on the inline engine."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration import finalize, plan
from orchestration import run as run_module
from orchestration.engines import inline
from orchestration.finalize import verify
from orchestration.folder import JobFolder
from orchestration.job import JobFileError, parse
from orchestration.plan import ManifestRefused
from orchestration.progress import Point
from orchestration.run import Stalled, choose_replicas, prepare, reopen, retry, run
from pipelines import KINDS
from tests import toy


class Killed(BaseException):
    """Stands for the end of the process at this point."""


def cut(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, after: bool = False) -> None:
    """The process ends before (or right after) this call."""
    real = getattr(owner, name)

    def gone(*arguments: Any, **options: Any) -> None:
        if after:
            real(*arguments, **options)
        raise Killed(name)

    monkeypatch.setattr(owner, name, gone)


def nothing_lost_nothing_twice(uri: str, rows: int) -> JobFolder:
    folder = JobFolder(uri)
    assert verify(folder) == []
    assert sorted(folder.results(["row_id"])["row_id"].to_pylist()) == [f"row-{i:04}" for i in range(rows)]
    return folder


def failed(folder: JobFolder) -> list[str]:
    results = folder.results(["row_id"])
    return sorted(results.filter(pc.equal(results["status"], "failed"))["row_id"].to_pylist())


@pytest.mark.parametrize(
    ("owner", "name", "after"),
    [
        (plan, "_write_parts", False),
        (plan, "_write_parts", True),
        (plan, "write", True),  # the plan stands, job.json does not
        (run_module, "_begin", True),  # job.json stands, nothing has run
        (inline, "run", False),
        (inline, "run", True),  # all is committed, nothing sealed
        (finalize, "seal", False),
        (finalize, "seal", True),  # sealed, not tidied, no page
        (run_module, "write_review", False),
    ],
)
def test_a_job_cut_off_at_any_point_is_finished_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, after: bool
) -> None:
    spec = parse(toy.job(tmp_path, rows=12, actions={3: "raise"}))
    with monkeypatch.context() as patch:
        cut(patch, owner, name, after=after)
        with pytest.raises(Killed):
            run(spec)
    summary = run(spec)
    assert (summary.ok, summary.failed, summary.exit_code) == (11, 1, 2)
    nothing_lost_nothing_twice(summary.folder, 12)
    assert run(spec).executed == 0
    assert len(list(Path(summary.folder).glob("plan/gen-*"))) == 1


@pytest.mark.parametrize("go_on", [run, retry])
@pytest.mark.parametrize(
    ("owner", "name", "after"),
    [
        (plan, "_write_parts", True),  # the next plan stands, job.json does not name it
        (plan, "write_retry", True),
        (run_module, "_drive", False),  # job.json names it; the old seal is still there
        (inline, "run", False),
        (finalize, "seal", False),
        (finalize, "seal", True),
    ],
)
def test_a_retry_cut_off_at_any_point_loses_no_row_and_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, after: bool, go_on: Any
) -> None:
    spec = parse(toy.job(tmp_path, rows=12, actions={3: "raise", 5: "missing"}))
    folder = JobFolder(run(spec).folder)
    with monkeypatch.context() as patch:
        cut(patch, owner, name, after=after)
        with pytest.raises(Killed):
            retry(folder, error_type="ValueError")
    summary = run(spec) if go_on is run else retry(folder, error_type=None)
    assert (summary.ok, summary.failed) == (10, 2)
    nothing_lost_nothing_twice(summary.folder, 12)
    assert failed(folder) == ["row-0003", "row-0005"]
    assert run(spec).executed == 0


def test_a_retry_that_helps_changes_the_result_and_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = parse(toy.job(tmp_path, rows=12, actions={3: "missing", 5: "raise"}))
    folder = JobFolder(run(spec).folder)
    monkeypatch.setattr(toy, "read", lambda row: {"text": "found"})
    summary = retry(folder, error_type="FileNotFoundError")
    assert (summary.executed, summary.ok, summary.failed, summary.exit_code) == (1, 11, 1, 2)
    nothing_lost_nothing_twice(summary.folder, 12)
    row = folder.results().filter(pc.equal(folder.results()["row_id"], "row-0003")).to_pylist()[0]
    assert (row["status"], row["text"], row["product"], row["generation"]) == ("ok", "found", 6, 1)


def test_two_retries_given_at_once_become_two_generations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = JobFolder(run(parse(toy.job(tmp_path, rows=8, actions={3: "raise"}))).folder)

    def meanwhile(*arguments: Any) -> Any:
        monkeypatch.undo()
        assert retry(folder).generation == 1  # runs and ends between the other's first look and its lease
        return reopen(*arguments)

    monkeypatch.setattr(run_module, "reopen", meanwhile)
    assert retry(folder).generation == 2
    nothing_lost_nothing_twice(folder.uri, 8)


def test_the_old_seal_is_broken_before_a_retry_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = parse(toy.job(tmp_path, rows=8, actions={3: "raise"}))
    folder = JobFolder(run(spec).folder)
    with monkeypatch.context() as patch:
        cut(patch, run_module, "_drive")
        with pytest.raises(Killed):
            retry(folder)
    with monkeypatch.context() as patch:
        cut(patch, inline, "run")
        with pytest.raises(Killed):
            run(spec)
    assert not folder.finished


@pytest.mark.parametrize("odd", ["a/b", "../../up", 'say "x"', "it's", "zwei\nZeilen", "写真", "%2F?#&", " ", "a=b", "🙂" * 19])
def test_row_ids_of_any_letters_go_through_unchanged_and_fail_by_name(tmp_path: Path, odd: str) -> None:
    table = {"row_id": [odd, odd + "2"], "number": [1, 2], "action": ["ok", "raise"]}
    pq.write_table(pa.table(table), tmp_path / "manifest.parquet")
    summary = run(parse(toy.job(tmp_path)))
    folder = JobFolder(summary.folder)
    assert (summary.ok, summary.failed) == (1, 1)
    assert verify(folder) == []
    assert folder.results(["row_id"]).sort_by("row_id")["row_id"].to_pylist() == sorted([odd, odd + "2"])
    assert failed(folder) == [odd + "2"]
    assert retry(folder).executed == 1


def test_a_manifest_with_large_and_dictionary_columns_runs(tmp_path: Path) -> None:
    table = {
        "row_id": pa.array([f"row-{i:04}" for i in range(8)], pa.large_string()),
        "number": pa.array(range(8), pa.int32()),
        "action": pa.array(["ok", "raise"] * 4).dictionary_encode(),
        "note": pa.array(["x"] * 8).dictionary_encode(),
    }
    pq.write_table(pa.table(table), tmp_path / "manifest.parquet")
    summary = run(parse(toy.job(tmp_path, where={"note": "x"})))
    assert (summary.ok, summary.failed) == (4, 4)
    nothing_lost_nothing_twice(summary.folder, 8)


def test_a_relative_output_and_a_home_folder_give_the_same_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    content = toy.job(tmp_path, rows=4)
    first = run(parse({**content, "manifest": "manifest.parquet", "output": "out"}))
    assert first.folder.startswith(f"{tmp_path}/out/toy-")
    for output in ("~/out/", str(tmp_path / "out"), (tmp_path / "out").as_uri()):
        assert run(parse({**content, "output": output})).executed == 0


def test_an_output_folder_with_odd_letters_still_shows_an_unfinished_job(tmp_path: Path) -> None:
    content = toy.job(tmp_path, rows=4, output=str(tmp_path / "out [1]*"))
    folder = Path(run(parse(content)).folder)
    (folder / "_SUCCESS").unlink()
    with pytest.raises(run_module.FingerprintMismatch, match=r"params\.factor"):
        run(parse({**content, "params": {"factor": 3}}))
    other_name = {**content, "name": "toy-2", "params": {"factor": 3}}
    assert run(parse(other_name)).ok == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "toi"}, "kind: toi is unknown; kinds are"),
        ({"params": {"facter": 1}}, "params: facter: unknown key; did you mean `factor`?"),
        ({"params": {"factor": "many"}}, "factor: Input should be a valid integer"),
        ({"mode": "layout"}, "toy has no modes"),
        ({"kind": "restore", "model": "lab/nonsense"}, "nonsense"),
        ({"kind": "restore", "model": {"method": "instant_restore", "base": "/nowhere"}}, "model.checkpoint is missing"),
    ],
)
def test_a_job_that_cannot_run_is_refused_before_anything_is_written(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(JobFileError, match=message):
        run(parse({**toy.job(tmp_path, rows=4), **change}))
    assert not (tmp_path / "out").exists()


def test_a_job_whose_code_or_model_has_changed_is_looked_at_and_not_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = JobFolder(run(parse(toy.job(tmp_path, rows=4, actions={1: "raise"}))).folder)
    monkeypatch.setattr(run_module.fingerprint, "code_version", lambda: "tomorrow's")
    with pytest.raises(run_module.FingerprintMismatch, match="tomorrow's"):
        retry(folder)
    assert reopen(folder, folder.read_json("job.json"), strict=False).spec.kind == "toy"


def test_retry_of_what_is_no_job_or_has_no_failed_row_says_so(tmp_path: Path) -> None:
    with pytest.raises(JobFileError, match="is no job folder"):
        retry(JobFolder(str(tmp_path)))
    folder = JobFolder(run(parse(toy.job(tmp_path, rows=4))).folder)
    with pytest.raises(ManifestRefused, match="nothing to retry"):
        retry(folder)
    assert folder.finished


def test_a_job_in_which_nothing_moves_is_stopped_and_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = parse(toy.job(tmp_path, rows=8, resources={"stall_timeout_s": 0.3}))
    with monkeypatch.context() as patch:
        patch.setattr(inline, "run", lambda work, stop: stop.wait(20))
        with pytest.raises(Stalled, match=r"no row has ended for 0 s|run the same command"):
            run(spec)
    assert run(spec).ok == 8


def test_progress_is_told_from_nothing_to_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "_LOOK_EVERY_S", 0.02)
    points = list[Point]()
    summary = run(parse(toy.job(tmp_path, rows=16, params={"sleep_ms": 10})), on_progress=points.append)
    done = [p.done for p in points]
    assert done == sorted(done)
    assert done[-1] == 16
    assert len(set(done)) > 2
    assert summary.first_block_s is not None
    assert json.loads(Path(summary.folder, "progress.json").read_text())["finished"] is True


def test_a_finished_folder_holds_no_leftovers_and_the_settings_it_ran_with(tmp_path: Path) -> None:
    summary = run(parse(toy.job(tmp_path, rows=8)))
    folder = Path(summary.folder)
    assert not (folder / "attempts").exists()
    assert not (folder / "lease.json").exists()
    assert not list(folder.rglob("*.tmp"))
    record = json.loads((folder / "job.json").read_text())
    assert record["parts"]["params"]["factor"] == 2
    assert (record["attempts"][0]["pid"], record["attempts"][0]["engine"]) == (os.getpid(), "inline")
    assert folder.name == f"toy-{record['fingerprint'][:12]}"


def test_blocks_batches_and_engine_settings_change_no_result_and_no_folder(tmp_path: Path) -> None:
    rows = {"rows": 10, "actions": {4: "raise"}}
    one = run(parse(toy.job(tmp_path, **rows, resources={"block_rows": 3})))
    other = run(parse(toy.job(tmp_path, **rows, output=str(tmp_path / "out2"), resources={"block_rows": 10, "micro_batch": 1})))
    assert Path(one.folder).name == Path(other.folder).name
    columns = ["product", "text", "error"]
    tables = [JobFolder(s.folder).results(columns).sort_by("row_id") for s in (one, other)]
    assert tables[0].equals(tables[1])


def test_preparing_reads_and_writes_nothing_of_the_output(tmp_path: Path) -> None:
    job = prepare(parse(toy.job(tmp_path, rows=4)))
    assert job.source.rows == 4
    assert not (tmp_path / "out").exists()


@given(rows=st.integers(1, 10**6), block=st.integers(1, 512), gpus=st.integers(0, 16), each=st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0]))
def test_replicas_fill_the_gpus_and_never_outnumber_the_blocks(rows: int, block: int, gpus: int, each: float) -> None:
    found = choose_replicas("auto", rows, block, gpus, each)
    assert 1 <= found <= -(-rows // block)
    assert found == 1 or found * each <= gpus
    assert choose_replicas(5, rows, block, gpus, each) == 5


def test_the_kind_registry_names_each_kind_as_itself() -> None:
    assert {name: kind.key for name, kind in KINDS.items()} == {name: name for name in KINDS}


def test_seconds_are_this_call_s_own(tmp_path: Path) -> None:
    started = time.time()
    summary = run(parse(toy.job(tmp_path, rows=4)))
    assert 0 < summary.seconds <= time.time() - started
