"""Training many concepts' translators in one forward pass against one after the other, on lab/translator.

Both arms take the same steps on the same pairs (drawn portraits under edits of the lab's family) and are timed alternately, in CPU seconds of
this process, without checks on held-out pairs. The weights that come out are compared as well: they differ by rounding, which Adam carries on.

    python -m benchmarks.translators [--concepts 1 4 16] [--batch 8] [--steps 8] [--rounds 3]
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch
from torch import Tensor

from benchmarks import report
from models.catalog import lab_path
from models.lab.concepts import Concept, training_concepts
from models.nets.translator import Translator
from models.nets.weight_blocks import concatenated
from models.training.drawings import to_unit
from models.training.pictures import drawn_portraits
from models.training.translations import Pairs, Settings, lora_training

PAIRS = 24
STEPS_A_CONCEPT = 40  # what a collection takes by default; for the column of concepts an hour
HEADS = [
    "concepts in a pass",
    "together, CPU ms a step and concept",
    "one by one",
    "ratio",
    "concepts an hour, together",
    "largest difference",
]


def trained(base: Translator, concepts: list[Concept], sources: Tensor, steps: int, batch: int) -> tuple[float, dict[str, Tensor]]:
    """CPU seconds of `steps` steps of all concepts in one pass, and their weights (G,*shape) by name."""
    targets = torch.stack([concept.apply(sources) for concept in concepts])
    start = concatenated([base.start_lora()] * len(concepts))
    training, lora = lora_training(base, Pairs(sources[None], targets), start, settings=Settings(batch=batch))
    training.step()  # the first pass chooses kernels
    started = time.process_time()
    for _ in range(steps):
        training.step()
    return time.process_time() - started, {name: value.detach() for name, value in lora.items()}


def measure(base: Translator, count: int, sources: Tensor, steps: int, batch: int, rounds: int) -> list[str]:
    """A line of the table: both arms, alternately."""
    concepts, together, alone, difference = training_concepts(count), list[float](), list[float](), 0.0
    for _ in range(rounds):
        seconds, lora = trained(base, concepts, sources, steps, batch)
        singles = [trained(base, [concept], sources, steps, batch) for concept in concepts]
        together.append(1000 * seconds / steps / count)
        alone.append(1000 * sum(seconds for seconds, _ in singles) / steps / count)
        parts = concatenated([{name: value[0] for name, value in own.items()} for _, own in singles])
        difference = max(difference, *(float((lora[name] - value).abs().max()) for name, value in parts.items()))
    hourly = 3_600_000 / (median(together) * STEPS_A_CONCEPT)
    cells = [report.spread(together, 1), report.spread(alone, 1), f"{median(alone) / median(together):.2f}"]
    return [str(count), *cells, f"{hourly:.0f}", f"{difference:.1e}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--batch", type=int, default=8, help="pairs of each concept a step")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    base = Translator.load(lab_path("translator"))
    sources = to_unit(drawn_portraits(PAIRS, base.shape.image_size))
    print(report.command("benchmarks.translators"), report.machine("torch"), "", report.heading(HEADS), sep="\n", flush=True)
    for count in given.concepts:
        print(report.line(measure(base, count, sources, given.steps, given.batch, given.rounds)), flush=True)


if __name__ == "__main__":
    main()
