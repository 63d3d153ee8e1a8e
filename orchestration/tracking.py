"""MLflow beside a job: one run a job, written from a thread of its own; a server that is down, slow or hangs costs the job nothing."""

from __future__ import annotations

import logging
import os
import shlex
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from orchestration.folder import JobFolder
from orchestration.mlflow_run import MlflowRun, redact
from pipelines.pipeline import Pipeline
from workers import storage
from workers.guard import LeaseLost

log = logging.getLogger(__name__)

_QUIET = {  # only where the user has not set them; a thread that waits ten minutes for a dead server would miss the end of the job
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it would print a password that stands in the URI, and break --json
}
_HEAD_START_S = 15.0  # at most, until the first rows are done: importing MLflow takes seconds of this process
_PAUSE_S = 30.0  # after a failure, before the next try
_WAITING = 1000  # points; older ones fall out and are read from metrics.jsonl at the end
_STOP_S = 5.0  # a job that stops on an error does not wait longer for MLflow


class TrackingSettings(BaseModel):
    """Where a job's MLflow run goes. Nothing here changes a result or decides whether a job ends well.

    `uri` None: the environment's MLFLOW_TRACKING_URI; where that is not set, `mlflow.db` beside the job folders (in the working directory
    where these are on an object store).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = True
    uri: str | None = None
    experiment: str = Field(default="calotype", min_length=1)
    tags: dict[str, str] = {}  # more tags for the run, to find it by
    timeout_s: float = Field(default=120, gt=0)  # how long a finished job waits for the server

    @field_validator("uri")
    @classmethod
    def _usable(cls, uri: str | None) -> str | None:
        if uri is None:
            return None
        if redact(uri) != uri:
            raise ValueError(
                "a password here would be written into job.json; set MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, in the environment"
            )
        if storage.scheme(uri) == "file":
            raise ValueError(
                "MLflow keeps no runs in plain folders any more; write sqlite:////PATH/mlflow.db or the https:// address of a server"
            )
        return uri


class Tracker:
    """Follows one job from the driver: `start`, `progress` at every point, then `finish` or `stop`. Never raises for MLflow's sake."""

    def __init__(self, settings: TrackingSettings) -> None:
        self.settings = settings
        self._run: MlflowRun | None = None
        self._thread = threading.Thread(target=self._follow, name="mlflow", daemon=True)
        self._points: deque[Mapping[str, Any]] = deque(maxlen=_WAITING)
        self._wake = threading.Event()
        self._last: tuple[str, Any] | None = None  # ("finish", summary) or ("stop", error)
        self._problem: str | None = None

    def start(self, folder: JobFolder, job: Mapping[str, Any], pipeline: Pipeline) -> None:
        """Begin or take up the job's run, in the background. `job` is the content of job.json."""
        if not self.settings.enabled:
            return
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        uri = store_uri(self.settings, folder)
        self._run = MlflowRun(uri, artifact_location(uri), self.settings.experiment, self.settings.tags, folder, job, pipeline)
        self._thread.start()

    def progress(self, point: Mapping[str, Any]) -> None:
        """Note a point of metrics.jsonl. Returns at once, whatever the server does."""
        if self._run is not None:
            self._points.append(point)
            if point["done"]:
                self._wake.set()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Bring the run up to the sealed folder and end it; waits `timeout_s` at the most. On a job that finished earlier it catches up."""
        if not self._end(("finish", summary), self.settings.timeout_s):
            self._problem = self._problem or f"no answer within {self.settings.timeout_s:.0f} s"
        if self._problem is not None:
            log.warning("MLflow: %s", self.describe())

    def stop(self, error: BaseException) -> None:
        """Mark the run as stopped by an error; the driver that goes on takes it up. A driver that lost its lease leaves it alone."""
        if not isinstance(error, LeaseLost):
            self._end(("stop", error), _STOP_S)

    def describe(self) -> str | None:
        """How to open the run, or why there is none and what to do; None when tracking is off."""
        if self._run is None:
            return None
        if self._problem is not None:
            return f"not up to date ({self._problem}); run the same command again to catch up"
        uri, path = redact(self._run.uri), f"#/experiments/{self._run.experiment_id}/runs/{self._run.run_id}?workflowType=machine_learning"
        if urlsplit(uri).scheme in ("http", "https"):
            return f"{uri.rstrip('/')}/{path}"
        return f"mlflow ui --backend-store-uri {shlex.quote(uri)}, then http://127.0.0.1:5000/{path}"

    def _end(self, last: tuple[str, Any], timeout_s: float) -> bool:
        if self._run is None:
            return True
        self._last = last
        self._wake.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _follow(self) -> None:
        """The thread: all that MLflow does happens here."""
        not_before = 0.0
        self._wake.wait(_HEAD_START_S)
        self._wake.set()
        while True:
            self._wake.wait()
            self._wake.clear()
            last = self._last
            if last is None and time.monotonic() < not_before:
                continue
            try:
                self._bring_up(last)
                self._problem = None
            except Exception as error:  # whatever MLflow, its database or its network raises
                if self._problem is None and last is None:
                    log.warning("MLflow can't be reached; the job goes on, and its run is caught up at the end: %s", _brief(error))
                self._problem, not_before = _brief(error), time.monotonic() + _PAUSE_S
            if last is not None:
                return

    def _bring_up(self, last: tuple[str, Any] | None) -> None:
        assert self._run is not None
        points = [self._points.popleft() for _ in range(len(self._points))]
        self._run.open()
        match last:
            case ("finish", summary):
                self._run.finish(summary)
            case ("stop", error):
                self._run.add(points)
                self._run.stop(error)
            case _:
                self._run.add(points)


def store_uri(settings: TrackingSettings, folder: JobFolder) -> str:
    """The store of a job: the job file's, the environment's, or a SQLite file beside the job folders."""
    configured = settings.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if configured:
        return configured
    output = folder.uri.rstrip("/").rsplit("/", 1)[0]
    place = storage.local_path(output) if storage.scheme(output) == "file" else Path.cwd()
    return f"sqlite:///{place / 'mlflow.db'}"


def artifact_location(uri: str) -> str | None:
    """Where a new experiment keeps its files: `mlartifacts/` beside a SQLite file; None where the server decides."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts").as_uri()


def _brief(error: BaseException) -> str:
    """An error in a line, without secrets."""
    text = redact(str(error)).strip().split("\n")[0]
    text = text if len(text) <= 240 else f"{text[:100]} … {text[-140:]}"  # MLflow names the cause last
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
