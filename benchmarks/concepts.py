"""Weights from text in bulk: a job of kind weights, mode initialize, over thousands of concepts, without a GPU.

Each engine runs in a process of its own. Concepts are different texts of the lab's family. Wall time and memory at its highest are of the
whole job, plan and review page included; operations of the denoiser are counted, not measured.

    python -m benchmarks.concepts [--rows 10000] [--engines inline]
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

from benchmarks import report

HEADS = ["engine", "concepts", "failed", "s", "CPU s", "concepts/s", "MB before", "MB at most", "output, MB", "load 1 / 5 min"]


@dataclass(frozen=True)
class Measured:
    """One job. `cpu_s`: this process and those it waited for; `start_mb` before the job, `peak_mb` at most; `output_mb`: all files."""

    rows: int
    failed: int
    seconds: float
    cpu_s: float
    start_mb: float
    peak_mb: float
    output_mb: float


def write_concepts(file: Path, count: int) -> None:
    """`count` different texts of the lab's family, a line each: the held-out ones first, then the others, then paraphrases."""
    from models.lab.concepts import all_concepts, held_out_concepts
    from models.training.loop import keyed

    held_out = held_out_concepts()
    concepts = held_out + [concept for concept in all_concepts() if concept not in held_out]
    texts = dict.fromkeys(concept.text for concept in concepts)
    number = 0
    while len(texts) < count:
        texts[concepts[number % len(concepts)].paraphrase(keyed(0, number, "benchmark"))] = None
        number += 1
    file.write_text("\n".join(list(texts)[:count]) + "\n")


def run_here(engine: str, manifest: Path, out: Path, model: str, preview: bool) -> Measured:
    """The job in this process. Raises what the job raises."""
    from orchestration.job import parse
    from orchestration.run import run

    start_mb, started, cpu_started = _peak_mb(), time.perf_counter(), _cpu_s()
    job = {
        "kind": "weights",
        "mode": "initialize",
        "name": "concepts",
        "manifest": str(manifest),
        "output": str(out),
        "model": model,
        "engine": engine,
        "params": {"preview": preview},
        "tracking": {"enabled": False},
    }
    summary = run(parse(job))
    seconds, cpu_s = time.perf_counter() - started, _cpu_s() - cpu_started
    size = sum(file.stat().st_size for file in Path(summary.folder).rglob("*") if file.is_file())
    return Measured(summary.planned, summary.failed, seconds, cpu_s, start_mb, _peak_mb(), size / 2**20)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _cpu_s() -> float:
    return sum(r.ru_utime + r.ru_stime for r in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def measure(engine: str, rows: int, model: str, preview: bool) -> Measured:
    """The job in a fresh process. Raises RuntimeError where it failed."""
    import pyarrow.parquet as pq

    from pipelines.concept_lists import concept_manifest

    with tempfile.TemporaryDirectory(prefix="calotype-concepts-") as scratch:
        texts, manifest = Path(scratch) / "concepts.txt", Path(scratch) / "manifest.parquet"
        write_concepts(texts, rows)
        pq.write_table(concept_manifest(str(texts)).table, manifest)
        arguments = [
            "--here",
            engine,
            "--manifest",
            str(manifest),
            "--out",
            scratch,
            "--model",
            model,
            *([] if preview else ["--no-preview"]),
        ]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.concepts", *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"{rows} concepts on {engine} failed:\n{done.stderr[-4000:]}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def operations(model: str) -> str:
    """What the denoiser costs a concept, counted in a forward pass: 2 a multiplication and addition."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from models.methods.weight_diffusion import Denoiser
    from pipelines.pipeline import Accept
    from pipelines.translators import resolve_denoiser

    denoiser = Denoiser.load(Path(resolve_denoiser(model, Accept()).sources["checkpoint"]))
    sizes = denoiser.network.sizes
    with FlopCounterMode(display=False) as counter:
        denoiser.generate(torch.zeros(1, 16, sizes.text_width), [0])
    parameters = sum(p.numel() for p in denoiser.network.parameters())
    return (
        f"Denoiser: {parameters / 1e6:.2f} M parameters, {denoiser.layout.blocks} blocks of {denoiser.layout.block_size} for "
        f"{denoiser.layout.elements} weights, {counter.get_total_flops() / 1e9:.2f} GFLOP a concept (text of 16 tokens)."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--engines", nargs="+", default=["inline"], choices=["inline", "ray"])
    parser.add_argument("--model", default="lab/weight-denoiser")
    parser.add_argument("--no-preview", action="store_true", help="weights only, no picture of each")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    parser.add_argument("--manifest", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        print(json.dumps(asdict(run_here(given.here, given.manifest, given.out, given.model, not given.no_preview))))
        return
    print(report.command("benchmarks.concepts"), report.machine("torch", "ray"), operations(given.model), "", sep="\n")
    print(report.heading(HEADS), flush=True)
    for engine in given.engines:
        found = measure(engine, given.rows, given.model, not given.no_preview)
        cells = [
            engine,
            str(found.rows),
            str(found.failed),
            f"{found.seconds:.0f}",
            f"{found.cpu_s:.0f}",
            f"{found.rows / found.seconds:.1f}",
        ]
        cells += [f"{found.start_mb:.0f}", f"{found.peak_mb:.0f}", f"{found.output_mb:.0f}", report.load()]
        print(report.line(cells), flush=True)


if __name__ == "__main__":
    main()
