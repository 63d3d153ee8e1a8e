from __future__ import annotations

import io
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.entities import Run
from PIL import Image
from werkzeug.serving import BaseWSGIServer, make_server

from orchestration.folder import JobFolder
from orchestration.mlflow_results import CONTACT_SHEET, MAX_PICTURES, pick
from orchestration.mlflow_run import redact
from orchestration.review import rows
from orchestration.tracking import Tracker, TrackingSettings, store_uri
from pipelines.pipeline import Score
from tests.orchestration.tracked_job import FINGERPRINT, PIPELINE, JobInTheMaking, night
from workers.guard import LeaseLost


@pytest.fixture(scope="module", autouse=True)
def _own_environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        yield


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite store with its tables made, to copy: making them takes seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def job(tmp_path: Path, empty_store: Path) -> JobInTheMaking:
    made = night(tmp_path, rows=24, failing=8)
    (tmp_path / "out" / "mlflow.db").write_bytes(empty_store.read_bytes())
    return made


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> JobInTheMaking:
    """A job that has run from start to end under one tracker, to look at."""
    place = tmp_path_factory.mktemp("done")
    made = night(place, rows=24, failing=8)
    (place / "out" / "mlflow.db").write_bytes(empty_store.read_bytes())
    end_well(made, TrackingSettings(tags={"series": "winter"}))
    return made


def client_of(job: JobInTheMaking) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(tracking_uri=store_uri(TrackingSettings(), job.folder))


def runs(job: JobInTheMaking) -> list[Run]:
    client = client_of(job)
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))


def artifacts(job: JobInTheMaking, run: Run, folder: str | None = None) -> list[str]:
    return [entry.path for entry in client_of(job).list_artifacts(run.info.run_id, folder)]


def history(job: JobInTheMaking, run: Run, metric: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in sorted(client_of(job).get_metric_history(run.info.run_id, metric), key=lambda m: m.timestamp)]


def tracked(job: JobInTheMaking, points: list[dict[str, Any]], settings: TrackingSettings | None = None) -> Tracker:
    """A driver's tracker with these points; it is neither finished nor stopped."""
    tracker = Tracker(settings or TrackingSettings())
    tracker.start(job.folder, job.begin(), PIPELINE)
    for point in points:
        tracker.progress(point)
    return tracker


def end_well(job: JobInTheMaking, settings: TrackingSettings | None = None) -> Tracker:
    """Run the whole job under one tracker."""
    job.commit(job.rows)
    tracker = tracked(job, [job.point(12, 4.0), job.point(24, 8.0)], settings)
    tracker.finish(job.seal())
    return tracker


def test_one_run_holds_what_a_reviewer_asks_for(done: JobInTheMaking) -> None:
    (run,) = runs(done)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == done.folder.name
    params = run.data.params
    assert (params["params.timestep"], params["code"], params["model_revision"]) == ("249", "0.1.0+abc", "c0ffee")
    assert (params["engine"], params["attention"], params["fingerprint"]) == ("inline", "sdpa", FINGERPRINT)
    tags = run.data.tags
    assert (tags["calotype.kind"], tags["calotype.job"], tags["calotype.status"]) == ("restore", "night", "finished_with_failures")
    assert (tags["calotype.folder"], tags["series"]) == (done.folder.uri, "winter")
    assert "21 of 24 rows are done, 3 failed." in tags["mlflow.note.content"]
    assert run.inputs is not None
    (dataset,) = [entry.dataset for entry in run.inputs.dataset_inputs]
    assert json.loads(dataset.source)["uri"] == done.job["spec"]["manifest"]
    assert done.job["parts"]["manifest"].startswith(dataset.digest)
    assert history(done, run, "progress/rows_failed") == [(12, 1), (24, 3)]
    assert history(done, run, "progress/rows_per_s") == [(12, 3.0), (24, 3.0)]
    scores = [i / 24 for i in range(24) if i % 8 != 7]
    assert run.data.metrics["scores/identity_similarity_p50"] == pytest.approx(np.median(scores), abs=1e-6)
    assert run.data.metrics["job/failed"] == 3
    assert "scores/identity_similarity.png" in artifacts(done, run, "scores")


