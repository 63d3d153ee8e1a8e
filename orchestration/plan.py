"""The plan: the frozen, validated copy of the manifest that a job runs. pyarrow only; memory does not grow with the manifest.

Pass 1 streams the manifest, checks every id, filters, and spreads the rows over spool files by a hash of the columns that bring rows which
share work together. Pass 2 sorts each spool file by itself and writes it as plan parts, with row groups of one block.
"""

from __future__ import annotations

import hashlib
import logging
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from orchestration.folder import REUSED, JobFolder
from orchestration.job import JobSpec
from orchestration.reuse import Reusable
from pipelines.pipeline import Pipeline
from workers import ids, storage

log = logging.getLogger(__name__)

MANIFEST_COMMANDS = {f"weights/{mode}": mode for mode in ("identity", "sample", "invert")} | {"weights/edit": "edit-people"}
"""Which `calotype manifest` command writes for which mode; all others are called like their kind."""
_BATCH_ROWS = 16_384
_SPOOL_BYTES = 96 * 2**20
_LISTED = 20  # how many bad ids an error names


class ManifestRefused(ValueError):
    """The manifest can't be run as it is; nothing heavy was loaded and no row was run."""


@dataclass(frozen=True)
class Source:
    """A manifest's readable files, those that were rejected with the reason, and a digest of all of them."""

    uris: Sequence[str]
    rejected: Sequence[tuple[str, str]]
    rows: int
    bytes: int
    digest: str


def survey(spec: JobSpec, pipeline: Pipeline) -> Source:
    """Read the footers of the manifest's files, check their columns, digest their bytes.

    Raises ManifestRefused for no files, an unreadable file (unless on_bad_source is skip), missing or ill-typed columns.
    """
    names = _files(spec.manifest)
    if not names:
        command = MANIFEST_COMMANDS.get(f"{spec.kind}/{spec.mode}", spec.kind)
        raise ManifestRefused(f"no Parquet file at {spec.manifest}. `calotype manifest {command} ... -o {spec.manifest}` writes one.")
    good, rejected, rows, size, digest = list[str](), list[tuple[str, str]](), 0, 0, hashlib.sha256()
    for name in names:
        try:
            fs, path = storage.filesystem(name)
            with fs.open(path, "rb") as file:
                footer = pq.ParquetFile(file)
                _check_columns(footer.schema_arrow, pipeline, name)
                rows += footer.metadata.num_rows
                size += sum(footer.metadata.row_group(i).total_byte_size for i in range(footer.metadata.num_row_groups))
                for i in range(footer.metadata.num_row_groups if spec.on_bad_source == "skip" else 0):
                    footer.read_row_group(i, columns=["row_id"])  # damage behind an intact footer
            with fs.open(path, "rb") as file:
                while chunk := file.read(8 * 2**20):
                    assert isinstance(chunk, bytes)
                    digest.update(chunk)
            good.append(name)
        except (pa.ArrowInvalid, OSError) as error:
            if spec.on_bad_source == "fail":
                raise ManifestRefused(
                    f"{name} can't be read as Parquet ({error}). Write it again, or set `on_bad_source: skip` to run the others."
                ) from error
            rejected.append((name, f"{type(error).__name__}: {error}"))
            digest.update(f"rejected {name}".encode())
    if not good:
        raise ManifestRefused(f"none of the {len(names)} files of {spec.manifest} can be read")
    return Source(good, rejected, rows, size, digest.hexdigest())


def _files(manifest: str) -> list[str]:
    """Sorted paths or URIs of a manifest: a file, the Parquet files below a folder, or what a pattern matches."""
    fs, path = storage.filesystem(manifest)
    if fs.isfile(path):  # also where its name looks like a pattern
        found = [path]
    elif fs.isdir(path):
        found = sorted(n for n in map(str, fs.find(path)) if n.endswith(".parquet"))
    else:
        found = sorted(map(str, fs.glob(path))) if any(c in path for c in "*?[") else []
    scheme = storage.scheme(manifest)
    return found if scheme == "file" else [f"{scheme}://{name}" for name in found]


