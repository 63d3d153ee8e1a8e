"""The rows of a job folder, for a page: numbers of every row in one pass, everything of the rows that are shown in another.

Memory does not grow with what rows hold: the first pass keeps a few numbers a row, the second goes through the files one by one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestration.folder import JobFolder
from workers import ids

_BATCH_ROWS = 256
_PATTERNS = 20  # different error texts kept of one error type
_EXAMPLES = 5  # row ids kept of one error text
_VARYING = re.compile(r"\S*[/\\]\S*|0x[0-9a-f]+|\d+(?:\.\d+)?")


@dataclass
class Pattern:
    """Error texts that differ only in paths and numbers: how many, one of them as it was, some row ids."""

    count: int = 0
    example: str = ""
    row_ids: list[str] = field(default_factory=list)


@dataclass
class FailureGroup:
    """Failed rows of one error type in one stage."""

    error_type: str
    stage: str
    count: int = 0
    patterns: dict[str, Pattern] = field(default_factory=dict)

    def add(self, row_id: str, error: str) -> None:
        self.count += 1
        text = _VARYING.sub("…", error)
        if text not in self.patterns and len(self.patterns) >= _PATTERNS:
            text = "other"
        pattern = self.patterns.setdefault(text, Pattern(example=error))
        pattern.count += 1
        if len(pattern.row_ids) < _EXAMPLES:
            pattern.row_ids.append(row_id)


@dataclass(frozen=True)
class Ended:
    """All rows that have ended, N of them, in the order of `files`.

    `hashes` uint64 (N,) of their ids; `failed` bool (N,); `generation` int16 (N,); `numbers` float32 (N,) a column, NaN for null.
    """

    files: Sequence[tuple[int, str]]  # generation, path relative to the folder
    hashes: np.ndarray
    failed: np.ndarray
    generation: np.ndarray
    numbers: dict[str, np.ndarray]
    failures: Sequence[FailureGroup]


def scan(folder: JobFolder, columns: Sequence[str]) -> Ended:
    """Read the numeric `columns` and the failures of every row's last generation. Columns that the data lacks are NaN."""
    files = [(g, name) for g in reversed(folder.generations()) for name in folder.committed_files(g)]
    hashes, failed, generations = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
    numbers: dict[str, list[np.ndarray]] = {column: [] for column in columns}
    groups: dict[tuple[str, str], FailureGroup] = {}
    for generation, name, table in _last(folder, files, [*columns, "error_type", "error", "stage"]):
        is_failed = "/status=failed/" in name
        hashes.append(ids.hashes(table["row_id"]))
        failed.append(np.full(len(table), is_failed))
        generations.append(np.full(len(table), generation, np.int16))
        for column in columns:
            numbers[column].append(_floats(table, column))
        if is_failed:
            for row in table.select([c for c in ("row_id", "error_type", "error", "stage") if c in table.column_names]).to_pylist():
                key = (row.get("error_type") or "unknown", row.get("stage") or "")
                groups.setdefault(key, FailureGroup(*key)).add(row["row_id"], row.get("error") or "")
    return Ended(
        files=files,
        hashes=_joined(hashes, np.uint64),
        failed=_joined(failed, np.bool_),
        generation=_joined(generations, np.int16),
        numbers={column: _joined(parts, np.float32) for column, parts in numbers.items()},
        failures=sorted(groups.values(), key=lambda g: (-g.count, g.error_type, g.stage)),
    )


