"""Rows of a translate job: concepts with their pairs in, trained LoRAs out; what has as many pairs trains together in one forward pass."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.lora_files import ForeignBase
from models.methods.neural_weights import NeuralWeights
from models.methods.neural_weights import Request as Generate
from models.nets.translator import Translator
from models.nets.weight_blocks import concatenated
from models.training.translations import Pairs, Settings, Trained, lora_training, train_loras

STARTS_ALIKE = 0  # seed of what all LoRAs begin as: a space that is to be learned needs one start


class Diverged(RuntimeError):
    """A training left all bounds, at half the rate too."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How every row of a job is trained."""

    steps: int | None = 40
    epochs: int = 10  # over a row's pairs, where steps is None
    check_every: int = 25
    eval_fraction: float = 0.1  # of a row's pairs, its last, at least 4: checked on, never trained on
    settings: Settings = field(default_factory=lambda: Settings(batch=8))


@dataclass(frozen=True)
class Request:
    """One concept: `sources` and `targets` (P,3,S,S) uint8 at the base's size. `start`: a LoRA with its metadata; None: generated, or the common one.

    `apply` (N,3,S,S) uint8: pictures to translate with the result. `target_l1`, `max_seconds`: stop sooner.
    """

    concept: str
    sources: Tensor
    targets: Tensor
    seed: int
    start: tuple[Mapping[str, Tensor], Mapping[str, str]] | None = None
    target_l1: float | None = None
    max_seconds: float | None = None
    apply: Tensor | None = None
    said: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """The trained LoRA with its metadata, errors on held-out pairs (0 to 1): of the base alone, at the start, at the end; and pictures.

    `shown` (4,3,S,S) in [-1, 1]: the first held-out source, translated at the start and at the end, and its target. `applied` (N,3,S,S).
    """

    lora: dict[str, Tensor]
    metadata: dict[str, str]
    l1_base: float
    trained: Trained
    shown: Tensor
    applied: Tensor | None
    generate_ms: float


class Translators:
    """Trains the LoRAs of a micro-batch of rows together. `weights`: what generates starts, or None."""

    def __init__(self, base: Translator, plan: Plan, weights: NeuralWeights | None = None, state: str = "trained") -> None:
        self.base, self.plan, self.weights, self.state = base, plan, weights, state

    @classmethod
    def load(cls, sources: Mapping[str, str | Path], plan: Plan, *, state: str) -> Translators:
        """`base`: a translator's folder; `checkpoint`, where rows begin with generated weights: a denoiser's. Raises what loading them raises."""
        if "checkpoint" in sources:
            weights = NeuralWeights.load(sources, device="cpu")
            return cls(weights.base, plan, weights, state)
        return cls(Translator.load(Path(sources["base"])), plan, None, state)

    def __call__(self, requests: Sequence[Request]) -> list[Result]:
        """One result a request, in order; rows with equally many pairs are one group. Raises ForeignBase for a start of another base."""
        groups: dict[int, list[int]] = {}
        for at, request in enumerate(requests):
            groups.setdefault(len(request.sources), []).append(at)
        found: dict[int, Result] = {}
        for members in groups.values():
            found |= zip(members, self._group([requests[at] for at in members]), strict=True)
        return [found[at] for at in range(len(requests))]

    def _group(self, requests: Sequence[Request]) -> list[Result]:
        starts, generate_ms = self._starts(requests)
        results = self._train(requests, starts, self.plan.settings)
        for at, (trained, *_rest) in enumerate(results):
            if trained.diverged:
                slower = replace(self.plan.settings, lr=self.plan.settings.lr / 2)
                results[at] = self._train([requests[at]], [starts[at]], slower)[0]
        return [
            Result(
                trained.lora,
                self._metadata(request, trained),
                base_error,
                trained,
                shown,
                self._applied(request, trained.lora),
                milliseconds,
            )
            for request, (trained, base_error, shown), milliseconds in zip(requests, results, generate_ms, strict=True)
        ]

    def _train(
        self, requests: Sequence[Request], starts: Sequence[Mapping[str, Tensor]], settings: Settings
    ) -> list[tuple[Trained, float, Tensor]]:
        """What each became, the error of the base alone, and what is shown."""
        pairs = len(requests[0].sources)
        cut = pairs - max(4, round(self.plan.eval_fraction * pairs))
        seen, held = (
            Pairs(torch.stack([r.sources[part] for r in requests]), torch.stack([r.targets[part] for r in requests]))
            for part in (slice(cut), slice(cut, None))
        )
        seeds = [request.seed for request in requests]
        training, lora = lora_training(self.base, seen, concatenated(starts), seeds=seeds, settings=settings)
        before = training.made(held.sources[:, :1])
        steps = self.plan.steps or self.plan.epochs * -(-cut // settings.batch)
        trained = train_loras(
            training, lora, held, steps=steps, check_every=self.plan.check_every,
            targets=[request.target_l1 for request in requests], max_seconds=[request.max_seconds for request in requests],
        )  # fmt: skip
        alone, _ = lora_training(self.base, seen, concatenated([self.base.start_lora(STARTS_ALIKE)] * len(requests)))
        ended, _ = lora_training(self.base, seen, concatenated([one.lora for one in trained]))
        after = ended.made(held.sources[:, :1])
        shown = torch.stack([_unit(held.sources[:, 0]), before[:, 0], after[:, 0], _unit(held.targets[:, 0])], dim=1)
        return list(zip(trained, alone.errors(held).tolist(), shown, strict=True))

    def _starts(self, requests: Sequence[Request]) -> tuple[list[Mapping[str, Tensor]], list[float]]:
        """What each row begins with, and the milliseconds that generating it took."""

        common, found, milliseconds = self.base.start_lora(STARTS_ALIKE), dict[int, Mapping[str, Tensor]](), [0.0] * len(requests)
        for at, request in enumerate(requests):
            if request.start is not None:
                lora, metadata = request.start
                if metadata.get("base_hash") != self.base.base_hash:
                    raise ForeignBase("start_weights_uri", metadata.get("base_hash", "(none named)"), self.base.base_hash)
                found[at] = lora
        left = [at for at in range(len(requests)) if at not in found]
        if left and self.weights is not None:
            started = time.perf_counter()
            made = self.weights([Generate(requests[at].concept, requests[at].seed) for at in left])
            for at, result in zip(left, made, strict=True):
                found[at], milliseconds[at] = result.lora, 1e3 * (time.perf_counter() - started) / len(left)
        return [found.get(at, common) for at in range(len(requests))], milliseconds

    def _applied(self, request: Request, lora: Mapping[str, Tensor]) -> Tensor | None:
        if request.apply is None or not len(request.apply):
            return None
        pairs = Pairs(request.apply[None], request.apply[None])
        training, _ = lora_training(self.base, pairs, concatenated([lora]))
        return training.made(request.apply[None])[0]

    def _metadata(self, request: Request, trained: Trained) -> dict[str, str]:
        own: dict[str, Any] = {
            "method": "neural_weights", "state": self.state, "concept": request.concept, "base_hash": self.base.base_hash,
            "quality": f"{trained.curve[-1]:.6f}", "steps": trained.steps, "seed": request.seed,
        }  # fmt: skip
        return {**request.said, **{name: str(value) for name, value in own.items()}}


def _unit(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1
