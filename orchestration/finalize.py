"""Sealing a job folder and checking a sealed one: plan ids == committed ids, nothing twice, every file as it was written."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestration import fingerprint, ledger
from orchestration.folder import REUSED, JobFolder, block_name
from workers import ids, storage

log = logging.getLogger(__name__)


class Incomplete(RuntimeError):
    """Rows are missing or unknown; the folder is not sealed. Running the same command again goes on."""


@dataclass(frozen=True)
class Tally:
    """Rows of the whole job by their last generation."""

    planned: int
    ok: int
    failed: int
    void: int = 0
    reused: int = 0  # of earlier jobs; not among the planned ones


@dataclass
class _Rows:
    """Row hashes of a generation's committed files, with the file and the moment of commit of each."""

    hashes: list[np.ndarray] = field(default_factory=list)
    file: list[np.ndarray] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    commit: list[float] = field(default_factory=list)

    def add(self, name: str, hashes: np.ndarray, commit: float) -> None:
        self.file.append(np.full(len(hashes), len(self.names), np.int32))
        self.hashes.append(hashes)
        self.names.append(name)
        self.commit.append(commit)

    def joined(self) -> tuple[np.ndarray, np.ndarray]:
        if not self.hashes:
            return np.array([], np.uint64), np.array([], np.int32)
        return np.concatenate(self.hashes), np.concatenate(self.file)


