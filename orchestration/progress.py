"""How far a job is, read from its ledger: the same for every engine, and for whoever watches from outside."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.parquet as pq

from orchestration.folder import JobFolder, block_name
from workers import storage


@dataclass(frozen=True)
class Point:
    """Rows ended so far in a generation. `seconds` and `rows_per_s` count this driver's own time and rows."""

    t: float  # unix seconds
    generation: int
    planned: int
    done: int
    ok: int
    failed: int
    seconds: float
    rows_per_s: float
    first_block_s: float | None = None  # from the driver's start to its first committed block

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Watch:
    """Counts committed rows; each look reads only the footers of ledger and data files that are new."""

    def __init__(self, folder: JobFolder, generation: int, planned: int, started: float) -> None:
        self.folder, self.generation, self.planned, self.started = folder, generation, planned, started
        self._rows: dict[str, int] = {}
        self._failed: dict[str, int] = {}
        self._first_block_s: float | None = None
        self._before = self.look().done  # rows that earlier drivers committed
        self.changed = time.monotonic()  # when a block was last seen to be new

    def look(self) -> Point:
        """The state now."""
        new = [n for n in self.folder.ledger_files(self.generation) if n not in self._rows]
        for name in new:
            self._rows[name] = self._count(name)
        if new:
            self.changed = time.monotonic()
            blocks = {block_name(n) for n in new}
            for name in self.folder.files("data", f"gen-{self.generation}", "status=failed"):
                if block_name(name) in blocks:
                    self._failed[name] = self._count(name)
        done, failed, seconds = sum(self._rows.values()), sum(self._failed.values()), time.time() - self.started
        here = done - getattr(self, "_before", done)
        if here and self._first_block_s is None:
            self._first_block_s = seconds
        return Point(
            t=time.time(),
            generation=self.generation,
            planned=self.planned,
            done=done,
            ok=done - failed,
            failed=failed,
            seconds=seconds,
            rows_per_s=here / seconds if seconds > 0 else 0.0,
            first_block_s=self._first_block_s,
        )

    def _count(self, name: str) -> int:
        with self.folder.fs.open(self.folder.join(name), "rb") as file:
            return int(pq.read_metadata(file).num_rows)


class Log:
    """Writes progress.json (now) and metrics.jsonl (over time) into the folder; a point a `every_s` at the most."""

    def __init__(self, folder: JobFolder, every_s: float = 5.0) -> None:
        self.folder, self.every_s = folder, every_s
        self._last = 0.0
        try:
            self._lines = folder.read_bytes("metrics.jsonl").decode()
        except FileNotFoundError:
            self._lines = ""

    def write(self, point: Point, engine: str, *, finished: bool = False) -> bool:
        """True if the point was kept in metrics.jsonl."""
        self.folder.write_json("progress.json", {**point.as_dict(), "engine": engine, "updated": point.t, "finished": finished})
        if not finished and time.monotonic() - self._last < self.every_s:
            return False
        self._last = time.monotonic()
        self._lines += json.dumps(point.as_dict()) + "\n"
        storage.write_atomic(self.folder.fs, self.folder.join("metrics.jsonl"), self._lines.encode())
        return True