def write(
    spec: JobSpec, pipeline: Pipeline, source: Source, folder: JobFolder, replicas: int, reusable: Reusable | None = None
) -> dict[str, Any]:
    """Write generation 0's plan. Returns what job.json keeps of it: rows, block_rows, parts, rejected, reused.

    Rows that `reusable` holds are left out, and listed in plan/reused.parquet. Raises ManifestRefused for null, duplicate or over-long ids
    (listed), and where there is no row at all.
    """
    _clear(folder, "plan")
    with tempfile.TemporaryDirectory(prefix="calotype-plan-") as spool:
        spools, reused = _spread(spec, pipeline, source, Path(spool), reusable)
        rows = sum(pq.read_metadata(s).num_rows for s in spools)
        if rows == 0 and not len(reused):
            raise ManifestRefused(f"{spec.manifest} holds no row to run (rows in the files: {source.rows}; see where, limit, sample)")
        block_rows = choose_block_rows(rows, replicas, spec.resources.block_rows, source.bytes / max(source.rows, 1))
        parts = _write_parts(folder, 0, (_sorted(pq.read_table(s), pipeline.sort_by) for s in spools), rows, block_rows)
    if source.rejected:
        table = pa.table({"file": [f for f, _ in source.rejected], "reason": [r for _, r in source.rejected]})
        _write_parquet(folder, "plan/rejected.parquet", table)
    if len(reused):
        _write_parquet(folder, REUSED, reused)
    return {"rows": rows, "block_rows": block_rows, "files": parts, "rejected": len(source.rejected), "reused": len(reused)}


def write_retry(folder: JobFolder, job: Mapping[str, Any], error_type: str | None) -> dict[str, Any]:
    """The next generation's plan: the rows whose last generation failed (with that error type). Raises ManifestRefused where none did."""
    generation = len(job["plans"])
    results = folder.results(["row_id", "error_type"])
    failed = results.filter(pc.equal(results["status"], "failed"))  # pyright: ignore[reportAttributeAccessIssue]
    if error_type is not None:
        failed = failed.filter(pc.equal(failed["error_type"], error_type))  # pyright: ignore[reportAttributeAccessIssue]
    if not len(failed):
        raise ManifestRefused(
            f"{folder.uri}: no failed row" + (f" with error type {error_type}" if error_type else "") + ", nothing to retry"
        )
    wanted = pa.array(failed["row_id"].to_pylist(), pa.string())
    _clear(folder, f"plan/gen-{generation}")

    def tables() -> Iterator[pa.Table]:
        for name in folder.files("plan", "gen-0"):
            table = folder.read_table([name])
            assert table is not None
            yield table.filter(pc.is_in(table["row_id"], value_set=wanted))  # pyright: ignore[reportAttributeAccessIssue]

    block_rows = min(int(job["plans"][0]["block_rows"]), max(1, math.ceil(len(failed) / 4)))
    parts = _write_parts(folder, generation, tables(), len(failed), block_rows)
    return {"rows": len(failed), "block_rows": block_rows, "files": parts, "rejected": 0, "error_type": error_type}


def choose_block_rows(rows: int, replicas: int, asked: int | str, row_bytes: float = 0.0) -> int:
    """Rows committed together: as asked, else at least four blocks a replica, between 8 and 512 rows and at most 64 MB of input."""
    if isinstance(asked, int):
        return max(1, asked)
    by_bytes = int(min(64 * 2**20 / row_bytes, 512)) if row_bytes > 0 else 512
    return max(1, min(max(8, min(math.ceil(rows / (4 * replicas)), 512)), max(1, by_bytes)))


def _check_columns(schema: pa.Schema, pipeline: Pipeline, name: str) -> None:
    problems = []
    for field in pipeline.rows:
        index = schema.get_field_index(field.name)
        if index < 0:
            if not field.nullable:
                problems.append(f"column {field.name} ({field.type}) is missing")
        elif not _castable(schema.field(index).type, field.type):
            problems.append(f"column {field.name} is {schema.field(index).type}, needed is {field.type}")
    for group in pipeline.one_of:
        if not any(column in schema.names for column in group):
            problems.append(f"one of the columns {' or '.join(group)} is needed")
    if problems:
        raise ManifestRefused(f"{name}: " + "; ".join(problems))