def test_failed_rows_are_a_table(done: JobInTheMaking) -> None:
    (run,) = runs(done)
    table = client_of(done).download_artifacts(run.info.run_id, "failures.json")
    content = json.loads(Path(table).read_text())
    assert content["columns"] == ["row_id", "error_type", "error", "stage", "attempts"]
    assert content["data"] == [[f"row-{i:03}", "ImageBroken", "the JPEG ends too early", "decode", 1] for i in (7, 15, 23)]
    assert {"path": "failures.json", "type": "table"} in json.loads(run.data.tags["mlflow.loggedArtifacts"])


def test_pictures_show_before_after_and_references_of_the_worst_the_best_and_some_between(done: JobInTheMaking) -> None:
    (run,) = runs(done)
    pictures = sorted(name for name in artifacts(done, run, "images") if name.endswith(".png"))
    keys = [name.split("~")[1].split("+")[0] for name in pictures]
    assert {key: keys.count(key) for key in keys} == {"best": 5, "between": 6, "worst": 5}
    worst = next(name for name in pictures if "worst+step+0" in name)
    sheet = Image.open(io.BytesIO(Path(client_of(done).download_artifacts(run.info.run_id, worst)).read_bytes())).convert("RGB")
    near = [sheet.getpixel((x, y)) for x, y in ((128, 172), (384, 172), (64, 364), (192, 364))]
    wanted = [(90, 60, 30), (0, 160, 90), (40, 120, 200), (40, 120, 200)]  # row-000 before, after, and its two references
    assert np.abs(np.array(near, int) - np.array(wanted)).max() <= 6  # thumbnails are JPEG
    page = Image.open(client_of(done).download_artifacts(run.info.run_id, CONTACT_SHEET)).convert("RGB")
    assert 4 * sheet.width < page.width < 5 * sheet.width
    assert page.getpixel((128, 172 + 22)) == near[0]  # the worst row comes first, under the name of its group


def test_a_killed_and_resumed_job_continues_its_run_on_any_engine(job: JobInTheMaking) -> None:
    job.commit(12)
    tracked(job, [job.point(12, 4.0)])
    _until(lambda: bool(runs(job)) and len(history(job, runs(job)[0], "progress/rows_ok")) == 1)
    assert runs(job)[0].info.status == "RUNNING"
    job.commit(12)
    resumed = Tracker(TrackingSettings())
    resumed.start(job.folder, job.begin("ray"), PIPELINE)
    resumed.progress(job.point(24, 3.0))
    resumed.finish(job.seal())
    (run,) = runs(job)
    assert run.info.status == "FINISHED"
    assert [step for step, _ in history(job, run, "progress/rows_ok")] == [12, 24]
    assert (run.data.tags["calotype.attempts"], run.data.tags["calotype.engine"]) == ("2", "ray")


def test_the_run_is_found_by_its_tags_when_the_folder_has_lost_its_id(job: JobInTheMaking) -> None:
    end_well(job)
    job.folder.fs.rm_file(job.folder.join("tracking.json"))
    again = tracked(job, [])
    again.finish(job.seal())
    assert len(runs(job)) == 1


def test_a_retry_continues_the_run_and_counts_on(job: JobInTheMaking) -> None:
    end_well(job)
    job.retry([7, 15])
    again = tracked(job, [job.point(2, 1.0, generation=1)])
    again.finish(job.seal())
    (run,) = runs(job)
    assert [step for step, _ in history(job, run, "progress/rows_ok")] == [12, 24, 26]
    assert (run.data.metrics["job/failed"], run.data.tags["calotype.generation"]) == (1, "1")
    left = json.loads(Path(client_of(job).download_artifacts(run.info.run_id, "failures-after-retry-1.json")).read_text())
    assert [row[0] for row in left["data"]] == ["row-023"]
    assert len([name for name in artifacts(job, run, "images") if name.endswith(".png")]) == MAX_PICTURES


