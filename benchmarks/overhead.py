"""What calotype costs on top of a bare loop: decode, model, encode and write, without it, on the inline engine and on Ray.

Every run is a process of its own and does the same work with the same functions on one thread a model. Figures come from the moments at
which blocks were committed (changes of the ledger files; of the bare loop's own files), so an engine can't flatter itself. The model's own
time is measured in each run too: where another program takes the core, that shows there and not as overhead.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import kinds, report

ARMS = ("bare", "inline", "ray")


@dataclass(frozen=True)
class Measured:
    """One run. Seconds count from the start of its process; `row_ms` is wall time a row in steady state, `model_ms` the model's part of it."""

    first_block_s: float
    all_s: float
    row_ms: float
    model_ms: float


def measure(arm: str, manifest: Path, depth: int, block_rows: int) -> Measured:
    """Run one arm over a manifest in a fresh process and read what it left behind. Raises RuntimeError where it failed."""
    with tempfile.TemporaryDirectory(prefix="calotype-overhead-") as scratch:
        arguments = ["--arm", arm, "--manifest", str(manifest), "--out", scratch, "--depth", str(depth), "--block-rows", str(block_rows)]
        started = time.time()
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.overhead", *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        ended = time.time()
        if done.returncode:
            raise RuntimeError(f"the {arm} run failed:\n{done.stderr[-4000:]}")
        blocks = sorted(_blocks(Path(scratch)))
        rows, moments = np.array([rows for _, rows, _ in blocks]), np.array([moment for moment, _, _ in blocks])
        model_ms = np.concatenate([times for _, _, times in blocks[len(blocks) // 2 :]])
    expected = pq.read_metadata(manifest).num_rows
    if rows.sum() != expected:
        raise RuntimeError(f"the {arm} run ended {rows.sum()} of {expected} rows")
    middle = len(blocks) // 2
    steady_s = moments[-1] - moments[middle - 1]
    return Measured(moments[0] - started, ended - started, 1e3 * steady_s / rows[middle:].sum(), float(model_ms.mean()))


def _blocks(folder: Path) -> Iterator[tuple[float, int, np.ndarray]]:
    """Moment of commit, rows and model times of each block, of a job's folder or the bare loop's."""
    for data in folder.glob("**/block-*.parquet"):
        times = pq.ParquetFile(data).read(columns=["model_ms"])["model_ms"].to_numpy()
        yield data.stat().st_ctime, len(times), times
    for ledger in folder.glob("*/ledger/gen-0/*.parquet"):
        (data,) = ledger.parents[2].glob(f"data/gen-0/status=ok/{ledger.stem}-*.parquet")
        times = pq.ParquetFile(data).read(columns=["model_ms"])["model_ms"].to_numpy()
        yield ledger.stat().st_ctime, len(times), times  # the rename that commits changes it


def run_bare(manifest: Path, out: Path, depth: int, block_rows: int) -> None:
    """The loop that one writes without calotype: no row safety, no ledger, no resume."""
    net = kinds.ConvNet(depth)
    for number, batch in enumerate(pq.ParquetFile(manifest).iter_batches(block_rows)):
        ids, restored, model_ms = list[str](), list[bytes](), list[float]()
        rows = batch.to_pylist()
        for at in range(0, len(rows), kinds.MICRO_BATCH):
            group = [{**row, **kinds.decode(row)} for row in rows[at : at + kinds.MICRO_BATCH]]
            started = time.perf_counter()
            made = net([kinds.to_array(row) for row in group])
            model_ms += [(time.perf_counter() - started) * 1e3 / len(group)] * len(group)
            restored += [kinds.encode({"made": pixels.tobytes()})["restored"] for pixels in made]
            ids += [row["row_id"] for row in group]
        pq.write_table(pa.table({"row_id": ids, "restored": restored, "model_ms": model_ms}), out / f"block-{number:05}.parquet")


def run_job(engine: str, manifest: Path, out: Path, depth: int, block_rows: int) -> None:
    """The same work as a job."""
    from orchestration.job import parse
    from orchestration.run import run

    job = {
        "kind": "bench-portraits",
        "name": "overhead",
        "manifest": str(manifest),
        "output": str(out),
        "model": "convnet",
        "engine": engine,
        "params": {"depth": depth},
        "resources": {"block_rows": block_rows, "replicas": 1, "cpus_per_replica": 1},
        "tracking": {"uri": f"sqlite:///{out}/mlflow.db"},
    }
    run(parse(job))


def calibrate(row_ms: float) -> int:
    """How many convolutions cost about `row_ms` a row on this machine now, on one thread."""
    import torch

    torch.set_num_threads(1)
    pixels = [np.zeros((kinds.SIDE, kinds.SIDE, 3), np.uint8)] * kinds.MICRO_BATCH

    def cost(depth: int) -> float:
        net, times = kinds.ConvNet(depth), []
        for _ in range(7):
            started = time.perf_counter()
            net(pixels)
            times.append((time.perf_counter() - started) * 1e3 / len(pixels))
        return min(times)

    few, many = cost(2), cost(10)
    return max(1, round((row_ms - few) / ((many - few) / 8)) + 2)


def compare(row_ms: float, seconds: float, block_s: float, rounds: int) -> None:
    """Interleaved rounds of all arms with a model of about `row_ms`; prints the table."""
    depth, rows = calibrate(row_ms), round(seconds * 1e3 / row_ms)
    block_rows = max(kinds.MICRO_BATCH, round(block_s * 1e3 / row_ms / kinds.MICRO_BATCH) * kinds.MICRO_BATCH)
    found: dict[str, list[Measured]] = {arm: [] for arm in ARMS}
    before = report.load()
    with tempfile.TemporaryDirectory(prefix="calotype-overhead-") as folder:
        manifest = Path(folder) / "manifest.parquet"
        kinds.write_portraits(manifest, rows)
        for _ in range(rounds):
            for arm in ARMS:
                found[arm].append(measure(arm, manifest, depth, block_rows))
    print(
        f"\nmodel of about {row_ms:g} ms a row ({depth} convolutions), {rows} rows in blocks of {block_rows}, {rounds} rounds; "
        f"{before} before, {report.load()} after\n"
    )
    lines = []
    for arm in ARMS:
        runs = found[arm]
        ratios = [bare.row_ms / mine.row_ms for bare, mine in zip(found["bare"], runs, strict=True)]
        others = [mine.row_ms - mine.model_ms for mine in runs]
        startup = [mine.first_block_s - block_rows * mine.row_ms / 1e3 for mine in runs]
        lines.append(
            [
                arm,
                report.spread([1e3 / mine.row_ms for mine in runs], 1),
                "1" if arm == "bare" else report.spread(ratios, 3),
                f"{median(mine.model_ms for mine in runs):.2f}",
                report.spread(others, 2),
                report.spread([mine.first_block_s for mine in runs], 2),
                report.spread(startup, 2),
                report.spread([mine.all_s for mine in runs], 1),
            ]
        )
    heads = ["arm", "rows/s, second half", "ratio to bare", "model ms a row", "other ms a row", "first block s", "less its rows s", "all s"]
    print(report.table(heads, lines), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--row-ms", type=float, nargs="+", default=[5.0, 20.0], help="cost of the model a row")
    parser.add_argument("--seconds", type=float, default=30.0, help="model time of a run")
    parser.add_argument("--block-s", type=float, default=1.0, help="model time of a block")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arm", choices=ARMS, help="one run, for the program's own use")
    parser.add_argument("--manifest", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--depth", type=int)
    parser.add_argument("--block-rows", type=int)
    given = parser.parse_args()
    if given.arm == "bare":
        run_bare(given.manifest, given.out, given.depth, given.block_rows)
    elif given.arm:
        run_job(given.arm, given.manifest, given.out, given.depth, given.block_rows)
    else:
        print(report.command("benchmarks.overhead"), report.machine("torch", "ray", "pyarrow"), sep="\n")
        for row_ms in given.row_ms:
            compare(row_ms, given.seconds, given.block_s, given.rounds)


if __name__ == "__main__":
    main()