def choose(ended: Ended, score: str | None, limit: int, among: np.ndarray | None = None) -> np.ndarray:
    """Positions of at most `limit` rows to show, sorted: all, or failed rows, the lowest and the highest scores, and a sample of the rest.

    A quarter of `limit` at the most goes to each of failed, lowest and highest; the sample is drawn by the hash of row_id. `among`: hashes
    of the only ids that count.
    """
    if among is not None:
        inside = np.flatnonzero(np.isin(ended.hashes, among))
        return inside[choose(only(ended, inside), score, limit)]
    count = len(ended.hashes)
    if count <= limit:
        return np.arange(count)
    by_hash = np.argsort(ended.hashes)
    chosen = np.zeros(count, bool)
    chosen[by_hash[ended.failed[by_hash]][: limit // 4]] = True
    if score is not None:
        order = np.argsort(ended.numbers[score])  # NaN last
        order = order[: int(np.isfinite(ended.numbers[score]).sum())]
        chosen[order[: limit // 4]] = True
        chosen[order[len(order) - min(len(order), limit // 4) :]] = True
    rest = by_hash[~chosen[by_hash]]
    chosen[rest[: limit - int(chosen.sum())]] = True
    return np.flatnonzero(chosen)


def only(ended: Ended, positions: np.ndarray) -> Ended:
    """A scan as if there were only the rows at these positions, for choosing and counting; its positions are no longer those of the files."""
    numbers = {column: values[positions] for column, values in ended.numbers.items()}
    return replace(
        ended, hashes=ended.hashes[positions], failed=ended.failed[positions], generation=ended.generation[positions], numbers=numbers
    )


def outputs(folder: JobFolder, files: Sequence[tuple[int, str]], positions: np.ndarray) -> Iterator[list[dict[str, Any]]]:
    """Every column of the rows at `positions` of a scan, in batches, with `status` and `generation`."""
    start = 0
    for generation, name, table in _last(folder, files, None):
        inside = positions[(positions >= start) & (positions < start + len(table))] - start
        start += len(table)
        status = "failed" if "/status=failed/" in name else "ok"
        for at in range(0, len(inside), _BATCH_ROWS):
            batch = table.take(pa.array(inside[at : at + _BATCH_ROWS], pa.int64())).to_pylist()
            yield [{**row, "status": status, "generation": generation} for row in batch]


def inputs(folder: JobFolder, hashes: np.ndarray) -> Iterator[list[dict[str, Any]]]:
    """Every input column of the planned rows whose id hashes are in `hashes`, in batches, in the plan's order."""
    wanted = np.sort(hashes)
    for name in folder.files("plan", "gen-0"):
        with folder.fs.open(folder.join(name), "rb") as file:
            for batch in pq.ParquetFile(file).iter_batches(_BATCH_ROWS):
                table = pa.Table.from_batches([batch])
                mine = table.filter(pa.array(np.isin(ids.hashes(table["row_id"]), wanted)))
                if len(mine):
                    yield mine.to_pylist()


def planned(folder: JobFolder) -> int:
    """Rows of the plan, from the footers of its files."""
    total = 0
    for name in folder.files("plan", "gen-0"):
        with folder.fs.open(folder.join(name), "rb") as file:
            total += int(pq.read_metadata(file).num_rows)
    return total


def _last(folder: JobFolder, files: Sequence[tuple[int, str]], columns: Sequence[str] | None) -> Iterator[tuple[int, str, pa.Table]]:
    """Each file's rows without void copies and rows that a later generation ran again; later generations come first."""
    listed = folder.read_json("_manifest.json") if folder.finished else None
    void = {entry["path"]: set(entry["row_ids"]) for entry in (listed or {}).get("void", [])}
    wanted = None if columns is None else ["row_id", *columns]
    later, this, at = np.array([], np.uint64), list[np.ndarray](), None
    for generation, name in files:
        if at is not None and generation != at:
            later, this = np.unique(np.concatenate([later, *this])), []
        at = generation
        table = folder.read_table([name], wanted)
        assert table is not None
        if name in void:
            table = table.filter(pa.array([i not in void[name] for i in table["row_id"].to_pylist()], pa.bool_()))
        if generation > 0 or len(later):
            hashes = ids.hashes(table["row_id"])
            keep = ~np.isin(hashes, later)
            table = table.filter(pa.array(keep))
            if generation > 0:
                this.append(hashes[keep])
        yield generation, name, table


def _floats(table: pa.Table, column: str) -> np.ndarray:
    if column not in table.column_names:
        return np.full(len(table), np.nan, np.float32)
    return np.array([np.nan if v is None else v for v in table[column].to_pylist()], np.float32)


def _joined(parts: list[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.array([], dtype)