def test_finishing_again_doubles_nothing(job: JobInTheMaking) -> None:
    end_well(job)
    (run,) = runs(job)
    before = (sorted(artifacts(job, run, "images")), history(job, run, "progress/rows_ok"), history(job, run, "job/ok"))
    kept = job.folder.read_json("tracking.json")
    for seal in (kept["seal"], ""):  # known to be complete; and as if the driver had died before it could note that
        job.folder.write_json("tracking.json", {**kept, "seal": seal})
        again = tracked(job, [])
        again.finish({"ok": 21, "failed": 3, "generation": 0, "review": ""})
        assert again.describe() == f"mlflow ui --backend-store-uri {store_uri(TrackingSettings(), job.folder)}, then " + _page(run)
    (run,) = runs(job)
    assert (sorted(artifacts(job, run, "images")), history(job, run, "progress/rows_ok"), history(job, run, "job/ok")) == before
    assert len(json.loads(Path(client_of(job).download_artifacts(run.info.run_id, "failures.json")).read_text())["data"]) == 3


def test_a_stopped_job_is_marked_and_taken_up_again(job: JobInTheMaking) -> None:
    job.commit(24)
    tracked(job, [job.point(12, 4.0)]).stop(RuntimeError("no row has ended; s3://key:hush@bucket"))
    (run,) = runs(job)
    assert (run.info.status, run.data.tags["calotype.status"]) == ("FAILED", "stopped")
    assert run.data.tags["calotype.error"] == "RuntimeError: no row has ended; s3://***@bucket"
    tracked(job, [job.point(24, 4.0)]).finish(job.seal())
    (run,) = runs(job)
    assert (run.info.status, len(history(job, run, "progress/rows_ok"))) == ("FINISHED", 2)


def test_a_driver_that_lost_its_lease_leaves_the_run_to_the_other(job: JobInTheMaking) -> None:
    job.commit(24)
    tracker = tracked(job, [job.point(24, 4.0)])
    _until(lambda: bool(runs(job)))
    tracker.stop(LeaseLost("taken over"))
    assert runs(job)[0].info.status == "RUNNING"
    tracker.finish(job.seal())


def test_no_secret_reaches_the_store_or_the_folder(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = night(
        tmp_path, rows=8, failing=4, manifest="s3://key:hush-hush@bucket/night.parquet", where={"url": "https://x/y?token=hush-hush"}
    )
    store = tmp_path / "out" / "mlflow.db"
    store.write_bytes(empty_store.read_bytes())
    job.commit(8, error="GET https://ann:hush-hush@archive/1.jpg?X-Amz-Signature=hush-hush failed")
    tracker = tracked(job, [job.point(8, 4.0)], TrackingSettings(tags={"from": "ftp://ann:hush-hush@host"}))
    tracker.finish(job.seal())
    assert len(runs(job)) == 1
    written = [store, *(tmp_path / "out" / "mlartifacts").rglob("*.*"), tmp_path / "out" / job.folder.name / "tracking.json"]
    assert len(written) > 3
    assert [path.name for path in written if path.is_file() and b"hush" in path.read_bytes()] == []


def test_a_password_in_the_job_file_is_refused_with_the_way_to_do_it() -> None:
    for uri in ("https://ann:pw@mlflow.example.org", "postgresql://h/db?password=pw"):
        with pytest.raises(ValueError, match="MLFLOW_TRACKING_PASSWORD"):
            TrackingSettings(uri=uri)
    with pytest.raises(ValueError, match="sqlite:////PATH"):
        TrackingSettings(uri="./mlruns")


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("postgresql+psycopg://u:p%40ss@db:5432/mlflow", "postgresql+psycopg://***@db:5432/mlflow"),
        ("s3://bucket/a@b.parquet", "s3://bucket/a@b.parquet"),
        ("see https://x/?a=1&api_token=abc&b=2", "see https://x/?a=1&api_token=***&b=2"),
    ],
)
def test_redaction_takes_secrets_and_leaves_the_rest(text: str, without: str) -> None:
    assert redact(text) == without


