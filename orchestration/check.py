"""The dry run: is the job sound, and what will it take, measured on a few of its rows in a scratch folder."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from orchestration import plan
from orchestration.engines.assignment import Assignment
from orchestration.folder import JobFolder
from orchestration.job import JobSpec
from orchestration.lease import Lease
from orchestration.run import Prepared, find_reusable, prepare
from workers import storage
from workers.guard import Guarded, committed

BLOCK_SECONDS = 20.0  # work at risk in a crash is 2-3 blocks a replica
RAY_START_S = 15.0  # measured: cluster, imports, first block (docs/benchmarks.md)


@dataclass(frozen=True)
class Report:
    """What a job would do. `missing`: named files that are not there, of those looked at; times are predictions from the measured rows."""

    rows: int
    reused: int  # rows besides these that need not run again
    rejected_files: int
    looked_at: int
    missing: Sequence[str]
    measured_rows: int
    measured_failed: Sequence[str]
    load_s: float
    row_ms: float
    rows_per_s: float
    replicas: int
    block_rows: int
    seconds: float
    cost: float | None
    folder: str

    @property
    def runnable(self) -> bool:
        """False if not one measured row ended well: something is wrong with all of them."""
        return self.measured_rows == 0 or len(self.measured_failed) < self.measured_rows

    def lines(self) -> list[str]:
        """The report for a person."""
        found = [
            f"job       {self.folder}",
            f"rows      {self.rows}" + (f" ({self.rejected_files} manifest files can't be read)" if self.rejected_files else ""),
            *([f"reused    {self.reused} rows"] if self.reused else []),
            f"files     {len(self.missing)} of {self.looked_at} named files are missing"
            + (": " + ", ".join(self.missing[:5]) if self.missing else ""),
            f"measured  {self.measured_rows} rows: {self.row_ms:.1f} ms a row after {self.load_s:.1f} s of loading",
        ]
        found += [f"          failed: {text}" for text in self.measured_failed[:5]]
        found += [
            f"advice    resources.replicas: {self.replicas}, resources.block_rows: {self.block_rows}",
            f"time      about {_duration(self.seconds)}" + ("" if self.cost is None else f", cost about {self.cost:.2f}"),
        ]
        return found


def check(spec: JobSpec, rows: int = 16) -> Report:
    """Survey the manifest, look for missing files, run a sample. Raises what `run` would raise before it starts; writes nothing to the output."""
    job = prepare(spec)
    with tempfile.TemporaryDirectory(prefix="calotype-check-") as scratch:
        folder = JobFolder(storage.join(scratch, "check-000000000000"))
        entry = plan.write(job.spec, job.pipeline, job.source, folder, 1, find_reusable(job))
        looked_at, missing = _missing_files(job, folder)
        measured = _measure(job, scratch, rows)
    cores = os.cpu_count() or 1
    replicas = (
        spec.resources.replicas if isinstance(spec.resources.replicas, int) else _advise_replicas(entry["rows"], measured.row_ms, cores)
    )
    rows_per_s = 1000 / measured.row_ms if measured.row_ms else 0.0
    seconds = (
        measured.load_s
        + entry["rows"] * measured.row_ms / 1000 / max(1, min(replicas, cores))
        + (RAY_START_S if spec.engine == "ray" else 0)
    )
    price = spec.resources.price_per_hour
    return Report(
        rows=entry["rows"],
        reused=entry["reused"],
        rejected_files=entry["rejected"],
        looked_at=looked_at,
        missing=missing,
        measured_rows=measured.rows,
        measured_failed=measured.failed,
        load_s=measured.load_s,
        row_ms=measured.row_ms,
        rows_per_s=rows_per_s,
        replicas=replicas,
        block_rows=advise_block_rows(rows_per_s, entry["rows"], replicas),
        seconds=seconds,
        cost=None if price is None else price * replicas * seconds / 3600,
        folder=job.folder.uri,
    )


def advise_block_rows(rows_per_s: float, rows: int, replicas: int) -> int:
    """20 s of work, between 8 and 4096 rows, and at least four blocks a replica."""
    return max(1, min(max(8, min(int(BLOCK_SECONDS * rows_per_s), 4096)), max(1, math.ceil(rows / (4 * replicas)))))


def _advise_replicas(rows: int, row_ms: float, cores: int) -> int:
    """A second process on this machine pays once the work is long against its start; a model of one process uses all cores by itself."""
    return cores if rows * row_ms / 1000 > 120 * cores else 1


@dataclass(frozen=True)
class _Measured:
    rows: int
    failed: Sequence[str]
    load_s: float
    row_ms: float


def _measure(job: Prepared, scratch: str, rows: int) -> _Measured:
    """Load the stages once, run half of the rows to warm up, time the other half."""
    folder = JobFolder(storage.join(scratch, "sample-000000000000"))
    spec = job.spec.model_copy(update={"limit": min(rows, job.spec.limit or rows)})
    pipeline = job.kind.build(job.params, replace(job.context, folder=folder.uri))
    plan.write(spec, pipeline, job.source, folder, 1)
    table = folder.planned(0)
    with Lease(folder, 3600) as lease:
        work = Assignment(folder, pipeline, 0, lease.owner, block_rows=rows, replicas=1, resources=spec.resources)
        started = time.perf_counter()
        stages = [Guarded(stage, work.post(separate_process=False)) for stage in pipeline.stages]
        load_s = time.perf_counter() - started
        warm = len(table) // 2
        parts = [part for part in (table.slice(0, warm), table.slice(warm)) if len(part)]
        results, seconds = [], 0.0
        for part in parts:
            started = time.perf_counter()
            for stage in stages:
                part = stage(part)
            seconds = time.perf_counter() - started
            results.append(committed(part, pipeline.committed))
    done = pa.concat_tables(results)
    failed = done.filter(pc.equal(done["status"], "failed"))  # pyright: ignore[reportAttributeAccessIssue]
    texts = [f"{r['row_id']}: {r['error_type']}: {r['error']}" for r in failed.to_pylist()]
    return _Measured(len(done), texts, load_s, 1000 * seconds / len(results[-1]))


def _missing_files(job: Prepared, folder: JobFolder, most: int = 500) -> tuple[int, list[str]]:
    table = folder.planned(0).slice(0, most)
    named: dict[str, None] = {}
    for column in table.column_names:
        if not column.endswith(("_uri", "_uris")):
            continue
        values = table[column].combine_chunks()
        flat = values.flatten() if pa.types.is_list(values.type) else values
        named.update(dict.fromkeys(v for v in flat.to_pylist() if v is not None))
    missing = []
    for uri in named:
        try:
            job.context.reader.check(uri)
            fs, path = storage.filesystem(uri)
            if not fs.exists(path):
                missing.append(uri)
        except PermissionError as error:
            missing.append(str(error))
    return len(named), missing


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
