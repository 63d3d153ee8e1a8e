"""CPU time of a row around a model that costs nothing: the bare loop against the inline engine, in one process.

Unlike rows a second this does not depend on what else the machine is doing. From it follows what share of a bare loop's speed is left
beside a model of a given cost, as long as everything runs on one core.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import kinds, report
from orchestration import plan
from orchestration.engines import inline
from orchestration.engines.assignment import Assignment
from orchestration.job import parse
from orchestration.lease import Lease
from orchestration.run import prepare
from workers.replica import Replica


def unchanged(pixels: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The model that costs nothing."""
    return list(pixels)


def bare_ms(manifest: Path, folder: Path, block_rows: int) -> float:
    """CPU milliseconds a row of decoding, encoding and writing."""
    started, rows = time.process_time(), 0
    for number, batch in enumerate(pq.ParquetFile(manifest).iter_batches(block_rows)):
        ids, restored = list[str](), list[bytes]()
        for row in batch.to_pylist():
            (made,) = unchanged([kinds.to_array(kinds.decode(row))])
            restored.append(kinds.encode({"made": made.tobytes()})["restored"])
            ids.append(row["row_id"])
        pq.write_table(pa.table({"row_id": ids, "restored": restored}), folder / f"block-{number:05}.parquet")
        rows += len(ids)
    return (time.process_time() - started) * 1e3 / rows


def inline_ms(manifest: Path, folder: Path, block_rows: int) -> float:
    """CPU milliseconds a row of the inline engine: the same, and all that makes it safe."""
    job = {
        "kind": "bench-portraits",
        "name": "row-cost",
        "manifest": str(manifest),
        "output": str(folder),
        "model": "unchanged",
        "engine": "inline",
        "resources": {"block_rows": block_rows},
    }
    ready = prepare(parse(job))
    entry = plan.write(ready.spec, ready.pipeline, ready.source, ready.folder, 1)
    pipeline = ready.pipeline
    for stage in pipeline.stages:
        if isinstance(stage, Replica):
            stage.load = partial(lambda model: model, unchanged)
    with Lease(ready.folder, 3600) as lease:
        work = Assignment(ready.folder, pipeline, 0, lease.owner, block_rows, 1, ready.spec.resources)
        started = time.process_time()
        inline.run(work, threading.Event())
        return (time.process_time() - started) * 1e3 / entry["rows"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--block-rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    print(report.command("benchmarks.row_cost"), report.machine("pyarrow", "pillow"), "", sep="\n")
    bare, ours = list[float](), list[float]()
    with tempfile.TemporaryDirectory(prefix="calotype-row-cost-") as scratch:
        manifest = Path(scratch) / "manifest.parquet"
        kinds.write_portraits(manifest, given.rows)
        for number in range(given.rounds + 1):
            folder = Path(scratch) / f"round-{number}"
            folder.mkdir()
            times = bare_ms(manifest, folder, given.block_rows), inline_ms(manifest, folder, given.block_rows)
            if number:  # the first round warms up
                bare.append(times[0])
                ours.append(times[1])
    lines = [["bare loop", report.spread(bare, 3)], ["inline engine", report.spread(ours, 3)]]
    lines.append(["difference", report.spread([b - a for a, b in zip(bare, ours, strict=True)], 3)])
    for model_ms in (1, 5, 20):
        share = [(model_ms + a) / (model_ms + b) for a, b in zip(bare, ours, strict=True)]
        lines.append([f"speed left beside a model of {model_ms} ms, of the bare loop's", f"{median(share):.3f}"])
    print(report.table(["", "CPU ms a row"], lines))


if __name__ == "__main__":
    main()
