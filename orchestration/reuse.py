"""Rows that need not run again: they were ok in another job under the same content, parameters, model and code.

A reused row's result stays where it is; `plan/reused.parquet` says in which job folder. A file that was replaced under the same name is not
noticed: content is what stands in the manifest.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestration import fingerprint
from orchestration.folder import JobFolder, jobs
from orchestration.job import JobFileError, JobSpec
from workers import ids

_MAY_DIFFER = ("manifest", "rows")  # of a fingerprint's parts: which rows there are is compared row by row
_FIRED = re.compile(r"-\d{8}T\d{6}Z$|-\d{4}-\d{2}-\d{2}$")  # a fire time or {date} at the end of a job's name


@dataclass(frozen=True)
class Reusable:
    """Rows of other jobs that may be reused, N of them, sorted by the hash of their id.

    `source`: the folder that was asked for; `folders`: where results lie, `folder` (N,) their numbers; `content` (N,) uint64.
    `differs`: why nothing is reused, as lines `key: then -> now`.
    """

    source: str | None
    columns: Sequence[str]
    folders: Sequence[str] = ()
    ids: np.ndarray = field(default_factory=lambda: np.array([], np.uint64))
    content: np.ndarray = field(default_factory=lambda: np.array([], np.uint64))
    folder: np.ndarray = field(default_factory=lambda: np.array([], np.int32))
    differs: Sequence[str] = ()

    def places(self, table: pa.Table) -> np.ndarray:
        """For each row of a manifest the number of the folder that holds its result, -1 for a row that has to run."""
        found = np.full(len(table), -1, np.int32)
        if not len(self.ids):
            return found
        mine = ids.hashes(table["row_id"])
        at = np.minimum(np.searchsorted(self.ids, mine), len(self.ids) - 1)
        known = np.flatnonzero(self.ids[at] == mine)
        same = known[contents(table.take(pa.array(known)), self.columns) == self.content[at[known]]]
        found[same] = self.folder[at[same]]
        return found


def find(spec: JobSpec, parts: Mapping[str, Any], columns: Sequence[str], folder: JobFolder) -> Reusable | None:
    """What the job that `spec.reuse` names offers to the job in `folder`; None where nothing is asked for.

    `parts`: the fingerprint's; `columns`: those that the kind knows. Raises JobFileError for a folder that is no finished job of this kind;
    `last` may find none.
    """
    if spec.reuse is None:
        return None
    other = last(spec, folder) if spec.reuse == "last" else JobFolder(spec.reuse)
    if other is None:
        return Reusable(None, columns)
    record = other.read_json("job.json")
    if record is None or not other.finished:
        raise JobFileError(f"reuse: {other.uri} is no finished job; name one, or last")
    then, now = ({k: v for k, v in p.items() if k not in _MAY_DIFFER} for p in (record["parts"], parts))
    differs = fingerprint.difference(then, now)
    if differs:
        return Reusable(other.uri, columns, differs=differs)
    return _gathered(other, columns)


def last(spec: JobSpec, folder: JobFolder, *, before: JobFolder | None = None) -> JobFolder | None:
    """The newest finished job below the same output whose name is the same but for a fire time or date at its end, of the same kind.

    Never `folder` itself; with `before`, only those that had been finished when that job was begun.
    """
    limit = before.read_json("job.json")["created"] if before is not None else None
    base, found = base_name(spec.name), list[tuple[str, str]]()
    for other in jobs(spec.output):
        if other.name == folder.name or base_name(other.name.rpartition("-")[0]) != base or not other.finished:
            continue
        record, manifest = other.read_json("job.json"), other.read_json("_manifest.json")
        if manifest is not None and record["spec"]["kind"] == spec.kind and (limit is None or manifest["finished"] <= limit):
            found.append((manifest["finished"], other.uri))
    return JobFolder(max(found)[1]) if found else None


def base_name(name: str) -> str:
    """A job's name without the fire time or the date that its schedule put at its end."""
    return _FIRED.sub("", name)


def contents(table: pa.Table, columns: Sequence[str]) -> np.ndarray:
    """uint64 (N,): a hash of what stands in `columns` of each row; a null is as good as no column."""
    present = table.select([c for c in columns if c in table.column_names])
    found = np.empty(len(table), np.uint64)
    at = 0
    for batch in present.to_batches(1024):
        for row in batch.to_pylist():
            known = {key: value for key, value in row.items() if value is not None}
            text = json.dumps(known, sort_keys=True, default=_as_text)
            found[at] = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
            at += 1
    return found


def _gathered(source: JobFolder, columns: Sequence[str]) -> Reusable:
    """The rows that are ok in a folder, and those that it had reused itself, from where they lie; none of a folder that is gone."""
    places: list[tuple[JobFolder, np.ndarray]] = [(source, _ok(source))]
    places += [(JobFolder(uri), ids.hashes(row_ids)) for uri, row_ids in source.reused().items()]
    places = [(place, wanted) for place, wanted in places if place.finished]
    hashes, content, folder = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
    for number, (place, wanted) in enumerate(places):
        for table in _planned(place):
            mine = ids.hashes(table["row_id"])
            chosen = np.flatnonzero(np.isin(mine, wanted))
            hashes.append(mine[chosen])
            content.append(contents(table.take(pa.array(chosen)), columns))
            folder.append(np.full(len(chosen), number, np.int32))
    if not hashes:
        return Reusable(source.uri, columns)
    known = np.concatenate(hashes)
    order = np.argsort(known, kind="stable")
    uris = [place.uri for place, _ in places]
    return Reusable(source.uri, columns, uris, known[order], np.concatenate(content)[order], np.concatenate(folder)[order])


def _ok(folder: JobFolder) -> np.ndarray:
    results = folder.results([])
    return ids.hashes(results.filter(pc.equal(results["status"], "ok"))["row_id"])  # pyright: ignore[reportAttributeAccessIssue]


def _planned(folder: JobFolder) -> Iterator[pa.Table]:
    for name in folder.files("plan", "gen-0"):
        table = folder.read_table([name])
        assert table is not None
        yield table


def _as_text(value: Any) -> str:
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)