def test_the_default_store_lies_beside_the_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    local, remote = JobFolder(f"{tmp_path}/out/night-1"), JobFolder("s3://bucket/out/night-1")
    assert store_uri(TrackingSettings(), local) == f"sqlite:///{tmp_path}/out/mlflow.db"
    assert store_uri(TrackingSettings(), remote) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")
    assert store_uri(TrackingSettings(), local) == "https://mlflow.example.org"
    assert store_uri(TrackingSettings(uri="sqlite:////else/mlflow.db"), local) == "sqlite:////else/mlflow.db"


def test_tracking_that_is_off_leaves_no_trace(job: JobInTheMaking) -> None:
    tracker = end_well(job, TrackingSettings(enabled=False))
    assert tracker.describe() is None
    assert runs(job) == []
    assert not job.folder.exists("tracking.json")


def test_mlflow_is_not_imported_before_a_job_runs() -> None:
    code = "import sys, orchestration.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_mlflow_begins_when_the_first_rows_are_done(job: JobInTheMaking) -> None:
    tracker = tracked(job, [job.point(0, 0.5)])
    threading.Event().wait(0.5)
    assert len(tracker._points) == 1
    job.commit(24)
    tracker.progress(job.point(24, 2.0))
    _until(lambda: not tracker._points)
    tracker.finish(job.seal())
    assert [step for step, _ in history(job, runs(job)[0], "progress/rows_ok")] == [0, 24]


def test_a_server_that_never_answers_holds_up_neither_job_nor_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job = night(tmp_path, rows=8, failing=4)
    with socket.socket() as hole:  # takes connections, answers nothing
        hole.bind(("127.0.0.1", 0))
        hole.listen()
        tracker = tracked(job, [], TrackingSettings(uri=f"http://127.0.0.1:{hole.getsockname()[1]}", timeout_s=0.5))
        point = job.point(8, 4.0)
        for _ in range(3000):  # more than it keeps: a call that waited for the server would end in the test's time limit
            tracker.progress(point)
        job.commit(8)
        with caplog.at_level(logging.WARNING):
            tracker.finish(job.seal())
    assert job.folder.finished
    assert "run the same command again to catch up" in str(tracker.describe())
    assert "no answer within" in caplog.text


def test_a_job_whose_server_was_down_is_caught_up_by_the_same_command(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = night(tmp_path, rows=8, failing=4)
    job.commit(8)
    with closed_port() as port:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:hush-hush@127.0.0.1:{port}")
        down = tracked(job, [job.point(4, 2.0), job.point(8, 4.0)])
        summary = job.seal()
        down.finish(summary)
        assert "catch up" in str(down.describe())
    with served(tmp_path, empty_store, port) as uri:
        again = tracked(job, [])
        again.finish(summary)
        client = mlflow.MlflowClient(tracking_uri=uri)
        (run,) = client.search_runs(["1"])
        assert again.describe() == f"http://***@127.0.0.1:{port}/{_page(run).split('/', 3)[-1]}"
        assert [m.step for m in client.get_metric_history(run.info.run_id, "progress/rows_ok")] == [4, 8]
        assert run.info.status == "FINISHED"
    assert capsys.readouterr().out == ""  # MLflow likes to print the address of a run, password and all


def test_a_server_that_dies_midway_and_comes_back_misses_nothing(tmp_path: Path, empty_store: Path) -> None:
    job = night(tmp_path, rows=24, failing=8)
    with closed_port() as port:
        settings = TrackingSettings(uri=f"http://127.0.0.1:{port}")
    with served(tmp_path, empty_store, port) as uri:
        tracker = tracked(job, [job.point(6, 2.0)], settings)
        client = mlflow.MlflowClient(tracking_uri=uri)
        _until(lambda: bool(job.folder.read_json("tracking.json")) and len(_history(client, job)) == 1)
    tracker.progress(job.point(12, 4.0))  # nobody listens
    _until(lambda: tracker._problem is not None)
    tracker.progress(job.point(18, 6.0))
    job.commit(24)
    with served(tmp_path, empty_store, port):
        job.point(24, 8.0)
        tracker.finish(job.seal())
        assert [m.step for m in _history(client, job)] == [6, 12, 18, 24]
        assert client.get_run(job.folder.read_json("tracking.json")["run_id"]).info.status == "FINISHED"


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1) | st.none()), max_size=60), st.booleans())
def test_pictures_are_of_different_rows_that_succeeded_and_never_more_than_sixteen(
    some: list[tuple[bool, float | None]], higher: bool
) -> None:
    ended = rows.Ended(
        files=[],
        hashes=np.arange(len(some), dtype=np.uint64)[::-1],
        failed=np.array([failed for failed, _ in some], bool),
        generation=np.zeros(len(some), np.int16),
        numbers={"s": np.array([np.nan if v is None else v for _, v in some], np.float32)},
        failures=[],
    )
    chosen = pick(ended, Score("s", "S", higher))
    positions = [p for many in chosen.values() for p in many]
    assert len(positions) <= MAX_PICTURES
    assert len(set(positions)) == len(positions)
    assert not ended.failed[positions].any()
    if "worst" in chosen:
        worst, best = ended.numbers["s"][chosen["worst"]], ended.numbers["s"][chosen["best"]]
        assert (worst.max() <= best.min()) if higher else (worst.min() >= best.max())


