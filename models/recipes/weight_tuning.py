"""Finish a weight denoiser on pictures (`calotype train weight-tuning --set start=FOLDER`): its weights are judged by what they make of a picture.

The denoiser's own loss takes all weights for equally important. Here the LoRA that it gives for a text, by one step from noise, is put on the frozen
base, and L = mean |G(source; base + LoRA(text)) - target| / 2 over pairs of that concept goes back through the base into the denoiser, so that a wrong
weight counts as much as it harms. The method stays what it is: text in, one step, a LoRA out. Ours (docs/decisions/0015); not in arXiv 2407.11966.
Letters: C concepts of the start, c of them a step, b pairs of each, K ways to say each.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.catalog import named_folder
from models.lab.concepts import find_concept, training_concepts
from models.methods.neural_weights import check_base
from models.methods.weight_diffusion import Denoiser
from models.nets.translator import Translator
from models.recipes.weight_denoiser import text_states
from models.training.given_pairs import read_pairs
from models.training.loop import fit, keyed
from models.training.pictures import drawn_portraits
from models.training.translations import Pairs, absolute_errors, translated

logger = logging.getLogger(__name__)

FIRST_PORTRAIT = 3_000_000  # number of the first portrait: proofs use others
VALIDATION_PORTRAITS = 32


@dataclass(frozen=True, kw_only=True)
class Config:
    data: Path | None = None  # pairs: a folder CONCEPT/input and CONCEPT/target; None: the lab's edits of drawn portraits
    start: str = "lab/weight-denoiser"  # the denoiser to finish: of the lab, or a folder
    translator: str = "lab/translator"  # its base
    portraits: int = 600  # that edits are applied to, where there is no data
    validation: int = 16  # concepts that the start did not see, measured on
    concepts: int = 16  # a step
    pairs: int = 4  # of each of them
    paraphrases: int = 8  # ways to say each concept that are trained on, beside its own text
    steps: int = 1_000  # optimizer steps; may be changed on resuming
    minutes: float | None = None
    lr: float = 5e-4
    warmup: int = 20
    decay: float = 0.6
    weight_decay: float = 1e-2
    clip: float = 1.0
    average: float = 0.98
    save_every: int = 50
    seed: int = 0


Draw = Callable[[str, int, torch.Generator], tuple[Tensor, Tensor]]
"""Sources and targets (b,3,S,S) in [-1, 1] of a concept: its text, how many, from which generator."""


def train(cfg: Config, out: Path) -> None:
    """Train until `cfg.steps` (or `cfg.minutes`), resuming from out/checkpoint.pt; then write the folder out/weight-denoiser.

    Raises ModelNotFound, ForeignBase where start and base do not belong together, ValueError where there are no pairs of a concept.
    """
    folder, below = named_folder(cfg.start), named_folder(cfg.translator)
    base, denoiser = Translator.load(below), Denoiser.load(folder)
    check_base(denoiser, base)
    saw = (folder / "concepts.txt").read_text().splitlines()
    draw, known = source_of(cfg, base)
    if missing := sorted(set(saw) - set(known)):
        raise ValueError(f"there are no pairs of {missing[0]!r}, one of {len(missing)} such concepts that {cfg.start} was trained on")
    unseen = [concept for concept in known if concept not in set(saw)][: cfg.validation]
    before = error(base, denoiser, unseen, draw) if unseen else None
    network = denoiser.network.train().requires_grad_(True)
    text_CKTD = text_states(base, saw, cfg.paraphrases, cfg.seed)
    steps = fit(network, lambda step: loss(cfg, base, denoiser, saw, text_CKTD, draw, step), cfg, out)
    network.eval().requires_grad_(False)
    measured = {"error_before": before, "error": error(base, denoiser, unseen, draw)} if unseen else {}
    logger.info("measured %s", measured)
    target = out / "weight-denoiser"
    card = json.loads((folder / "card.json").read_text())
    denoiser.save(target, card["base"])
    (target / "concepts.txt").write_text("\n".join(saw) + "\n")
    begun = {key: card[key] for key in ("recipe", "seed", "steps", "data", "metrics") if key in card}
    facts = {"recipe": "weight_tuning", "seed": cfg.seed, "steps": steps, "data": f"pairs of {len(saw)} concepts", "metrics": measured}
    (target / "card.json").write_text(json.dumps({**card, **facts, "start": begun}, indent=2) + "\n")


def source_of(cfg: Config, base: Translator) -> tuple[Draw, Sequence[str]]:
    """What draws pairs, and the concepts that it can draw them of."""
    if cfg.data is not None:
        given = read_pairs(cfg.data, base.shape.image_size)

        def take(concept: str, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            return given[concept].take(0, _some(given[concept].targets.shape[1], count, generator))

        return take, list(given)
    drawn = drawn_portraits(cfg.portraits, base.shape.image_size, FIRST_PORTRAIT)

    def draw(concept: str, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        sources = drawn[_some(len(drawn), count, generator)].float() / 127.5 - 1
        return sources, find_concept(concept).apply(sources)

    return draw, [concept.text for concept in training_concepts()]


def loss(
    cfg: Config, base: Translator, denoiser: Denoiser, concepts: Sequence[str], text_CKTD: Tensor, draw: Draw, step: int
) -> tuple[Tensor, Mapping[str, float]]:
    """One step's loss: some concepts, each said in one way, its weights by one step from noise, and pictures through them."""
    generator = keyed(cfg.seed, step)
    at = torch.randint(len(concepts), (cfg.concepts,), generator=generator)
    way = torch.randint(text_CKTD.shape[1], (cfg.concepts,), generator=generator)
    noise_cNE = torch.randn(cfg.concepts, *denoiser.mean.shape, generator=generator)
    drawn = [draw(concepts[int(i)], cfg.pairs, generator) for i in at]
    sources, targets = (torch.stack(side) for side in zip(*drawn, strict=True))
    made = generated(base, denoiser, denoiser.denoised(text_CKTD[at, way], noise_cNE), sources)
    return (made - targets).abs().mean() / 2, {}


def generated(base: Translator, denoiser: Denoiser, blocks_cNE: Tensor, sources_cb3SS: Tensor) -> Tensor:
    """(c,b,3,S,S): each concept's pictures, [-1, 1], through the base with the LoRA of its blocks; differentiable in the blocks."""
    return translated(base, denoiser.layout.from_blocks(blocks_cNE), sources_cb3SS, base.silence(len(blocks_cNE)))


@torch.no_grad()
def error(base: Translator, denoiser: Denoiser, concepts: Sequence[str], draw: Draw) -> float:
    """Mean absolute error over changed pixels, 0 to 1, of these concepts' generated weights before any step of theirs."""
    sources, targets = zip(*(draw(concept, VALIDATION_PORTRAITS, keyed(0, 0, concept)) for concept in concepts), strict=True)
    blocks_cNE = denoiser.generate(base.encode_text(concepts), range(len(concepts)))
    made = generated(base, denoiser, blocks_cNE, torch.stack(sources)).clamp(-1, 1)
    return round(float(absolute_errors(made, Pairs(torch.stack(sources), torch.stack(targets)), changed_only=True).mean()), 4)


def _some(of: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(of, (count,), generator=generator)
