"""A job from its file to its finished folder: `run(JobSpec(...))` is what the command line calls."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from orchestration import finalize, fingerprint, ledger, plan, reuse
from orchestration.engines import inline
from orchestration.engines import ray as ray_engine
from orchestration.engines.assignment import Assignment
from orchestration.folder import JobFolder
from orchestration.job import JobFileError, JobSpec, explain, parse
from orchestration.lease import Lease
from orchestration.progress import Log, Point, Watch
from orchestration.review.page import write_review
from orchestration.tracking import Tracker
from pipelines import find_kind
from pipelines.pipeline import Accept, Context, Kind, Model, Pipeline
from workers import storage
from workers.rows import JobStopped

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5


class FingerprintMismatch(ValueError):
    """An unfinished job of this name was begun with other settings."""


class Stalled(JobStopped):
    """No row has ended for resources.stall_timeout_s; the job was stopped and can be resumed."""


@dataclass(frozen=True)
class Summary:
    """How a job ended. `executed`: rows this call ran; `rejected`: manifest files left out; `reused`: rows of earlier jobs, not planned here."""

    folder: str
    planned: int
    ok: int
    failed: int
    executed: int
    rejected: int
    generation: int
    seconds: float
    rows_per_s: float
    first_block_s: float | None
    review: str | None
    tracking: str | None
    reused: int = 0

    @property
    def exit_code(self) -> int:
        """0: every row ok; 2: finished with failed rows or rejected files."""
        return 2 if self.failed or self.rejected else 0


@dataclass(frozen=True)
class Prepared:
    """A job whose settings are checked and settled, before anything heavy is loaded. `folder` is where it will run."""

    spec: JobSpec
    kind: Kind
    params: Any
    context: Context
    source: plan.Source
    parts: Mapping[str, Any]
    folder: JobFolder

    @property
    def pipeline(self) -> Pipeline:
        return self.kind.build(self.params, self.context)


def prepare(spec: JobSpec) -> Prepared:
    """Resolve the model, settle the parameters, survey the manifest. Raises JobFileError or ManifestRefused."""
    try:
        kind = find_kind(spec.kind, spec.mode)
    except ValueError as error:
        raise JobFileError(str(error)) from error
    try:
        asked = kind.params.model_validate(spec.params)
    except ValidationError as error:
        raise JobFileError(explain(error, kind.params, "params")) from error
    spec = spec.model_copy(update={"mode": kind.mode})
    try:
        model = _model(spec, kind)
        params = kind.settle(asked, model)
    except (ValueError, FileNotFoundError) as error:
        raise JobFileError(str(error)) from error
    context = _context(spec, model)
    source = plan.survey(spec, kind.build(params, context))
    parts = fingerprint.parts(spec, params.model_dump(mode="json"), model.revision, source.digest)
    folder = JobFolder(storage.join(spec.output, f"{spec.name}-{fingerprint.digest(parts)[:12]}"))
    return Prepared(spec, kind, params, replace(context, folder=folder.uri), source, parts, folder)


def run(spec: JobSpec, *, new: bool = False, on_progress: Callable[[Point], None] | None = None) -> Summary:
    """Run a job, or go on with it; a finished one is left as it is. Blocks until it is done.

    Raises JobFileError, ManifestRefused, FingerprintMismatch (exit code 64), LeaseHeld (75), LeaseLost and Stalled (1).
    """
    job = prepare(spec)
    if _complete(job.folder):
        _track_finished(job)
        return _finished_summary(job.folder)
    if not new:
        _refuse_other_unfinished(job)
    with Lease(job.folder, spec.resources.lease_ttl_s) as lease:
        if _complete(job.folder):
            return _finished_summary(job.folder)
        record = job.folder.read_json("job.json") or _begin(job)
        return _drive(job, record, lease, on_progress)


def retry(folder: JobFolder, *, error_type: str | None = None, on_progress: Callable[[Point], None] | None = None) -> Summary:
    """Run the failed rows of a finished job as the next generation. Raises ManifestRefused where there are none."""
    record = folder.read_json("job.json")
    if record is None:
        raise JobFileError(f"{folder.uri} is no job folder: it has no job.json")
    job = reopen(folder, record)
    with Lease(folder, job.spec.resources.lease_ttl_s) as lease:
        record = folder.read_json("job.json")  # another retry may have ended since
        if _complete(folder):
            entry = plan.write_retry(folder, record, error_type)
            record["plans"].append(entry)
            folder.write_json("job.json", record)
        return _drive(job, record, lease, on_progress)


def reopen(folder: JobFolder, record: Mapping[str, Any], *, strict: bool = True) -> Prepared:
    """The job of an existing folder, with what it was begun with.

    Raises FingerprintMismatch if model or code have changed since, unless not `strict` (to look at it, not to run it).
    """
    spec = parse(record["spec"], "job.json")
    kind = find_kind(spec.kind, spec.mode)
    params = kind.params.model_validate(record["parts"]["params"])
    model = _model(spec, kind)
    now = {**record["parts"], "model_revision": model.revision, "code": fingerprint.code_version()}
    changes = fingerprint.difference(record["parts"], now)
    if changes and strict:
        raise FingerprintMismatch(f"{folder.uri} was made by another model or code ({'; '.join(changes)}); run it as a new job instead")
    context = replace(_context(spec, model), folder=folder.uri)
    return Prepared(spec, kind, params, context, plan.Source([], [], 0, 0, record["parts"]["manifest"]), record["parts"], folder)


def _model(spec: JobSpec, kind: Kind) -> Model:
    named = spec.model if isinstance(spec.model, str) else spec.model.model_dump(exclude_none=True)
    return kind.resolve(named, Accept(unlicensed=spec.accept_unlicensed_weights, noncommercial=spec.accept_noncommercial))


def _context(spec: JobSpec, model: Model) -> Context:
    return Context(
        model=model,
        job=spec.name,
        seed=spec.seed,
        media=spec.media,
        reader=storage.Reader(spec.resources.allowed_roots, spec.resources.max_file_bytes),
        max_pixels=spec.resources.max_pixels,
        micro_batch=spec.resources.micro_batch,
        cache_bytes=spec.resources.reference_cache_bytes,
    )


def _complete(folder: JobFolder) -> bool:
    """Sealed, with all its generations: a retry that was killed between plan and seal is not complete."""
    if not folder.finished:
        return False
    record, manifest = folder.read_json("job.json"), folder.read_json("_manifest.json")
    return record is not None and manifest is not None and len(record["plans"]) == len(manifest["generations"])


def _refuse_other_unfinished(job: Prepared) -> None:
    fs, output = storage.filesystem(job.spec.output)
    for path in map(str, fs.ls(output, detail=False) if fs.isdir(output) else ()):
        name = path.rstrip("/").rsplit("/", 1)[-1]
        stem, _, tail = name.rpartition("-")
        if stem != job.spec.name or len(tail) != 12 or name == job.folder.name:
            continue
        other = JobFolder(storage.join(job.spec.output, name))
        record = other.read_json("job.json")
        if record is not None and not _complete(other):
            lines = "\n  ".join(fingerprint.difference(record["parts"], job.parts))
            raise FingerprintMismatch(
                f"{other.uri} is unfinished and was begun with other settings:\n  {lines}\n"
                "Undo the change to go on with it, give this job another name, or pass --new to begin beside it."
            )


def _begin(job: Prepared) -> dict[str, Any]:
    reusable = find_reusable(job)
    entry = plan.write(job.spec, job.pipeline, job.source, job.folder, replicas_hint(job.spec), reusable)
    record = {
        "format": 1,
        "spec": job.spec.model_dump(mode="json"),
        "fingerprint": fingerprint.digest(job.parts),
        "parts": job.parts,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "plans": [entry],
        "attempts": [],
    }
    if reusable is not None:
        record["reuse"] = {"source": reusable.source, "differs": list(reusable.differs)}
        if reusable.differs:
            log.warning("no row of %s is reused: %s", reusable.source, "; ".join(reusable.differs))
    job.folder.write_json("job.json", record)
    return record


def find_reusable(job: Prepared) -> reuse.Reusable | None:
    """What the job may reuse. Raises JobFileError where that can't be: a job that makes something of all its rows needs all of them."""
    if job.spec.reuse is not None and job.pipeline.finish is not None:
        raise JobFileError(
            "reuse: this job puts rows together once all have ended (such as paste_back), so it has to run them; leave it out"
        )
    return reuse.find(job.spec, job.parts, job.pipeline.rows.names, job.folder)


