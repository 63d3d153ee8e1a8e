"""The ledger: which rows are committed. Two-phase, a block at a time, in the names and files of Ray Data's own checkpoint.

ids to `ledger/gen-n/<block>.pending.parquet` → data files `data/gen-n/status=…/<block>-0.parquet` → rename the ledger file. The rename is the commit.
"""

from __future__ import annotations

import uuid

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from orchestration.folder import JobFolder, block_name
from workers import ids, storage


def committed(folder: JobFolder, generation: int) -> ids.Hashes:
    """Hashes of the committed row ids of a generation, in no order, as often as they occur."""
    return _hashes(folder, folder.ledger_files(generation))


def planned(folder: JobFolder, generation: int) -> ids.Hashes:
    """Hashes of the planned row ids of a generation, in the plan's order."""
    return _hashes(folder, folder.files("plan", f"gen-{generation}"))


def _hashes(folder: JobFolder, names: list[str]) -> ids.Hashes:
    parts = []
    for name in names:
        table = folder.read_table([name], ["row_id"])
        assert table is not None
        parts.append(ids.hashes(table["row_id"]))
    return np.concatenate(parts) if parts else np.array([], np.uint64)


def clear_pending(folder: JobFolder, generation: int) -> int:
    """Delete what blocks that were never committed left behind: their data files first, then their ledger files. Returns how many ledger files.

    A block with both ledger files is committed: an object store renames by copy and delete, and its driver died in between.
    """
    pending = [n for n in folder.files("ledger", f"gen-{generation}") if n.endswith(".pending.parquet")]
    if pending:
        blocks = {block_name(n) for n in pending} - {block_name(n) for n in folder.ledger_files(generation)}
        for name in folder.files("data", f"gen-{generation}"):
            if block_name(name) in blocks:
                folder.fs.rm_file(folder.join(name))
        for name in pending:
            folder.fs.rm_file(folder.join(name))
    return len(pending)


class BlockWriter:
    """Commits blocks one by one (the inline engine; on Ray its write task does the same)."""

    def __init__(self, folder: JobFolder, generation: int) -> None:
        self.folder, self.generation = folder, generation
        self._run, self._next = uuid.uuid4().hex, 0

    def commit(self, table: pa.Table) -> None:
        """Write the block's rows and commit them. `table` has `row_id` and `status`; raises OSError when the folder can't be written."""
        block = f"{self._run}_{self._next:06}_000000"
        self._next += 1
        fs, ledger = self.folder.fs, f"ledger/gen-{self.generation}/{block}"
        storage.write_atomic(fs, self.folder.join(f"{ledger}.pending.parquet"), _parquet(table.select(["row_id"])))
        for status in ("ok", "failed"):
            rows = table.filter(pc.equal(table["status"], status)).drop_columns(["status"])  # pyright: ignore[reportAttributeAccessIssue]
            if len(rows):
                path = self.folder.join(f"data/gen-{self.generation}/status={status}/{block}-0.parquet")
                storage.write_atomic(fs, path, _parquet(rows))
        fs.mv(self.folder.join(f"{ledger}.pending.parquet"), self.folder.join(f"{ledger}.parquet"))


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()