def _castable(have: pa.DataType, want: pa.DataType) -> bool:
    try:
        pa.array([], have).cast(want)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return False
    return True


def _spread(spec: JobSpec, pipeline: Pipeline, source: Source, spool: Path, reusable: Reusable | None) -> tuple[list[Path], pa.Table]:
    """Spool files of the rows to run, and the list of those that need not: row_id, folder."""
    buckets = max(1, math.ceil(source.bytes / _SPOOL_BYTES), math.ceil(source.rows / 100_000))
    schema = _plan_schema(source, pipeline)
    writers = [pq.ParquetWriter(spool / f"{i:05}.parquet", schema) for i in range(buckets)]
    seen, nulls, long, taken = list[np.ndarray](), 0, list[str](), 0
    reused = [pa.table({"row_id": pa.array([], pa.string()), "folder": pa.array([], pa.string())})]
    try:
        for table in _batches(source, schema):
            nulls += table["row_id"].null_count
            if nulls:
                continue  # refused below, once all are counted
            long += ids.too_long(table["row_id"].to_pylist())
            table = _selected(table, spec)
            if spec.limit is not None:
                table = table.slice(0, max(0, spec.limit - taken))
            taken += len(table)
            seen.append(ids.hashes(table["row_id"]))
            if reusable is not None:
                place = reusable.places(table)
                there = [reusable.folders[i] for i in place[place >= 0]]
                reused.append(pa.table({"row_id": table["row_id"].filter(pa.array(place >= 0)), "folder": pa.array(there, pa.string())}))
                table = table.filter(pa.array(place < 0))
            bucket = _bucket(table, pipeline.sort_by, buckets)
            for i in np.unique(bucket):
                writers[int(i)].write_table(table.filter(pa.array(bucket == i)))
    finally:
        for writer in writers:
            writer.close()
    if nulls:
        raise ManifestRefused(f"{spec.manifest}: {nulls} rows have no row_id; every row needs its own")
    if long:
        raise ManifestRefused(f"{spec.manifest}: {len(long)} row ids are too long for a file name, such as {long[0][:80]}…; shorten them")
    double = ids.repeated(np.concatenate(seen)) if seen else np.array([], np.uint64)
    if len(double):
        listed = [spool / f"{i:05}.parquet" for i in range(buckets)]
        raise ManifestRefused(_name_duplicates(spec.manifest, listed, double, pa.concat_tables(reused)["row_id"].to_pylist()))
    return [spool / f"{i:05}.parquet" for i in range(buckets)], pa.concat_tables(reused).combine_chunks()


def _name_duplicates(manifest: str, spools: Sequence[Path], double: np.ndarray, reused: Sequence[str]) -> str:
    names: dict[str, int] = {}
    for column in (*(pq.read_table(path, columns=["row_id"])["row_id"].to_pylist() for path in spools), reused):
        for row_id, hashed in zip(column, ids.hashes(column), strict=True):
            if len(double) and hashed in double:
                names[row_id] = names.get(row_id, 0) + 1
    twice = sorted(row_id for row_id, count in names.items() if count > 1) or sorted(names)
    more = f" and {len(twice) - _LISTED} more" if len(twice) > _LISTED else ""
    return f"{manifest}: row_id must be unique; these are not: {', '.join(twice[:_LISTED])}{more}. Give every row its own id."


def _plan_schema(source: Source, pipeline: Pipeline) -> pa.Schema:
    known = {field.name: field.type for field in pipeline.rows}
    schemas = []
    for name in source.uris:
        fs, path = storage.filesystem(name)
        with fs.open(path, "rb") as file:
            schemas.append(pa.schema([pa.field(f.name, known.get(f.name, _decoded(f.type))) for f in pq.read_schema(file)]))
    try:
        schema = pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowTypeError as error:
        raise ManifestRefused(f"the files of the manifest do not fit together: {error}") from error
    extra = [name for name in schema.names if name not in known]
    if extra:
        log.info("columns carried along, unknown to this kind: %s", ", ".join(extra))
    return schema


def _decoded(have: pa.DataType) -> pa.DataType:
    return have.value_type if pa.types.is_dictionary(have) else have