def replicas_hint(spec: JobSpec) -> int:
    """Replicas as far as they are known before a cluster is reached."""
    return spec.resources.replicas if isinstance(spec.resources.replicas, int) else 1


def choose_replicas(asked: int | str, rows: int, block_rows: int, gpus: float, gpus_each: float) -> int:
    """As asked; else as many as the GPUs carry and the blocks can feed, and one on a machine without GPU (it uses all cores)."""
    if isinstance(asked, int):
        return asked
    by_gpus = int(gpus / gpus_each) if gpus and gpus_each else 1
    return max(1, min(by_gpus, -(-rows // block_rows)))


def _drive(job: Prepared, record: dict[str, Any], lease: Lease, on_progress: Callable[[Point], None] | None) -> Summary:
    folder, generation, started = job.folder, len(record["plans"]) - 1, time.time()
    entry = record["plans"][generation]
    record["attempts"].append(
        {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "generation": generation,
            "engine": job.spec.engine,
            "driver": lease.owner,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
    )
    folder.write_json("job.json", record)
    if folder.finished:  # sealed without this generation
        folder.fs.rm_file(folder.join("_SUCCESS"))
    pipeline = job.pipeline
    tracker = Tracker(job.spec.tracking)
    tracker.start(folder, record, pipeline)
    try:
        ledger.clear_pending(folder, generation)
        watch = Watch(folder, generation, entry["rows"], started)
        before = watch.look()
        if before.done < entry["rows"]:
            _execute(job, pipeline, generation, record, lease, watch, tracker, on_progress)
        lease.check()
        extra = dict(pipeline.finish(_finished_rows(folder))) if pipeline.finish is not None else {}
        tally = finalize.seal(folder)
    except BaseException as error:
        tracker.stop(error)
        raise
    point = watch.look()
    Log(folder).write(point, job.spec.engine, finished=True)
    if on_progress is not None:
        on_progress(point)
    record["ran"] = {**record.get("ran", {}), **_what_ran(folder)}
    folder.write_json("job.json", record)
    _tidy(folder)
    summary = Summary(
        folder=folder.uri,
        planned=tally.planned,
        ok=tally.ok,
        failed=tally.failed,
        executed=point.done - before.done,
        rejected=record["plans"][0]["rejected"],
        reused=record["plans"][0].get("reused", 0),
        generation=generation,
        seconds=time.time() - started,
        rows_per_s=point.rows_per_s,
        first_block_s=point.first_block_s,
        review=_review(job, pipeline),
        tracking=None,
    )
    tracker.finish({**_as_dict(summary), **extra})
    return replace(summary, tracking=tracker.describe())


def _execute(
    job: Prepared,
    pipeline: Pipeline,
    generation: int,
    record: dict[str, Any],
    lease: Lease,
    watch: Watch,
    tracker: Tracker,
    on_progress: Callable[[Point], None] | None,
) -> None:
    """Run the engine in a thread and watch it: progress, lease, stall."""
    resources, stop, errors = job.spec.resources, threading.Event(), list[BaseException]()
    entry = record["plans"][generation]
    on_ray = job.spec.engine == "ray"
    ours = ray_engine.start(resources) if on_ray else False
    gpus = ray_engine.capacity(resources)[1] if on_ray else 0.0
    gpus_each = resources.gpus_per_replica or max((s.gpus for s in pipeline.stages), default=1.0)
    work = Assignment(
        folder=job.folder,
        pipeline=pipeline,
        generation=generation,
        driver=lease.owner,
        block_rows=int(entry["block_rows"]),
        replicas=choose_replicas(resources.replicas, int(entry["rows"]), int(entry["block_rows"]), gpus, gpus_each),
        resources=resources,
    )
    record["attempts"][-1]["replicas"] = work.replicas
    job.folder.write_json("job.json", record)

    def engine() -> None:
        try:
            (ray_engine.run if on_ray else inline.run)(work, stop)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=engine, name="engine", daemon=True)
    points = Log(job.folder)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_LOOK_EVERY_S)
            lease.check()
            point = watch.look()
            if points.write(point, job.spec.engine):
                tracker.progress(point.as_dict())
            if on_progress is not None:
                on_progress(point)
            if time.monotonic() - watch.changed > resources.stall_timeout_s:
                raise Stalled(
                    f"{job.folder.uri}: no row has ended for {resources.stall_timeout_s:.0f} s; stopped, run the same command to go on"
                )
    finally:
        stop.set()
        if ours:
            ray_engine.stop()
        thread.join(10)
    if errors:
        raise errors[0]


def _finished_rows(folder: JobFolder) -> Iterator[dict[str, Any]]:
    """Every row that is ok, inputs and outputs together, in no order; one data file in memory at a time."""
    for generation in folder.generations():
        for name in folder.committed_files(generation):
            if "/status=ok/" not in name:
                continue
            outputs = folder.read_table([name])
            assert outputs is not None
            inputs = {row["row_id"]: row for row in folder.planned_rows(generation, outputs["row_id"]).to_pylist()}
            yield from ({**inputs[row["row_id"]], **row} for row in outputs.to_pylist())


def _review(job: Prepared, pipeline: Pipeline) -> str | None:
    """The review page; a job that is sealed has ended well even where its page can't be written."""
    try:
        return write_review(job.folder, pipeline.shown, reader=job.context.reader)
    except Exception as error:
        log.warning(
            "the review page could not be written (%s: %s); `calotype review %s` tries again", type(error).__name__, error, job.folder.uri
        )
        return None


def _what_ran(folder: JobFolder) -> dict[str, str]:
    """What the replicas said of themselves, such as the attention backend they chose; differing answers are all named."""
    found: dict[str, set[str]] = {}
    for name in folder.files("attempts", "replicas", suffix=".json"):
        for key, value in (folder.read_json(name) or {}).get("facts", {}).items():
            found.setdefault(key, set()).add(str(value))
    return {key: ", ".join(sorted(values)) for key, values in found.items()}


def _tidy(folder: JobFolder) -> None:
    """Remove what only a running job needs."""
    if folder.exists("attempts"):
        folder.fs.rm(folder.join("attempts"), recursive=True)


def _track_finished(job: Prepared) -> None:
    """A tracking server that was down when the job ended is caught up when the same command is given again."""
    record = job.folder.read_json("job.json")
    tracker = Tracker(job.spec.tracking)
    tracker.start(job.folder, record, job.pipeline)
    tracker.finish(_as_dict(_finished_summary(job.folder)))


def _finished_summary(folder: JobFolder) -> Summary:
    manifest, record, progress = folder.read_json("_manifest.json"), folder.read_json("job.json"), folder.read_json("progress.json") or {}
    return Summary(
        folder=folder.uri,
        planned=manifest["rows"],
        ok=manifest["ok"],
        failed=manifest["failed"],
        executed=0,
        rejected=record["plans"][0]["rejected"],
        reused=record["plans"][0].get("reused", 0),
        generation=len(record["plans"]) - 1,
        seconds=0.0,
        rows_per_s=float(progress.get("rows_per_s", 0.0)),
        first_block_s=None,
        review=folder.join_uri("review/index.html") if folder.exists("review/index.html") else None,
        tracking=None,
    )


def _as_dict(summary: Summary) -> dict[str, Any]:
    return {k: getattr(summary, k) for k in summary.__dataclass_fields__}
