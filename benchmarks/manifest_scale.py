"""How a job grows with its manifest: from a thousand to a million rows that cost nothing, through plan, run, seal, tracking and review page.

Each size runs in a process of its own. What counts is the driver's memory: resident, at its highest, as the kernel kept it. On the inline
engine the driver is also the worker. Manifests come in two shapes: with groups of eight rows (a person's photographs), and without, where
nothing but the row ids tells rows apart.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import kinds, report

BLOCK_ROWS = 4096
HEADS = [
    "rows, shape, engine",
    "s",
    "driver CPU s",
    "rows/s",
    "driver MB before",
    "driver MB at most",
    "to the size above",
    "load 1 / 5 min",
]


@dataclass(frozen=True)
class Measured:
    """One job. `start_mb`: the process before the job; `peak_mb`: its highest; `seconds`: the job without imports; `cpu_s`: the driver's."""

    rows: int
    seconds: float
    cpu_s: float
    start_mb: float
    peak_mb: float


def run_here(engine: str, manifest: Path, out: Path, block_rows: int) -> Measured:
    """The job in this process. Raises what the job raises."""
    from orchestration.job import parse
    from orchestration.run import run

    start_mb, started, cpu_started = _peak_mb(), time.perf_counter(), time.process_time()
    job = {
        "kind": "bench-numbers",
        "name": "scale",
        "manifest": str(manifest),
        "output": str(out),
        "model": "none",
        "engine": engine,
        "resources": {"block_rows": block_rows, "replicas": 1},
        "tracking": {"uri": f"sqlite:///{out}/mlflow.db"},
    }
    summary = run(parse(job))
    assert summary.ok == summary.planned
    return Measured(summary.planned, time.perf_counter() - started, time.process_time() - cpu_started, start_mb, _peak_mb())


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(engine: str, rows: int, *, groups: bool) -> Measured:
    """The job in a fresh process, over a manifest that another has written. Raises RuntimeError where it failed."""
    with tempfile.TemporaryDirectory(prefix="calotype-scale-") as scratch:
        manifest = Path(scratch) / "manifest.parquet"
        kinds.write_numbers(manifest, rows, groups=groups)
        block_rows = min(BLOCK_ROWS, max(1, rows // 4))
        arguments = ["--here", engine, "--manifest", str(manifest), "--out", scratch, "--block-rows", str(block_rows)]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.manifest_scale", *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"{rows} rows on {engine} failed:\n{done.stderr[-4000:]}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--engines", nargs="+", choices=["inline", "ray"], default=["inline", "ray"])
    parser.add_argument("--shapes", nargs="+", choices=["grouped", "plain"], default=["grouped", "plain"])
    parser.add_argument("--here", help="one job in this process, for the program's own use")
    parser.add_argument("--manifest", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--block-rows", type=int)
    given = parser.parse_args()
    if given.here:
        print(json.dumps(asdict(run_here(given.here, given.manifest, given.out, given.block_rows))))
        return
    print(report.command("benchmarks.manifest_scale"), report.machine("pyarrow", "ray", "mlflow"), "", report.heading(HEADS), sep="\n")
    before: dict[tuple[str, str], float] = {}
    for rows in given.rows:
        for engine in given.engines:
            for shape in given.shapes:
                load = report.load()
                found = measure(engine, rows, groups=shape == "grouped")
                last = before.get((engine, shape))
                before[engine, shape] = found.peak_mb
                cells = [f"{found.seconds:.1f}", f"{found.cpu_s:.1f}", f"{rows / found.seconds:,.0f}", f"{found.start_mb:.0f}"]
                growth = "" if last is None else f"{found.peak_mb / last:.2f}"
                name = f"{rows:,} {shape}, {engine}"
                print(report.line([name, *cells, f"{found.peak_mb:.0f}", growth, load.removeprefix("load average ")]), flush=True)


if __name__ == "__main__":
    main()