def _batches(source: Source, schema: pa.Schema) -> Iterator[pa.Table]:
    for name in source.uris:
        fs, path = storage.filesystem(name)
        with fs.open(path, "rb") as file:
            reader = pq.ParquetFile(file)
            try:
                for batch in reader.iter_batches(_BATCH_ROWS):
                    yield _as_planned(pa.Table.from_batches([batch]), schema, name)
            except (pa.ArrowInvalid, OSError) as error:
                raise ManifestRefused(
                    f"{name} is damaged behind its footer ({error}); write it again, or set `on_bad_source: skip`"
                ) from error


def _as_planned(table: pa.Table, schema: pa.Schema, name: str) -> pa.Table:
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(len(table), field.type))
            continue
        try:
            columns.append(table[field.name].cast(field.type))
        except pa.ArrowInvalid as error:
            raise ManifestRefused(f"{name}: column {field.name} holds what is no {field.type}: {error}") from error
    return pa.table(columns, schema=schema)


def _selected(table: pa.Table, spec: JobSpec) -> pa.Table:
    for column, wanted in spec.where.items():
        if column not in table.column_names:
            raise ManifestRefused(f"where: the manifest has no column {column}; it has {', '.join(table.column_names)}")
        values = wanted if isinstance(wanted, list) else [wanted]
        try:
            table = table.filter(pc.is_in(table[column], value_set=pa.array(values, table[column].type)))  # pyright: ignore[reportAttributeAccessIssue]
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError) as error:
            raise ManifestRefused(f"where: {column} is {table[column].type}, and {wanted!r} does not fit: {error}") from error
    if spec.sample is not None:
        table = table.filter(pa.array(ids.hashes(table["row_id"]) < np.uint64(spec.sample * float(2**64 - 2**11))))
    return table


def _bucket(table: pa.Table, sort_by: Sequence[str], buckets: int) -> np.ndarray:
    if buckets == 1:
        return np.zeros(len(table), np.int64)
    keys = table["row_id"].cast(pa.string())
    columns = [c for c in sort_by if c in table.column_names]
    if columns:  # a row that belongs to nobody is spread by its own id: all of them in one file would be sorted in memory
        keys = pc.coalesce(table[columns[0]].cast(pa.string()), keys)  # pyright: ignore[reportAttributeAccessIssue]
    return (ids.hashes(keys) % np.uint64(buckets)).astype(np.int64)


def _sorted(table: pa.Table, sort_by: Sequence[str]) -> pa.Table:
    keys = [(c, "ascending") for c in (*sort_by, "row_id") if c in table.column_names]
    return table.sort_by(keys)


def _write_parts(folder: JobFolder, generation: int, tables: Iterator[pa.Table], rows: int, block_rows: int) -> list[str]:
    blocks_a_part = max(1, min(math.ceil(math.ceil(rows / block_rows) / 8), max(1, 65_536 // block_rows)))
    part_rows = blocks_a_part * block_rows
    parts, waiting, schema = list[str](), list[pa.Table](), None

    def flush(final: bool) -> None:
        nonlocal waiting
        held = pa.concat_tables(waiting) if waiting else None
        while held is not None and len(held) >= (1 if final else part_rows):
            parts.append(f"plan/gen-{generation}/part-{len(parts):05}.parquet")
            _write_parquet(folder, parts[-1], held.slice(0, part_rows), row_group_size=block_rows)
            held = held.slice(part_rows)
        waiting = [] if held is None or not len(held) else [held]

    for table in tables:
        if len(table):
            waiting.append(table)
        schema = table.schema
        if sum(map(len, waiting)) >= part_rows:
            flush(final=False)
    flush(final=True)
    if not parts:  # all rows are reused: the generation is there, and empty
        assert schema is not None
        parts.append(f"plan/gen-{generation}/part-00000.parquet")
        _write_parquet(folder, parts[0], schema.empty_table())
    return parts


def _write_parquet(folder: JobFolder, name: str, table: pa.Table, **options: Any) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    storage.write_atomic(folder.fs, folder.join(name), sink.getvalue().to_pybytes())


def _clear(folder: JobFolder, name: str) -> None:
    if folder.exists(name):
        folder.fs.rm(folder.join(name), recursive=True)
