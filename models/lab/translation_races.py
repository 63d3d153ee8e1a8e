"""Races of translators to a quality, on drawn portraits under the lab's edits: who begins with what, and how its error falls.

Times are optimiser steps times the median CPU seconds (one thread) of a lone step of that kind, measured by turns with the others, so that what
else a machine does favours nobody; preparation comes on top, checks do not count. LoRA of several concepts train in one forward pass, which
changes what they become by rounding only. Letters: G concepts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from models.lab.concepts import Concept
from models.lab.races import Curve
from models.nets.translator import Translator
from models.nets.weight_blocks import concatenated
from models.training.pictures import drawn_portraits
from models.training.translations import Pairs, Settings, Training, absolute_errors, lora_training, scratch_training

FIRST_PORTRAIT = 1_500_000  # number of the first portrait: nothing was trained on it
LORA = Settings(batch=8)
PREDICTED = Settings(batch=8, lr=1e-2)  # from weights that are near already; both rates chosen on validation concepts (docs/log.md)
SCRATCH = Settings(batch=8, lr=2e-3, eps=1e-8)

Lora = Mapping[str, Tensor]


@dataclass(frozen=True)
class Track:
    """What is raced on: the base, concepts, and pairs of each to train on and to be checked with."""

    base: Translator
    concepts: tuple[Concept, ...]
    seen: Pairs
    held: Pairs

    @classmethod
    def of(cls, base: Translator, concepts: Sequence[Concept], *, seen: int, held: int) -> Track:
        """Drawn portraits, the same for all concepts, each under its edit."""
        drawn = drawn_portraits(seen + held, base.shape.image_size, FIRST_PORTRAIT)
        edited = [concept.apply(drawn.float() / 127.5 - 1).clamp(-1, 1).add(1).mul(127.5).round().byte() for concept in concepts]
        targets = torch.stack(edited)
        return cls(base, tuple(concepts), Pairs(drawn[None, :seen], targets[:, :seen]), Pairs(drawn[None, seen:], targets[:, seen:]))

    @property
    def texts(self) -> list[str]:
        return [concept.text for concept in self.concepts]

    def first(self, count: int) -> Track:
        """The track of the first `count` concepts."""
        seen, held = (Pairs(pairs.sources, pairs.targets[:count]) for pairs in (self.seen, self.held))
        return Track(self.base, self.concepts[:count], seen, held)

    def only(self, at: int) -> Track:
        """The track of one concept."""
        seen, held = (Pairs(pairs.sources, pairs.targets[[at]]) for pairs in (self.seen, self.held))
        return Track(self.base, (self.concepts[at],), seen, held)

    def untouched(self) -> Tensor:
        """(G,) error of the pictures as they are."""
        sources = self.held.sources.float() / 127.5 - 1
        return absolute_errors(sources.expand(len(self.concepts), *sources.shape[1:]), self.held, changed_only=True)

    def errors(self, lora: Lora, text_GTD: Tensor | None = None) -> Tensor:
        """(G,) error of LoRAs (G,*shape) before any step; `text_GTD`: what the generator is told, None: nothing."""
        return lora_training(self.base, self.seen, lora, text_GTD=text_GTD)[0].errors(self.held, changed_only=True)

    def translated(self, lora: Lora, count: int) -> Tensor:
        """(G,count,3,S,S): the first held-out pictures under LoRAs (G,*shape)."""
        sources = self.held.sources[:, :count]
        training, _ = lora_training(self.base, self.seen, lora)
        return training.made(sources.expand(len(self.concepts), *sources.shape[1:]))


@dataclass(frozen=True)
class Checks:
    """One run's optimiser steps at its checks, and the errors then."""

    steps: tuple[int, ...]
    errors: tuple[float, ...]

    def timed(self, step_s: float, preparation_s: float = 0.0) -> Curve:
        """With the seconds that these steps take, after as many of preparation."""
        return Curve(self.steps, tuple(preparation_s + at * step_s for at in self.steps), self.errors)


def race_loras(track: Track, start: Lora, *, seed: int, steps: int, every: int, settings: Settings = LORA) -> list[Checks]:
    """The checks of every concept, from LoRAs (G,*shape); all draw alike from `seed`."""
    seeds = [seed] * len(track.concepts)
    training, _ = lora_training(track.base, track.seen, start, seeds=seeds, settings=settings)
    return _run(training, track.held, steps, every)


def race_scratch(track: Track, *, seed: int, steps: int, every: int) -> Checks:
    """The checks of a generator from random weights on a track of one concept."""
    training = scratch_training(track.base, track.seen, seed=seed, settings=SCRATCH)
    return _run(training, track.held, steps, every)[0]


def _run(training: Training, held: Pairs, steps: int, every: int) -> list[Checks]:
    checked, errors = [0], [training.errors(held, changed_only=True)]
    while training.steps < steps:
        for _ in range(min(every, steps - training.steps)):
            training.step()
        checked.append(training.steps)
        errors.append(training.errors(held, changed_only=True))
    return [Checks(tuple(checked), tuple(map(float, column))) for column in torch.stack(errors, dim=1)]


@dataclass(frozen=True)
class Timing:
    """Median CPU seconds: of a step of one LoRA, of a step from scratch, and of generating, writing and loading one concept's weights."""

    lora_step_s: float
    scratch_step_s: float
    generate_s: float


def measure(track: Track, generate: Callable[[], object], *, rounds: int = 12) -> Timing:
    """Take turns at each, `rounds` times."""
    one = track.only(0)
    lora, _ = lora_training(one.base, one.seen, concatenated([one.base.start_lora()]), settings=LORA)
    scratch = scratch_training(one.base, one.seen, settings=SCRATCH)
    taken: list[list[float]] = [[], [], []]
    for _ in range(rounds + 1):
        for times, act in zip(taken, (lora.step, scratch.step, generate), strict=True):
            started = time.process_time()
            act()
            times.append(time.process_time() - started)
    return Timing(*(median(times[1:]) for times in taken))  # the first of each warms up
