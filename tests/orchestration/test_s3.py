"""Manifest and job folder on an object store. Tested against moto, an emulator that honours If-None-Match; real AWS and MinIO are not."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.compute as pc
import pytest
from moto.server import ThreadedMotoServer

from orchestration.finalize import verify
from orchestration.folder import JobFolder, jobs
from orchestration.inspect import describe
from orchestration.job import parse
from orchestration.lease import Lease, LeaseHeld
from orchestration.plan import ManifestRefused
from orchestration.run import FingerprintMismatch, Summary, retry, run
from tests import toy
from tests.faults import kill
from workers import storage

OUTPUT = "s3://bucket/jobs"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """An S3 server, named by the environment as a user would, for this process and those that it starts."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3").clear_instance_cache()
        yield f"http://{host}:{port}"
    fsspec.filesystem("s3").clear_instance_cache()
    server.stop()


@pytest.fixture
def bucket(endpoint: str) -> Iterator[Any]:
    """An empty bucket."""
    fs, _ = storage.filesystem(OUTPUT)
    fs.mkdir("bucket")
    yield fs
    fs.rm("bucket", recursive=True)


def on_s3(folder: Path, rows: int = 24, actions: dict[int, str] | None = None, **keys: Any) -> dict[str, Any]:
    """A toy job whose manifest and output are in the bucket."""
    fs, path = storage.filesystem("s3://bucket/in/manifest.parquet")
    content = toy.job(folder, rows, actions, **keys)
    fs.put(content["manifest"], path)
    return {**content, "manifest": "s3://bucket/in/manifest.parquet", "output": OUTPUT}


def nothing_lost_nothing_twice(summary: Summary, rows: int) -> JobFolder:
    folder = JobFolder(summary.folder)
    assert folder.uri.startswith(OUTPUT)
    assert verify(folder) == []
    assert sorted(folder.results(["row_id"])["row_id"].to_pylist()) == [f"row-{i:04}" for i in range(rows)]
    return folder


def failed(folder: JobFolder) -> list[str]:
    results = folder.results(["row_id"])
    return sorted(results.filter(pc.equal(results["status"], "failed"))["row_id"].to_pylist())


def test_a_job_on_s3_runs_is_verified_retried_and_listed(bucket: Any, tmp_path: Path) -> None:
    content = on_s3(tmp_path, rows=12, actions={3: "raise", 7: "flaky"})
    summary = run(parse(content))
    folder = nothing_lost_nothing_twice(summary, 12)
    assert (summary.ok, summary.failed, failed(folder)) == (11, 1, ["row-0003"])
    assert summary.review == f"{folder.uri}/review/index.html"
    assert b"row-0003" in bucket.cat_file(summary.review)
    again = run(parse(content))
    assert (again.executed, again.review) == (0, summary.review)
    second = retry(folder)
    assert (second.executed, second.generation) == (1, 1)
    nothing_lost_nothing_twice(second, 12)
    assert [describe(job)["state"] for job in jobs(OUTPUT)] == ["finished"]
    assert not [name for name in bucket.find("bucket/jobs") if name.endswith((".pending.parquet", "lease.json"))]


def test_a_manifest_on_s3_may_be_a_folder_or_a_pattern(bucket: Any, tmp_path: Path) -> None:
    content = on_s3(tmp_path, rows=8)
    bucket.pipe_file("bucket/in/readme.txt", b"no Parquet")
    for manifest in ("s3://bucket/in", "s3://bucket/in/", "s3://bucket/in/*.parquet"):
        summary = run(parse({**content, "manifest": manifest}))
        assert summary.ok == 8
    with pytest.raises(ManifestRefused, match="no Parquet file at s3://bucket/nowhere"):
        run(parse({**content, "manifest": "s3://bucket/nowhere"}))


@pytest.mark.slow
def test_verify_notices_a_changed_object(bucket: Any, tmp_path: Path) -> None:
    folder = JobFolder(run(parse(on_s3(tmp_path, rows=8))).folder)
    bucket.pipe_file(folder.join(folder.committed_files(0)[0]), b"something else")
    assert verify(folder)