def _page(run: Run) -> str:
    return f"http://127.0.0.1:5000/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}?workflowType=machine_learning"


def _history(client: mlflow.MlflowClient, job: JobInTheMaking) -> list[Any]:
    found = client.get_metric_history(job.folder.read_json("tracking.json")["run_id"], "progress/rows_ok")
    return sorted(found, key=lambda m: m.timestamp)


def _until(met: Any) -> None:
    """Wait for what another thread does; the test's time limit ends it."""
    while not met():
        threading.Event().wait(0.05)


class closed_port:  # noqa: N801
    """A port on which nothing listens, kept from others while the block runs."""

    def __enter__(self) -> int:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        return int(self._socket.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self._socket.close()


class served:  # noqa: N801
    """MLflow's own server application in a thread, on a copy of the empty store that outlives the block."""

    def __init__(self, tmp_path: Path, empty_store: Path, port: int) -> None:
        self.store, self.artifacts, self.port = tmp_path / "server.db", tmp_path / "server-artifacts", port
        if not self.store.exists():
            self.store.write_bytes(empty_store.read_bytes())

    def __enter__(self) -> str:
        from mlflow.server import app, handlers

        handlers._tracking_store = None
        os.environ["_MLFLOW_SERVER_FILE_STORE"] = f"sqlite:///{self.store}"
        os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = "mlflow-artifacts:/"
        os.environ["_MLFLOW_SERVER_ARTIFACT_DESTINATION"] = str(self.artifacts)
        os.environ["_MLFLOW_SERVER_SERVE_ARTIFACTS"] = "true"
        self._server: BaseWSGIServer = make_server("127.0.0.1", self.port, app, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return f"http://127.0.0.1:{self.port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for name in [name for name in os.environ if name.startswith("_MLFLOW_SERVER_")]:
            del os.environ[name]


def test_the_jobs_of_a_schedule_are_children_of_one_run_that_charts_its_nights(tmp_path: Path, empty_store: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    settings = TrackingSettings(uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    for number in range(2):
        made = night(tmp_path / str(number), rows=8, failing=8, schedule="nightly")
        end_well(made, settings)
    end_well(night(tmp_path / "by hand", rows=8, failing=8), settings)
    client = mlflow.MlflowClient(tracking_uri=settings.uri)
    found = list(client.search_runs([e.experiment_id for e in client.search_experiments()]))
    (parent,) = [run for run in found if run.data.tags.get("calotype.role") == "schedule"]
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert (parent.info.run_name, parent.info.status, len(children), len(found)) == ("nightly", "FINISHED", 2, 4)
    assert {run.data.tags["calotype.schedule"] for run in children} == {"nightly"}
    assert parent.data.metrics["job/failed"] == 1
