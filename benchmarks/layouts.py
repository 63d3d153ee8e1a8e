"""Bounded Attention: guidance on one half of the network's batch or on both, and mixed layouts in one batch or one at a time.

Rows are scenes of two and three objects, each with a layout of its own. CPU seconds of this process (one thread), arms interleaved; the
pictures of all arms are compared.

    python -m benchmarks.layouts [--rows 16] [--rounds 3]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import report
from models.bases import UNetBase
from models.catalog import lab_path, read_card
from models.lab.layout_scores import asked
from models.methods.bounded_attention import BoundedAttention, Request, Result
from models.methods.bounded_settings import Settings

HEADS = ["arm", "CPU ms a picture", "ratio to calotype", "largest difference to calotype"]
ARMS: dict[str, tuple[dict[str, Any], bool]] = {  # settings, one at a time
    "calotype: conditional half, one batch": ({}, False),
    "both halves, one batch": ({"guidance_half": "both"}, False),
    "conditional half, one at a time": ({}, True),
    "both halves, one at a time (the authors' way)": ({"guidance_half": "both"}, True),
    "no guidance, one batch": ({"guidance_steps": 0}, False),
}


def make(method: BoundedAttention, requests: Sequence[Request], singly: bool) -> list[Result]:
    """The rows' results, in one call or in one call each."""
    return [method([request])[0] for request in requests] if singly else method(requests)


def compare(folder: Path, rows: int, rounds: int) -> None:
    """Interleaved rounds of all arms; prints the table."""
    base = UNetBase.load(folder, device="cpu", dtype=torch.float32)
    own = Settings().with_options(read_card(folder).facts.get("settings", {}))
    methods = {name: BoundedAttention(base, own.with_options(options)) for name, (options, _singly) in ARMS.items()}
    requests = [one.request(seed) for seed, one in enumerate(asked(200_000, rows))]
    before, first = report.load(), next(iter(ARMS))
    methods[first](requests[:1])  # warm-up
    times: dict[str, list[float]] = {name: [] for name in ARMS}
    pictures: dict[str, list[Result]] = {}
    for _ in range(rounds):
        for name, (_options, singly) in ARMS.items():
            started = time.process_time()
            pictures[name] = make(methods[name], requests, singly)
            times[name].append((time.process_time() - started) / rows)
    lines = []
    for name in ARMS:
        furthest = max((a.image - b.image).abs().max().item() for a, b in zip(pictures[name], pictures[first], strict=True))
        ratios = [a / b for a, b in zip(times[name], times[first], strict=True)]
        compared = "another picture" if "no guidance" in name else f"{furthest:.1e}"
        lines.append([name, f"{1e3 * median(times[name]):.0f}", report.spread(ratios, 2), compared])
    print(f"\nlab/unet, {rows} rows, {own.num_inference_steps} steps, {rounds} rounds; {before} before, {report.load()} after\n")
    print(report.table(HEADS, lines), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(report.command("benchmarks.layouts"), report.machine("torch", "diffusers"), sep="\n")
    compare(lab_path("unet"), given.rows, given.rounds)


if __name__ == "__main__":
    main()
