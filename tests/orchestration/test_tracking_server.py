"""`mlflow server` as operators run it, with its files on S3 (moto, an emulator). The small twin of these is in test_tracking.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import mlflow
import pytest
from moto.server import ThreadedMotoServer

from orchestration.tracking import Tracker, TrackingSettings
from tests.orchestration.test_tracking import closed_port
from tests.orchestration.tracked_job import PIPELINE, night

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="mlflow")
    yield "s3://mlflow/artifacts"
    server.stop()


@contextmanager
def mlflow_server(store: Path, artifacts: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{store}", "--artifacts-destination", artifacts]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with open(store.parent / "server.log", "ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        while True:
            assert process.poll() is None, (store.parent / "server.log").read_text()[-2000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except (urllib.error.URLError, TimeoutError):
                time.sleep(0.5)
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_server_killed_midway_is_caught_up_and_keeps_its_files_on_s3(tmp_path: Path, bucket: str) -> None:
    job = night(tmp_path, rows=24, failing=8)
    with closed_port() as port:
        pass
    settings = TrackingSettings(uri=f"http://127.0.0.1:{port}", timeout_s=300)
    client = mlflow.MlflowClient(tracking_uri=settings.uri)
    tracker = Tracker(settings)
    with mlflow_server(tmp_path / "mlflow.db", bucket, port):
        tracker.start(job.folder, job.begin(), PIPELINE)
        tracker.progress(job.point(12, 4.0))
        while not (kept := job.folder.read_json("tracking.json")) or not client.get_metric_history(kept["run_id"], "progress/rows_ok"):
            time.sleep(0.5)
    job.commit(24)
    tracker.progress(job.point(24, 8.0))
    tracker.finish(job.seal())
    assert "catch up" in str(tracker.describe())
    with mlflow_server(tmp_path / "mlflow.db", bucket, port):
        again = Tracker(settings)
        again.start(job.folder, job.job, PIPELINE)
        again.finish({"ok": 21, "failed": 3, "generation": 0})
        assert again.describe() == f"{settings.uri}/#/experiments/1/runs/{kept['run_id']}?workflowType=machine_learning"
        history = client.get_metric_history(kept["run_id"], "progress/rows_ok")
        assert sorted(m.step for m in history) == [12, 24]
        assert client.get_run(kept["run_id"]).info.status == "FINISHED"
        pictures = [e.path for e in client.list_artifacts(kept["run_id"], "images") if e.path.endswith(".png")]
        assert len(pictures) == 16
        assert Path(client.download_artifacts(kept["run_id"], "failures.json", str(tmp_path))).exists()
    stored = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"]).list_objects_v2(Bucket="mlflow")["Contents"]
    assert any(o["Key"].endswith("failures.json") for o in stored)