def test_the_lease_goes_to_one_of_many_drivers(bucket: Any, tmp_path: Path) -> None:
    folder, start, took, held = JobFolder(f"{OUTPUT}/job"), threading.Barrier(6), list[str](), list[str]()

    def drive() -> None:
        start.wait()
        try:
            with Lease(folder, 60) as lease:
                took.append(lease.owner)
                done.wait(20)
        except LeaseHeld as error:
            held.append(str(error))

    done = threading.Event()
    drivers = [threading.Thread(target=drive) for _ in range(6)]
    for driver in drivers:
        driver.start()
    deadline = time.monotonic() + 20
    while len(took) + len(held) < 6 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (len(took), len(held)) == (1, 5)
    done.set()
    for driver in drivers:
        driver.join(20)
    assert not folder.exists("lease.json")


def test_a_silent_lease_is_taken_over_by_one_driver(bucket: Any, tmp_path: Path) -> None:
    folder = JobFolder(f"{OUTPUT}/job")
    old = {"owner": "gone", "host": "elsewhere", "pid": 1, "started": 0.0, "heartbeat": time.time() - 61, "ttl_s": 60}
    folder.write_json("lease.json", old)
    with Lease(folder, 60) as lease:
        assert folder.read_json("lease.json")["owner"] == lease.owner
        with pytest.raises(LeaseHeld, match="held by process"), Lease(folder, 60):
            pass


def test_creating_once_on_s3_lets_one_of_many_win(bucket: Any) -> None:
    start, won = threading.Barrier(8), list[int]()

    def create(number: int) -> None:
        start.wait()
        if storage.create_once(bucket, "bucket/once", str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=create, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(won) == 1
    assert bucket.cat_file("bucket/once") == str(won[0]).encode()


@pytest.mark.slow
def test_a_commit_cut_off_between_copy_and_delete_stays_committed(bucket: Any, tmp_path: Path) -> None:
    spec = parse(on_s3(tmp_path, rows=8))
    folder = JobFolder(run(spec).folder)
    bucket.rm_file(folder.join("_SUCCESS"))
    name = folder.join(folder.ledger_files(0)[0])  # an object store renames by copy and delete
    bucket.cp_file(name, name.replace(".parquet", ".pending.parquet"))
    assert run(spec).executed == 0
    nothing_lost_nothing_twice(run(spec), 8)


@pytest.mark.slow
def test_another_unfinished_job_of_the_name_is_noticed_on_s3(bucket: Any, tmp_path: Path) -> None:
    content = on_s3(tmp_path, rows=8)
    folder = JobFolder(run(parse(content)).folder)
    bucket.rm_file(folder.join("_SUCCESS"))
    with pytest.raises(FingerprintMismatch, match=r"params\.factor: 2 -> 3"):
        run(parse({**content, "params": {"factor": 3}}))


@pytest.mark.slow
def test_a_driver_killed_on_s3_is_resumed_without_doing_committed_rows_again(bucket: Any, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    journal.mkdir()
    content = on_s3(tmp_path, rows=16, params={"sleep_ms": 60, "journal": str(journal)})
    driver = kill.start(tmp_path, content)
    kill.wait_for(lambda: len(_ledger(bucket)) >= 1, driver)
    kill.kill(driver)
    summary = run(parse(content))
    nothing_lost_nothing_twice(summary, 16)
    assert summary.executed <= 12
    assert len(kill.executed(journal)) <= 16 + 4


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ray_runs_a_job_on_s3_and_finishes_one_that_was_killed(bucket: Any, tmp_path: Path) -> None:
    content = on_s3(tmp_path, rows=24, actions={5: "raise"}, engine="ray", params={"sleep_ms": 300})
    driver = kill.start(tmp_path, content)
    try:
        kill.wait_for(lambda: len(_ledger(bucket)) >= 1, driver, timeout_s=300)
    finally:
        kill.kill(driver)
    summary = kill.finish(kill.start(tmp_path, content), 2, timeout_s=300)
    assert (summary["ok"], summary["failed"]) == (23, 1)
    assert summary["executed"] <= 20
    folder = nothing_lost_nothing_twice(run(parse({**content, "engine": "inline"})), 24)
    assert failed(folder) == ["row-0005"]
    assert not [name for name in bucket.find(folder.path) if ".pending" in name]
    assert folder.read_json("progress.json")["engine"] == "ray"


def _ledger(fs: Any) -> list[str]:
    return [n for n in fs.find("bucket/jobs") if "/ledger/" in n and ".pending" not in n]
