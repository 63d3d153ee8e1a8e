"""Every row of the failure matrix on the inline engine, in real processes where something dies. Ray has its own file."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from orchestration import ledger
from orchestration.finalize import verify
from orchestration.folder import JobFolder
from orchestration.job import parse
from orchestration.plan import ManifestRefused
from orchestration.run import FingerprintMismatch, Summary, retry, run
from tests import toy
from tests.faults import kill


def failed_rows(folder: JobFolder) -> dict[str, str]:
    results = folder.results(["row_id", "error_type"])
    failed = results.filter(pc.equal(results["status"], "failed"))
    return dict(zip(failed["row_id"].to_pylist(), failed["error_type"].to_pylist(), strict=True))


def nothing_lost_nothing_twice(summary: Summary, rows: int) -> JobFolder:
    folder = JobFolder(summary.folder)
    assert verify(folder) == []
    ids = folder.results(["row_id"])["row_id"].to_pylist()
    assert sorted(ids) == [f"row-{i:04}" for i in range(rows)]
    return folder


def test_bad_rows_cost_only_themselves(tmp_path: Path) -> None:
    actions = {3: "raise", 7: "flaky", 9: "missing", 11: "oom", 13: "huge"}
    summary = run(parse(toy.job(tmp_path, rows=24, actions=actions)))
    folder = nothing_lost_nothing_twice(summary, 24)
    assert failed_rows(folder) == {"row-0003": "ValueError", "row-0009": "FileNotFoundError", "row-0013": "MemoryError"}
    assert (summary.ok, summary.failed, summary.exit_code) == (21, 3, 2)


def test_the_same_command_again_does_nothing(tmp_path: Path) -> None:
    spec = parse(toy.job(tmp_path, rows=12))
    assert run(spec).executed == 12
    before = sorted(p.read_bytes() for p in tmp_path.rglob("data/**/*.parquet"))
    again = run(spec)
    assert (again.executed, again.ok) == (0, 12)
    assert sorted(p.read_bytes() for p in tmp_path.rglob("data/**/*.parquet")) == before


@pytest.mark.parametrize("blocks", [0, 2, 5])
def test_a_driver_killed_after_some_blocks_is_finished_by_the_same_command(tmp_path: Path, blocks: int) -> None:
    journal = tmp_path / "journal"
    journal.mkdir()
    content = toy.job(tmp_path, rows=32, params={"sleep_ms": 20, "journal": str(journal)})
    driver = kill.start(tmp_path, content)
    kill.wait_for(lambda: kill.the_folder(tmp_path / "out") is not None and kill.committed(tmp_path / "out") >= blocks, driver)
    kill.kill(driver)
    summary = run(parse(content))
    nothing_lost_nothing_twice(summary, 32)
    assert summary.executed <= 32 - 4 * blocks
    times = Counter(kill.executed(journal))
    assert max(times.values()) <= 2
    assert sum(n > 1 for n in times.values()) <= 4


def test_a_row_that_kills_its_process_costs_only_itself(tmp_path: Path) -> None:
    content = toy.job(tmp_path, rows=12, actions={5: "die"})
    codes = []
    for _ in range(3):  # inline, the row kills the driver: in company, then alone, then it is known
        driver = kill.start(tmp_path, content)
        driver.communicate(timeout=60)
        codes.append(driver.returncode)
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 2]
    folder = nothing_lost_nothing_twice(run(parse(content)), 12)
    assert failed_rows(folder) == {"row-0005": "ProcessDied"}
    assert folder.results(["stage"]).filter(pc.equal(folder.results()["status"], "failed"))["stage"].to_pylist() == ["model"]


def test_a_row_that_hangs_is_killed_and_costs_only_itself(tmp_path: Path) -> None:
    content = toy.job(tmp_path, rows=8, actions={2: "hang"}, resources={"row_timeout_s": 0.5})
    codes = []
    for _ in range(3):
        driver = kill.start(tmp_path, content)
        driver.communicate(timeout=60)
        codes.append(driver.returncode)
    assert codes == [70, 70, 2]
    assert failed_rows(nothing_lost_nothing_twice(run(parse(content)), 8)) == {"row-0002": "RowTimeout"}


def test_a_batch_that_runs_out_of_memory_costs_no_row(tmp_path: Path) -> None:
    content = toy.job(tmp_path, rows=16, actions={0: "oom"}, params={"micro_batch": 4}, resources={"block_rows": 16})
    folder = nothing_lost_nothing_twice(run(parse(content)), 16)
    assert failed_rows(folder) == {}


def test_a_pending_block_is_cleared_and_done_again(tmp_path: Path) -> None:
    spec = parse(toy.job(tmp_path, rows=16))
    folder = JobFolder(run(spec).folder)
    (Path(folder.uri) / "_SUCCESS").unlink()
    name = Path(folder.uri) / folder.ledger_files(0)[1]
    name.rename(name.with_name(name.name.replace(".parquet", ".pending.parquet")))
    summary = run(spec)
    nothing_lost_nothing_twice(summary, 16)
    assert summary.executed == 4
    assert len(list((Path(folder.uri) / "data").rglob("*.parquet"))) == 4


@pytest.mark.parametrize("how", ["twice", "null"])
def test_a_manifest_with_double_or_missing_ids_is_refused_and_nothing_runs(tmp_path: Path, how: str) -> None:
    ids = ["a", "b", "b"] if how == "twice" else ["a", None, "b"]
    pq.write_table(
        pa.table({"row_id": pa.array(ids, pa.string()), "number": [1, 2, 3], "action": ["ok"] * 3}), tmp_path / "manifest.parquet"
    )
    driver = kill.start(tmp_path, toy.job(tmp_path))
    error = kill.finish(driver, 64)["error"]
    assert ("these are not: b" if how == "twice" else "1 rows have no row_id") in error
    assert not list((tmp_path / "out").rglob("job.json"))


def test_a_corrupt_manifest_file_is_refused_or_skipped_as_asked(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest"
    manifest.mkdir()
    toy.write_manifest(manifest / "good.parquet", 8)
    (manifest / "bad.parquet").write_bytes(b"PAR1 and then nothing of use PAR1")
    content = toy.job(tmp_path, manifest=str(manifest))
    with pytest.raises(ManifestRefused, match=r"bad\.parquet can't be read as Parquet.*on_bad_source: skip"):
        run(parse(content))
    summary = run(parse({**content, "on_bad_source": "skip"}))
    folder = nothing_lost_nothing_twice(summary, 8)
    assert summary.exit_code == 2
    rejected = pq.read_table(Path(folder.uri) / "plan/rejected.parquet").to_pylist()
    assert [Path(r["file"]).name for r in rejected] == ["bad.parquet"]


def test_a_second_driver_is_turned_away(tmp_path: Path) -> None:
    content = toy.job(tmp_path, rows=16, params={"sleep_ms": 500})
    first = kill.start(tmp_path, content)
    kill.wait_for(lambda: kill.committed(tmp_path / "out") >= 1, first)
    assert "held by process" in kill.finish(kill.start(tmp_path, content), 75)["error"]
    assert kill.finish(first, 0)["ok"] == 16


def test_a_driver_that_loses_its_lease_stops_and_the_other_one_finishes(tmp_path: Path) -> None:
    content = toy.job(tmp_path, rows=32, params={"sleep_ms": 60}, resources={"lease_ttl_s": 1})
    first = kill.start(tmp_path, content)
    kill.wait_for(lambda: kill.committed(tmp_path / "out") >= 1, first)
    os.kill(first.pid, signal.SIGSTOP)  # alive, and silent for longer than the time to live
    time.sleep(1.5)
    summary = run(parse(content))
    os.kill(first.pid, signal.SIGCONT)
    assert "lease" in kill.finish(first, 1)["error"]
    nothing_lost_nothing_twice(summary, 32)


def test_a_row_that_two_drivers_committed_counts_once(tmp_path: Path) -> None:
    spec = parse(toy.job(tmp_path, rows=8))
    folder = JobFolder(run(spec).folder)
    (Path(folder.uri) / "_SUCCESS").unlink()
    table = folder.read_table([folder.committed_files(0)[0]])
    assert table is not None
    zombie = table.set_column(table.column_names.index("product"), "product", pa.array([-1] * len(table), pa.int64()))
    ledger.BlockWriter(folder, 0).commit(zombie.append_column("status", pa.array(["ok"] * len(table))))
    nothing_lost_nothing_twice(run(spec), 8)
    assert min(folder.results(["product"])["product"].to_pylist()) >= 0  # the copy that was committed first holds
    assert sum(len(v["row_ids"]) for v in folder.read_json("_manifest.json")["void"]) == 4


def test_changed_parameters_are_refused_while_a_job_of_the_name_is_unfinished(tmp_path: Path) -> None:
    content = toy.job(tmp_path, rows=8)
    folder = JobFolder(run(parse(content)).folder)
    (Path(folder.uri) / "_SUCCESS").unlink()
    changed = parse({**content, "params": {"factor": 3}})
    with pytest.raises(FingerprintMismatch, match=r"params\.factor: 2 -> 3"):
        run(changed)
    beside = run(changed, new=True)
    assert beside.folder != folder.uri
    assert beside.ok == 8


def test_a_read_only_output_stops_the_job_and_it_goes_on_afterwards(tmp_path: Path) -> None:
    content = toy.job(tmp_path, rows=16, params={"sleep_ms": 5})
    blocked = tmp_path / "out"
    blocked.write_text("a file where the folder should be")
    error = kill.finish(kill.start(tmp_path, content), 1)["error"]
    assert "NotADirectoryError" in error or "FileExistsError" in error
    blocked.unlink()
    nothing_lost_nothing_twice(run(parse(content)), 16)


def test_a_full_disk_stops_the_job_and_it_goes_on_afterwards(tmp_path: Path) -> None:
    size = "600k"
    output = tmp_path / "out"
    output.mkdir()
    if os.system(f"mount -t tmpfs -o size={size} tmpfs {output} 2>/dev/null") != 0:
        pytest.skip("mounting needs root")
    try:
        filler = output / "filler"
        filler.write_bytes(b"x" * 560_000)
        content = toy.job(tmp_path, rows=200, params={"sleep_ms": 1})
        error = kill.finish(kill.start(tmp_path, content), 1)["error"]
        assert "No space left on device" in error
        filler.unlink()
        nothing_lost_nothing_twice(run(parse(content)), 200)
    finally:
        os.system(f"umount {output}")


def test_retry_runs_only_the_failed_rows_and_their_last_result_holds(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    journal.mkdir()
    spec = parse(toy.job(tmp_path, rows=12, actions={3: "raise", 4: "missing"}, params={"journal": str(journal)}))
    folder = JobFolder(run(spec).folder)
    for file in journal.glob("*"):
        file.unlink()
    summary = retry(folder, error_type="ValueError")
    assert (summary.executed, summary.generation, summary.failed) == (1, 1, 2)
    assert set(kill.executed(journal)) == {"row-0003"}
    nothing_lost_nothing_twice(summary, 12)
    with pytest.raises(ManifestRefused, match="nothing to retry"):
        retry(folder, error_type="KeyError")
    assert verify(folder) == []


@pytest.mark.parametrize("damage", ["lost", "changed", "unsealed", "plan", "fingerprint"])
def test_verify_can_fail(tmp_path: Path, damage: str) -> None:
    folder = JobFolder(run(parse(toy.job(tmp_path, rows=8))).folder)
    path = Path(folder.uri)
    if damage == "lost":
        next((path / "data").rglob("*.parquet")).unlink()
    elif damage == "changed":
        name = next((path / "data").rglob("*.parquet"))
        pq.write_table(pq.read_table(name, partitioning=None).slice(1), name)
    elif damage == "unsealed":
        (path / "_manifest.json").write_text((path / "_manifest.json").read_text().replace('"ok": 8', '"ok": 7'))
    elif damage == "fingerprint":
        (path / "job.json").write_text((path / "job.json").read_text().replace('"seed": 0', '"seed": 1'))
    else:
        shutil.rmtree(path / "plan")
    assert verify(folder)
