"""Rows that kill: a journal of what is in flight, so that a process that dies leaves behind which rows it died on.

An entry is written before a stage sees some rows and removed once it has answered, so that only a dead process leaves one. Whoever gets
these rows next finds the entry: rows that died in company run alone; a row that died alone too is failed without running. Entries name
rows, not batches, so that it does not matter how a resumed job cuts its batches.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from workers import storage
from workers.rows import Failure

MAX_DEATHS = 2  # once in company and once alone, or twice alone


@dataclass(frozen=True)
class Suspicion:
    """What earlier entries say about a row: how often a process died on it, how often alone, and on a time limit."""

    deaths: int = 0
    alone: int = 0
    timed_out: bool = False
    stage: str = ""

    @property
    def verdict(self) -> Failure | None:
        """The failure of a row that is not run again, or None."""
        if self.deaths < MAX_DEATHS or self.alone == 0:
            return None
        if self.timed_out:
            return Failure(
                "RowTimeout", f"exceeded resources.row_timeout_s in {self.deaths} tries; raise the limit and run `calotype retry`"
            )
        return Failure("ProcessDied", f"the process died {self.deaths} times on this row; `calotype retry` tries it again")


@dataclass
class Journal:
    """The journal of one generation, a folder of small JSON files. `driver` is the lease owner that runs the job now.

    `separate_process`: replicas that run in processes of their own die with a killed driver, which is no fault of their rows; such deaths make
    their rows run alone but do not count towards failing them. On the inline engine the driver is the process that dies, so they count.
    """

    folder: str
    driver: str
    stage: str
    separate_process: bool
    _entries: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def suspicions(self, row_ids: Sequence[str]) -> dict[str, Suspicion]:
        """What other entries say about these rows; rows without a record are left out."""
        fs, path = storage.filesystem(self.folder)
        wanted, found = set(row_ids), dict[str, Suspicion]()
        fs.invalidate_cache(path)
        try:
            names = fs.ls(path, detail=False)
        except FileNotFoundError:
            return {}
        for name in names:
            key = str(name).rsplit("/", 1)[-1].removesuffix(".json")
            if key in self._entries or not str(name).endswith(".json"):
                continue
            try:
                entry = json.loads(fs.cat_file(name))
            except (FileNotFoundError, ValueError):
                continue  # its process has just removed it
            for row_id in wanted.intersection(entry["ids"]):
                old = found.get(row_id, Suspicion())
                counts = not entry["separate_process"] or entry["driver"] == self.driver
                alone = len(entry["ids"]) == 1
                found[row_id] = Suspicion(
                    deaths=old.deaths + counts,
                    alone=old.alone + (counts and alone),
                    timed_out=old.timed_out or entry.get("reason") == "timeout",
                    stage=entry["stage"],
                )
        return found

    @contextmanager
    def entry(self, row_ids: Sequence[str], timeout_s: float | None = None) -> Iterator[None]:
        """Rows in flight. With a time limit, a watchdog notes the reason and kills the process when it is exceeded."""
        fs, path = storage.filesystem(self.folder)
        key = uuid.uuid4().hex
        content = {
            "ids": list(row_ids),
            "driver": self.driver,
            "stage": self.stage,
            "separate_process": self.separate_process,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        name = storage.join(path, f"{key}.json")
        self._entries[key] = content
        storage.write_atomic(fs, name, json.dumps(content).encode())
        done = threading.Event()
        if timeout_s is not None:
            watchdog = threading.Thread(target=self._watch, args=(done, timeout_s, name, content), daemon=True)
            watchdog.start()
        try:
            yield
        finally:  # raised or returned: the process lives
            done.set()
            fs.rm_file(name)
            del self._entries[key]

    def _watch(self, done: threading.Event, timeout_s: float, name: str, content: dict[str, Any]) -> None:
        if not done.wait(timeout_s):
            fs, _ = storage.filesystem(self.folder)
            storage.write_atomic(fs, name, json.dumps({**content, "reason": "timeout"}).encode())
            os._exit(70)  # a hang can't be interrupted from within; whoever runs these rows next knows why
