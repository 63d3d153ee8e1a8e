"""The inline engine: the same stages and the same folder in this process, for small jobs, tests and debuggers."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestration import ledger
from orchestration.engines.assignment import Assignment
from workers.guard import Guarded, committed, left


def run(work: Assignment, stop: threading.Event) -> None:
    """Run what is left of a generation, block by block, until done or `stop` is set. Raises what stops a whole job."""
    stages = [Guarded(stage, work.post(separate_process=False)) for stage in work.pipeline.stages]
    writer = ledger.BlockWriter(work.folder, work.generation)
    for table in _blocks(work):
        if stop.is_set():
            return
        for stage in stages:
            table = stage(table)
        writer.commit(committed(table, work.pipeline.committed))


def _blocks(work: Assignment) -> Iterator[pa.Table]:
    """The plan in blocks of `block_rows`, without the rows that are committed."""
    done = np.sort(ledger.committed(work.folder, work.generation))
    for name in work.folder.files("plan", f"gen-{work.generation}"):
        with work.folder.fs.open(work.folder.join(name), "rb") as file:
            for batch in pq.ParquetFile(file).iter_batches(work.block_rows):
                table = pa.Table.from_batches([batch])
                if len(done):
                    table = left(table, done)
                if len(table):
                    yield table
