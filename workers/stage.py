"""What a stage is: Arrow table in, Arrow table out, every row back; and the stage that maps a plain function over rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from workers.rows import Outcome, Retry, attempt


class Stage(ABC):
    """One step of a pipeline. `name` appears in dead letters; `micro_batch` rows are handed over at once; `cpus`, `gpus` are for one copy.

    `pooled`: it holds something that takes long to load, so that it lives in replicas; else it runs wherever there is room.
    `adds`: columns that it appends to a row that is well; `drops`: columns that no later stage needs.
    """

    name: str
    micro_batch: int = 64
    cpus: float = 1.0
    gpus: float = 0.0
    pooled: bool = False
    adds: pa.Schema = pa.schema([])
    drops: tuple[str, ...] = ()

    def setup(self) -> None:  # noqa: B027 (nothing to load is the common case)
        """Load what the stage needs; called once in the process that runs it, never on the driver of a Ray job."""

    def facts(self) -> dict[str, str]:
        """What the set-up stage says of itself for the job's log, such as the attention backend that it chose."""
        return {}

    @abstractmethod
    def run(self, table: pa.Table) -> list[Outcome]:
        """One outcome a row, in order: its new columns or its failure. At most `micro_batch` rows, all well."""


class MapRows(Stage):
    """A plain function over rows, in threads: decoding, encoding, reading and writing.

    `function(row) -> columns` gets a row as a dict and returns the values of `adds`. What it raises fails that row alone;
    transient I/O errors are retried first.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[dict[str, Any]], Mapping[str, Any]],
        *,
        adds: pa.Schema,
        drops: tuple[str, ...] = (),
        cpus: float = 1.0,
        threads: int = 4,
        retry: Retry | None = None,
    ) -> None:
        self.name, self.function, self.adds, self.drops, self.cpus = name, function, adds, drops, cpus
        self.threads, self.retry = threads, retry or Retry()

    def run(self, table: pa.Table) -> list[Outcome]:
        rows = table.to_pylist()
        if self.threads == 1 or len(rows) == 1:
            return [attempt(self.function, row, self.retry) for row in rows]
        share = -(
            -len(rows) // self.threads
        )  # a stretch of rows a thread: handing over row by row costs more than decoding a small picture
        stretches = [rows[at : at + share] for at in range(0, len(rows), share)]
        with ThreadPoolExecutor(self.threads) as pool:
            done = pool.map(lambda stretch: [attempt(self.function, row, self.retry) for row in stretch], stretches)
            return [outcome for outcomes in done for outcome in outcomes]