def seal(folder: JobFolder) -> Tally:
    """Check what is committed against the plan, list it in _manifest.json, write _SUCCESS. Idempotent.

    A row that two drivers committed counts once, as it was committed first; the other copy is listed as void. Raises Incomplete when a planned
    row is missing or an unplanned one is there.
    """
    generations, void, unlisted = [], list[dict[str, Any]](), 0
    status = _Status()
    for generation in folder.generations():
        planned = np.sort(ledger.planned(folder, generation))
        rows = _committed_rows(folder, generation)
        hashes, file = rows.joined()
        again = _later_copies(hashes, file, rows.commit)
        if len(again):
            void += _void(folder, rows, file, again)
            unlisted += len(again)
            keep = np.ones(len(hashes), bool)
            keep[again] = False
            hashes, file = hashes[keep], file[keep]
        have = np.sort(hashes)
        missing, unknown = np.setdiff1d(planned, have), np.setdiff1d(have, planned)
        if len(missing) or len(unknown):
            raise Incomplete(
                f"{folder.uri}: generation {generation} has {len(missing)} planned rows uncommitted and {len(unknown)} rows unplanned; not sealed"
            )
        failed_files = np.array(["/status=failed/" in name for name in rows.names], bool)
        status.add(hashes, failed_files[file] if len(file) else np.array([], bool))
        with ThreadPoolExecutor(8) as pool:
            files = list(pool.map(lambda name: _describe(folder, name), rows.names))
            plan = list(pool.map(lambda name: _describe(folder, name), folder.files("plan", f"gen-{generation}")))
        generations.append({"generation": generation, "planned": len(planned), "files": files, "plan": plan})
    reused = [_describe(folder, REUSED)] if folder.exists(REUSED) else []
    tally = Tally(status.planned, *status.counts(), void=unlisted, reused=sum(entry["rows"] for entry in reused))
    if void:
        log.warning("%s: %d rows had been committed by two drivers; the first copy of each counts", folder.name, unlisted)
    manifest = {
        "format": 1,
        "rows": tally.planned,
        "ok": tally.ok,
        "failed": tally.failed,
        "reused": reused,
        "generations": generations,
        "void": void,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    folder.write_json("_manifest.json", manifest)
    digest = hashlib.sha256(folder.read_bytes("_manifest.json")).hexdigest()
    storage.write_atomic(folder.fs, folder.join("_SUCCESS"), (digest + "\n").encode())
    return tally


class _Status:
    """The status of each row in its last generation, as arrays."""

    def __init__(self) -> None:
        self._hashes, self._failed, self.planned = np.array([], np.uint64), np.array([], bool), 0

    def add(self, hashes: np.ndarray, failed: np.ndarray) -> None:
        if not self.planned:
            self.planned = len(hashes)
        order = np.argsort(hashes)
        hashes, failed = hashes[order], failed[order]
        old = ~np.isin(self._hashes, hashes)
        self._hashes = np.concatenate([self._hashes[old], hashes])
        self._failed = np.concatenate([self._failed[old], failed])

    def counts(self) -> tuple[int, int]:
        failed = int(self._failed.sum())
        return len(self._failed) - failed, failed


def _committed_rows(folder: JobFolder, generation: int) -> _Rows:
    commit = {}
    for name in folder.ledger_files(generation):
        info = folder.fs.info(folder.join(name))
        moment = info.get("created") or info.get("LastModified") or 0
        commit[block_name(name)] = moment.timestamp() if isinstance(moment, datetime) else float(moment)
    rows = _Rows()
    for name in folder.files("data", f"gen-{generation}"):
        if block_name(name) in commit:
            table = folder.read_table([name], ["row_id"])
            assert table is not None
            rows.add(name, ids.hashes(table["row_id"]), commit[block_name(name)])
    return rows


def _later_copies(hashes: np.ndarray, file: np.ndarray, commit: list[float]) -> np.ndarray:
    """Positions of rows that occur again: all but the copy that was committed first (at one moment: the later file)."""
    if len(hashes) == len(np.unique(hashes)):
        return np.array([], np.int64)
    moments = np.array(commit)[file]
    order = np.lexsort((-file, moments, hashes))
    ordered = hashes[order]
    return order[1:][ordered[1:] == ordered[:-1]]


def _void(folder: JobFolder, rows: _Rows, file: np.ndarray, again: np.ndarray) -> list[dict[str, Any]]:
    found = []
    starts = np.concatenate([[0], np.cumsum([len(h) for h in rows.hashes])])
    for number in np.unique(file[again]):
        table = folder.read_table([rows.names[number]], ["row_id"])
        assert table is not None
        positions = again[file[again] == number] - starts[number]
        found.append({"path": rows.names[number], "row_ids": table["row_id"].take(pa.array(np.sort(positions))).to_pylist()})
    return found


def _describe(folder: JobFolder, name: str) -> dict[str, Any]:
    data = folder.read_bytes(name)
    rows = int(pq.read_metadata(pa.BufferReader(data)).num_rows)
    return {"path": name, "rows": rows, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def verify(folder: JobFolder) -> list[str]:
    """What is wrong with a finished folder, from the folder alone; empty when all is well.

    Checks the seal, the fingerprint, every listed file's size and digest, that plan and data hold the same ids once each, the counts, and that
    every picture that an `ok` row names is there with the digest it had when it was made.
    """
    job, manifest = folder.read_json("job.json"), folder.read_json("_manifest.json")
    if job is None:
        return [f"{folder.uri} is no job folder: job.json is missing"]
    if not folder.exists("_SUCCESS") or manifest is None:
        return [f"{folder.uri} is not finished: run the same command again"]
    problems = []
    sealed = folder.read_bytes("_SUCCESS").decode().strip()
    if sealed != hashlib.sha256(folder.read_bytes("_manifest.json")).hexdigest():
        problems.append("_manifest.json is not the one that was sealed")
    if fingerprint.digest(job["parts"]) != job["fingerprint"] or not folder.name.endswith(job["fingerprint"][:12]):
        problems.append("job.json does not match the folder's fingerprint")
    if [g["generation"] for g in manifest["generations"]] != list(range(len(job["plans"]))):
        problems.append("a generation of job.json is missing from _manifest.json")
    void = {(v["path"], row_id) for v in manifest["void"] for row_id in v["row_ids"]}
    status = _Status()
    for generation in manifest["generations"]:
        listed = [*generation["files"], *generation["plan"]]
        broken = [problem for entry in listed for problem in _check_file(folder, entry)]
        problems += broken
        if broken:
            continue
        planned = np.sort(np.concatenate([_read_hashes(folder, entry["path"], void) for entry in generation["plan"]]))
        parts = [(_read_hashes(folder, e["path"], void), "/status=failed/" in e["path"]) for e in generation["files"]]
        have = np.concatenate([p for p, _ in parts]) if parts else np.array([], np.uint64)
        failed = np.concatenate([np.full(len(p), f) for p, f in parts]) if parts else np.array([], bool)
        if len(ids.repeated(have)):
            problems.append(f"generation {generation['generation']}: {len(ids.repeated(have))} rows are there twice")
        lost, more = len(np.setdiff1d(planned, have)), len(np.setdiff1d(have, planned))
        if lost or more:
            problems.append(f"generation {generation['generation']}: {lost} planned rows are missing, {more} rows were never planned")
        status.add(have, failed)
        for entry in generation["files"]:
            if "/status=ok/" in entry["path"]:
                problems += list(_check_artifacts(folder, entry["path"], void))
    problems += [p for entry in (*_photographs(folder), *manifest.get("reused", ())) for p in _check_file(folder, entry)]
    problems += _check_reused(folder)
    ok, failed_rows = status.counts()
    if not problems and (ok, failed_rows, status.planned) != (manifest["ok"], manifest["failed"], manifest["rows"]):
        problems.append(f"_manifest.json counts {manifest['ok']} ok and {manifest['failed']} failed; the data holds {ok} and {failed_rows}")
    return problems


def _check_reused(folder: JobFolder) -> Iterator[str]:
    """Reused rows must be ok where they are said to lie."""
    for uri, row_ids in folder.reused().items():
        other = JobFolder(uri)
        if not other.finished:
            yield f"the results of {len(row_ids)} reused rows are gone: {uri} is no finished job"
            continue
        status = other.results([])
        ok = {row_id for row_id, s in zip(status["row_id"].to_pylist(), status["status"].to_pylist(), strict=True) if s == "ok"}
        if missing := set(row_ids) - ok:
            yield f"{len(missing)} reused rows, such as {min(missing)}, are not ok in {uri}"


def _photographs(folder: JobFolder) -> list[dict[str, Any]]:
    """Whole photographs that a restore job made of its faces, as its own index lists them."""
    table = folder.read_table(["photographs/index.parquet"]) if folder.exists("photographs/index.parquet") else None
    rows = table.to_pylist() if table is not None else []
    return [{"path": row["photograph_uri"], "sha256": row["sha256"]} for row in rows if row["photograph_uri"] is not None]


def _check_file(folder: JobFolder, entry: dict[str, Any]) -> Iterator[str]:
    try:
        data = folder.read_bytes(entry["path"])
    except FileNotFoundError:
        yield f"{entry['path']} is missing"
        return
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        yield f"{entry['path']} has been changed"


def _read_hashes(folder: JobFolder, name: str, void: set[tuple[str, str]]) -> np.ndarray:
    table = folder.read_table([name], ["row_id"])
    assert table is not None
    column = table["row_id"].to_pylist()
    return ids.hashes([i for i in column if (name, i) not in void] if void else column)


def _check_artifacts(folder: JobFolder, name: str, void: set[tuple[str, str]]) -> Iterator[str]:
    """Pictures that rows name one by one (`image_uri`, `image_sha256`) or as a list (`image_uris`, `image_sha256s`)."""
    table = folder.read_table([name])
    assert table is not None
    for column in table.column_names:
        digests = column.replace("_uri", "_sha256")
        if not column.endswith(("_uri", "_uris")) or digests not in table.column_names:
            continue
        entries = [
            {"path": uri, "sha256": digest}
            for row_id, uris, sha256s in zip(*(table[c].to_pylist() for c in ("row_id", column, digests)), strict=True)
            if uris is not None and (name, row_id) not in void
            for uri, digest in zip(*([uris], [sha256s]) if isinstance(uris, str) else (uris, sha256s), strict=True)
        ]
        with ThreadPoolExecutor(8) as pool:
            for found in pool.map(lambda entry: list(_check_file(folder, entry)), entries):
                yield from found
