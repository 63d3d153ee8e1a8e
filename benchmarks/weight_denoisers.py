"""What decides how good generated weights are: number of concepts, size and grouping of blocks, prediction, steps of denoising.

Each variant is trained by the recipe for the same few steps on the same job's LoRAs; what is told is the error on the 20 held-out concepts before
any step of finetuning (L1 over the pixels that an edit changes, 0 to 1; intervals over concepts). What is trained lies in --output, so that the
same command goes on.

    python -m benchmarks.weight_denoisers --data JOB -o FOLDER [--steps 400] [--only "300 concepts" ...]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from models.catalog import lab_path
from models.lab.concepts import held_out_concepts
from models.lab.translation_races import Track
from models.methods.weight_diffusion import Denoiser
from models.metrics import bootstrap
from models.nets.translator import Translator
from models.recipes import weight_denoiser

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "as the recipe has it": {},
    "50 concepts": {"concepts": 50},
    "150 concepts": {"concepts": 150},
    "300 concepts": {"concepts": 300},
    "600 concepts": {"concepts": 600},
    "blocks of 128": {"block_size": 128, "patch": 16, "drawn": 12},
    "blocks of 512": {"block_size": 512, "patch": 64, "drawn": 3},
    "padded": {"grouping": "padded"},
    "shuffled": {"grouping": "shuffled"},
    "eps": {"prediction": "eps"},
    "v": {"prediction": "v"},
}
MANY_STEPS = 20  # of denoising, instead of one
HEADS = ["variant", "concepts", "validation error of the weights", "error at step 0", f"with {MANY_STEPS} steps of denoising", "CPU s"]


def measure(name: str, data: Path, output: Path, steps: int, track: Track) -> list[str]:
    """Train one variant and tell its line."""
    out, started = output / name.replace(" ", "-"), time.process_time()
    made = out / "weight-denoiser"
    if not (made / "card.json").is_file():
        weight_denoiser.train(weight_denoiser.Config(data=data, steps=steps, **VARIANTS[name]), out)
    seconds = time.process_time() - started
    denoiser = Denoiser.load(made)
    card = report_facts(made)
    errors = [str(bootstrap(error_at_start(denoiser, track, count))) for count in (1, MANY_STEPS)]
    return [name, str(card[0]), f"{card[1]:.3f}", *errors, f"{seconds:.0f}"]


def report_facts(folder: Path) -> tuple[int, float]:
    """How many concepts a denoiser saw, and the error of its weights on the validation's, 1 for the mean of all."""
    facts = json.loads((folder / "card.json").read_text())
    return len((folder / "concepts.txt").read_text().splitlines()), float(facts["metrics"]["validation_error"])


@torch.no_grad()
def error_at_start(denoiser: Denoiser, track: Track, num_steps: int) -> torch.Tensor:
    """(G,) errors with generated weights."""
    text = track.base.encode_text(track.texts)
    return track.errors(denoiser.layout.from_blocks(denoiser.generate(text, range(len(track.texts)), num_steps)))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of a finished translate job of mode collect")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    track = Track.of(Translator.load(lab_path("translator")), held_out_concepts(), seen=8, held=48)
    print(report.command("benchmarks.weight_denoisers"), report.machine("torch"), "", report.heading(HEADS), sep="\n", flush=True)
    for name in given.only:
        print(report.line(measure(name, given.data, given.output, given.steps, track)), flush=True)


if __name__ == "__main__":
    main()
