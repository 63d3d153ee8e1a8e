"""One job as one MLflow run: found or made, brought up to its folder, as often as one likes. Blocks; `tracking` calls it from a thread.

MLflow is imported in `open`, because that takes seconds. All that a run holds can be had from the job folder, so that a run which missed
something is completed from there.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from orchestration.folder import JobFolder, kind_of
from orchestration.mlflow_results import Results
from orchestration.registry import register
from pipelines.pipeline import Pipeline
from workers import storage

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

_SECRET = re.compile(r"(?<=://)[^\s/?#]*@")  # user:password@
_SECRET_VALUE = re.compile(r"(?i)\b([\w-]*(?:password|passwd|secret|token|signature|credential)[\w-]*=)[^&\s\"']+")
_BATCH = 1000  # metrics in one request, MLflow's own limit
_PARAMS = 100  # params in one request, MLflow's own limit
_VALUE = 500  # characters of a param or tag
_PROGRESS = {"ok": "rows_ok", "failed": "rows_failed", "rows_per_s": "rows_per_s"}
_OTHERWISE = ("planned", "executed", "generation", "seconds", "rows_per_s")  # of the summary: params, tags, or of the last driver only


def redact(text: str) -> str:
    """The text without user:password in URIs and without values of password=, token= and the like."""
    return _SECRET_VALUE.sub(r"\1***", _SECRET.sub("***@", text))


class MlflowRun:
    """The run of one job in the store at `uri`. Methods raise what MLflow, its database or the network raises, and may be called again."""

    def __init__(
        self,
        uri: str,
        artifacts: str | None,
        experiment: str,
        tags: Mapping[str, str],
        folder: JobFolder,
        job: Mapping[str, Any],
        pipeline: Pipeline,
    ) -> None:
        self.uri, self.artifacts, self.experiment, self.tags = uri, artifacts, experiment, tags
        self.folder, self.job, self.pipeline = folder, job, pipeline
        self.run_id, self.experiment_id, self.seal = "", "", ""
        kept = folder.read_json("tracking.json") or {}
        if kept.get("uri") == redact(uri) and kept.get("experiment") == experiment:
            self.run_id, self.experiment_id, self.seal = kept["run_id"], kept["experiment_id"], kept["seal"]
        self._client: MlflowClient | None = None
        self._logged: set[int] = set()  # timestamps of points that have arrived

    @property
    def complete(self) -> bool:
        """The run holds all of the sealed folder."""
        return self.folder.finished and self.seal == self._seal()

    def open(self) -> None:
        """Find the job's run, or make it, and mark it as running; nothing to do for a run that is complete."""
        if self._client is not None or self.complete:
            return
        import mlflow

        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # each retry would be a warning of its own
        client = mlflow.MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        self.experiment_id = self._experiment(client)
        run = self._find(client) or self._make(client)
        self.run_id = run.info.run_id
        self._remember("")
        client.update_run(self.run_id, status="RUNNING")
        self._log_settings(client, run)
        self._logged = {m.timestamp for m in client.get_metric_history(self.run_id, "progress/rows_ok")}
        self._client = client

    def add(self, points: Sequence[Mapping[str, Any]]) -> None:
        """Log points of metrics.jsonl that have not arrived yet; step = rows done, counted on through generations."""
        if not points:
            return
        from mlflow.entities import Metric

        client, offsets = self._opened(), self._offsets()
        fresh = {_millis(p): p for p in points if _millis(p) not in self._logged}
        for some in _chunks(list(fresh), _BATCH // len(_PROGRESS)):
            metrics = [
                Metric(f"progress/{name}", float(fresh[at][key]), at, offsets[int(fresh[at].get("generation", 0))] + int(fresh[at]["done"]))
                for at in some
                for key, name in _PROGRESS.items()
                if fresh[at].get(key) is not None
            ]
            client.log_batch(self.run_id, metrics=metrics, synchronous=True)
            self._logged.update(some)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Bring the run up to the sealed folder: missed points, counts, scores, pictures, failures; then end it."""
        if self.complete:
            return
        client = self._opened()
        self.add(self._points())
        manifest = self.folder.read_json("_manifest.json")
        at = _iso_millis(manifest["finished"])
        results = Results(self.folder, self.job, self.pipeline.shown)
        counts = {f"job/{key}": float(value) for key, value in summary.items() if key not in _OTHERWISE and isinstance(value, int | float)}
        metrics = {**counts, **results.metrics(self._points())}
        self._log_metrics(client, [(name, value, at, self._offsets()[-1]) for name, value in metrics.items()])
        results.log_figures(client, self.run_id)
        results.log_failures(client, self.run_id, redact)
        results.log_pictures(client, self.run_id)
        status = "finished" if not summary["failed"] else "finished_with_failures"
        review = redact(str(summary.get("review") or ""))
        ran = {f"calotype.{key}": str(value) for key, value in self.job.get("ran", {}).items()}
        ended = {"calotype.status": status, "calotype.review": review, "calotype.generation": str(summary["generation"])}
        self._log_tags(client, {**ran, **ended})
        client.set_tag(self.run_id, "mlflow.note.content", redact(results.description(review)))
        if self.pipeline.family is not None and summary["ok"]:
            facts = {
                "kind": kind_of(self.job["spec"]),
                "files": summary["ok"],
                "failed": summary["failed"],
                "model": self._identity()["calotype.model"],
            }
            register(client, self.run_id, self.pipeline.family, self.folder, facts)
        client.set_terminated(self.run_id, "FINISHED", end_time=at)  # when the job ended, however late this arrives
        self._tell_parent(client, metrics, at)
        self._remember(self._seal())

    def stop(self, error: BaseException) -> None:
        """Mark the run as stopped, with the reason; the next driver takes it up again."""
        client = self._opened()
        self._log_tags(client, {"calotype.status": "stopped", "calotype.error": f"{type(error).__name__}: {error}"})
        client.set_terminated(self.run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")

    def _opened(self) -> MlflowClient:
        assert self._client is not None, "open() comes first"
        return self._client

    def _experiment(self, client: MlflowClient) -> str:
        found = client.get_experiment_by_name(self.experiment)
        if found is not None:
            return str(found.experiment_id)
        kind = {"mlflow.experimentKind": "custom_model_development"}  # charts and runs first, not prompts and traces
        return str(client.create_experiment(self.experiment, artifact_location=self.artifacts, tags=kind))

    def _find(self, client: MlflowClient) -> Run | None:
        """The run of an earlier driver: by the id in the folder, else by its tags (the id may have been lost with that driver)."""
        from mlflow.exceptions import MlflowException

        if self.run_id:
            try:
                run = client.get_run(self.run_id)
                if run.info.lifecycle_stage == "active":
                    return run
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        query = " and ".join(
            f"tags.`{key}` = '{value}'" for key, value in self._identity().items() if key in ("calotype.fingerprint", "calotype.folder")
        )
        found = client.search_runs([self.experiment_id], filter_string=query, order_by=["attributes.start_time DESC"], max_results=1)
        return found[0] if found else None

    def _make(self, client: MlflowClient) -> Run:
        created, tags = _iso_millis(self.job["created"]), self._identity()
        parent = self._parent(client)
        if parent is not None:
            tags["mlflow.parentRunId"] = parent
        return client.create_run(self.experiment_id, start_time=created, tags=tags, run_name=self.folder.name)

    def _parent(self, client: MlflowClient) -> str | None:
        """The run that all jobs of this one's schedule are children of, made by the first of them; None without a schedule."""
        schedule = self.job["spec"].get("schedule")
        if schedule is None:
            return None
        tags = {"calotype.role": "schedule", "calotype.schedule": schedule}
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())

        def oldest() -> list[Run]:
            return list(
                client.search_runs([self.experiment_id], filter_string=query, order_by=["attributes.start_time ASC"], max_results=1)
            )

        if not (found := oldest()):
            client.create_run(self.experiment_id, tags={**tags, "mlflow.source.name": "calotype schedule"}, run_name=schedule)
            found = oldest()  # jobs that began together agree on one
        return str(found[0].info.run_id)

    def _tell_parent(self, client: MlflowClient, metrics: Mapping[str, float], at: int) -> None:
        """What came of this job, as a point of the schedule's own charts over its nights."""
        from mlflow.entities import Metric

        parent = self._parent(client)
        if parent is None:
            return
        kept = {key: value for key, value in metrics.items() if key.startswith("job/") or key.endswith("_p50")}
        seen = {name: {m.timestamp for m in client.get_metric_history(parent, name)} for name in kept}
        points = [Metric(name, value, at, at // 1000) for name, value in kept.items() if at not in seen[name]]
        client.log_batch(parent, metrics=points, synchronous=True)
        client.set_terminated(parent, "FINISHED", end_time=at)

    def _identity(self) -> dict[str, str]:
        """Tags that a run is made with and found by."""
        spec = self.job["spec"]
        tags = {
            "calotype.kind": kind_of(self.job["spec"]),
            "calotype.job": spec["name"],
            "calotype.folder": self.folder.uri.replace("'", "%27"),
            "calotype.fingerprint": self.job["fingerprint"],
            **({"calotype.schedule": spec["schedule"]} if spec.get("schedule") else {}),
            "calotype.manifest": spec["manifest"],
            "calotype.model": spec["model"] if isinstance(spec["model"], str) else json.dumps(spec["model"]),
            "mlflow.source.name": "calotype run",
            "mlflow.source.type": "JOB",
            **self.tags,
        }
        return {key: redact(str(value))[:_VALUE] for key, value in tags.items()}

    def _log_settings(self, client: MlflowClient, run: Run) -> None:
        """Params as the job was begun (MLflow never changes one), tags as it is now, the manifest as a dataset."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        params = {key: value for key, value in self._params().items() if key not in run.data.params}
        for some in _chunks(list(params), _PARAMS):
            client.log_batch(run.info.run_id, params=[Param(key, params[key]) for key in some], synchronous=True)
        attempt = self.job["attempts"][-1] if self.job.get("attempts") else {}
        now = {
            "engine": attempt.get("engine", self.job["spec"]["engine"]),
            "attempts": str(len(self.job.get("attempts", []))),
            "status": "running",
        }
        self._log_tags(client, {f"calotype.{key}": value for key, value in {**self.pipeline.facts, **now}.items()})
        digest = self.job["parts"]["manifest"][:36]  # MLflow's column is that wide
        if all(entry.dataset.digest != digest for entry in (run.inputs.dataset_inputs if run.inputs else [])):
            uri = redact(self.job["spec"]["manifest"])
            scheme = storage.scheme(uri)
            dataset = Dataset(
                name=uri.rstrip("/").rsplit("/", 1)[-1],
                digest=digest,
                source_type="local" if scheme == "file" else scheme,
                source=json.dumps({"uri": uri}),
                profile=json.dumps({"num_rows": self._offsets()[1], "sha256": self.job["parts"]["manifest"]}),
            )
            client.log_inputs(run.info.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "inference")])])

    def _params(self) -> dict[str, str]:
        spec, parts = self.job["spec"], self.job["parts"]
        resolved = {
            **{key: value for key, value in spec.items() if key != "tracking"},
            "params": parts["params"],
            **{key: parts[key] for key in ("code", "model_revision")},
            "manifest_digest": parts["manifest"],
            "fingerprint": self.job["fingerprint"],
            **self.pipeline.facts,
        }
        return {key[:250]: redact(value)[:_VALUE] for key, value in _flat(resolved)}

    def _log_tags(self, client: MlflowClient, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        client.log_batch(self.run_id, tags=[RunTag(key, redact(value)[:_VALUE]) for key, value in tags.items()], synchronous=True)

    def _log_metrics(self, client: MlflowClient, values: Sequence[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        metrics: list[Metric] = [Metric(*value) for value in values]
        for some in _chunks(metrics, _BATCH):
            client.log_batch(self.run_id, metrics=some, synchronous=True)

    def _points(self) -> list[dict[str, Any]]:
        """All points of metrics.jsonl, in their order."""
        try:
            return [json.loads(line) for line in self._text("metrics.jsonl").splitlines()]
        except FileNotFoundError:
            return []

    def _offsets(self) -> list[int]:
        """Rows that the generations before each one ran, and at the end those of all."""
        offsets = [0]
        for plan in self.job["plans"]:
            offsets.append(offsets[-1] + int(plan["rows"]))
        return offsets

    def _seal(self) -> str:
        return self._text("_SUCCESS").strip()

    def _text(self, name: str) -> str:
        data = self.folder.fs.cat_file(self.folder.join(name))
        assert isinstance(data, bytes)
        return data.decode()

    def _remember(self, seal: str) -> None:
        """Keep in the folder which run is the job's, and up to which seal it is complete."""
        self.seal = seal
        kept = {
            "uri": redact(self.uri),
            "experiment": self.experiment,
            "experiment_id": self.experiment_id,
            "run_id": self.run_id,
            "seal": seal,
        }
        self.folder.write_json("tracking.json", kept)


def _millis(point: Mapping[str, Any]) -> int:
    return int(point["t"] * 1000)


def _iso_millis(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp() * 1000)


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    for at in range(0, len(items), size):
        yield items[at : at + size]


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and values as text; what is None or empty is left out."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    elif value is not None and value != []:
        yield prefix, value if isinstance(value, str) else json.dumps(value)
