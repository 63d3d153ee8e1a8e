"""Training translators on pairs: the LoRA of many concepts in one forward pass on a frozen base, or a whole generator from random weights.

L = w |made - target|_1 + a CE(D(source, made), 1) for the generator, (CE(D(source, target), 1) + CE(D(source, made), 0)) / 2 for the discriminator
(pix2pix; which terms and weights the paper has is not known). Every concept has its own discriminator, its own draws and its own losses, and
Adam works element by element, so that what a concept becomes does not depend on who trains beside it (but for rounding).
Letters: G concepts, P pairs of each, b of them a step, T text tokens, D text channels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state
from torch.nn.functional import binary_cross_entropy_with_logits

from models.low_rank import attached
from models.nets.translator import Generator, PatchDiscriminator, Translator
from models.training.loop import keyed

CHANGED = 0.04  # of the range [-1, 1]: pixels that an edit moves further than this count as changed
PICTURES_A_PASS = 512


@dataclass(frozen=True)
class Pairs:
    """Sources and targets, (G,P,3,S,S) each: uint8, or float in [-1, 1]. Sources may be (1,P,3,S,S), the same for all concepts."""

    sources: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if self.sources.shape[1:] != self.targets.shape[1:] or len(self.sources) not in (1, len(self.targets)):
            raise ValueError(f"sources {tuple(self.sources.shape)} and targets {tuple(self.targets.shape)} are not the same pairs")

    def take(self, concept: int, at: Tensor) -> tuple[Tensor, Tensor]:
        """Sources and targets `at` of a concept, in [-1, 1]."""
        return _unit(self.sources[concept if len(self.sources) > 1 else 0, at]), _unit(self.targets[concept, at])


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How one training goes; the same for all concepts of a group."""

    batch: int = 16  # pairs of each concept a step
    lr: float = 2e-2  # Adam
    eps: float = (
        0.05  # of Adam: what has next to no gradient stays, else noise would move it as far as everything, and nothing could be predicted
    )
    down_rate: float = (
        0.1  # of it, for the down-projections of LoRA: what all begin with alike stays alike, and weights are easier to predict
    )
    betas: tuple[float, float] = (0.5, 0.999)
    absolute: float = 100.0  # weight of the L1 distance
    adversarial: float = 1.0
    discriminator_lr: float = 2e-4


@dataclass
class Training:
    """A training under way, one step at a time. `seeds`: of each concept's draws; equal ones draw the same places of their pairs."""

    forward: Callable[[Tensor, Tensor], Tensor]  # sources (G,b,3,S,S) and text states (G,T,D) to (G,b,3,S,S)
    parameters: Sequence[tuple[float, Sequence[Tensor]]]  # with the share of the rate that each group learns at
    discriminator: PatchDiscriminator  # what each concept's begins as
    text_GTD: Tensor  # noqa: N815
    pairs: Pairs
    seeds: Sequence[int]
    settings: Settings = field(default_factory=Settings)
    steps: int = 0  # done

    def __post_init__(self) -> None:
        copies = [deepcopy(self.discriminator).requires_grad_(True) for _ in self.seeds]
        self._telling, _ = stack_module_state(copies)  # pyright: ignore[reportArgumentType]
        self._optimizer = torch.optim.Adam(
            [
                *({"params": list(group), "lr": share * self.settings.lr} for share, group in self.parameters),
                {"params": list(self._telling.values()), "lr": self.settings.discriminator_lr, "eps": 1e-8},
            ],
            betas=self.settings.betas,
            eps=self.settings.eps,
            fused=True,
        )

    def step(self) -> None:
        """One optimiser step of all concepts."""
        source, target = (torch.stack(parts) for parts in zip(*self._drawn(), strict=True))
        made = self.forward(source, self.text_GTD)
        fixed = {name: value.detach() for name, value in self._telling.items()}
        fooling = _against(self._told(fixed, source, made), 1)
        telling = (
            _against(self._told(self._telling, source, target), 1) + _against(self._told(self._telling, source, made.detach()), 0)
        ) / 2
        distance = (made - target).abs().mean((1, 2, 3, 4))
        loss = (self.settings.absolute * distance + self.settings.adversarial * fooling + telling).sum()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        self.steps += 1

    @torch.no_grad()
    def made(self, sources_GQ3SS: Tensor) -> Tensor:
        """Every concept's translations of its pictures, (G,Q,3,S,S) in [-1, 1]."""
        chunk = max(1, PICTURES_A_PASS // len(self.seeds))
        return torch.cat([self.forward(_unit(part), self.text_GTD).clamp(-1, 1) for part in sources_GQ3SS.split(chunk, dim=1)], dim=1)

    def errors(self, held: Pairs, *, changed_only: bool = False) -> Tensor:
        """(G,) mean absolute error on held-out pairs in the range 0 to 1; `changed_only`: over pixels that the edit changes."""
        sources = held.sources.expand(len(self.seeds), *held.sources.shape[1:])
        return absolute_errors(self.made(sources), held, changed_only=changed_only)

    def _drawn(self) -> list[tuple[Tensor, Tensor]]:
        count = self.pairs.targets.shape[1]
        draws = [torch.randint(count, (self.settings.batch,), generator=keyed(seed, self.steps, "pairs")) for seed in self.seeds]
        return [self.pairs.take(concept, at) for concept, at in enumerate(draws)]

    def _told(self, weights: Mapping[str, Tensor], source: Tensor, shown: Tensor) -> Tensor:
        """What each concept's discriminator says (G,b,1,s,s), one by one: on a CPU a vmap, which makes grouped convolutions of them, is slower."""
        each = (dict(zip(weights, own, strict=True)) for own in zip(*weights.values(), strict=True))
        return torch.stack([functional_call(self.discriminator, own, (a, b)) for own, a, b in zip(each, source, shown, strict=True)])


def lora_training(
    base: Translator,
    pairs: Pairs,
    start: Mapping[str, Tensor],
    *,
    seeds: Sequence[int] | None = None,
    settings: Settings | None = None,
    text_GTD: Tensor | None = None,
) -> tuple[Training, dict[str, Tensor]]:
    """LoRA of G concepts from `start` (G,*shape) by name, and the tensors that are trained, which change with every step.

    `text_GTD`: what the generator is told; None: nothing, as translators are used (`Translator.silence`).
    """
    lora = {name: start[name].detach().clone().requires_grad_(True) for name, _shape in base.lora_layout}

    count = len(pairs.targets)
    text = base.silence(count) if text_GTD is None else text_GTD
    given = settings or Settings()
    sides = [[value for name, value in lora.items() if name.endswith(side)] for side in ("lora_A", "lora_B")]
    parameters = [(given.down_rate, sides[0]), (1.0, sides[1])]
    training = Training(partial(translated, base, lora), parameters, base.discriminator, text, pairs, seeds or [0] * count, given)
    return training, lora


def translated(base: Translator, lora: Mapping[str, Tensor], sources_Gb3SS: Tensor, text_GTD: Tensor) -> Tensor:
    """(G,b,3,S,S): pictures of G concepts, [-1, 1], each through the base with its own LoRA (G,*shape); differentiable in the LoRA."""
    G, b = sources_Gb3SS.shape[:2]
    with attached(base.generator, base.low_rank(lora), torch.arange(G).repeat_interleave(b)):
        made = base.generator(sources_Gb3SS.flatten(0, 1), text_GTD.repeat_interleave(b, dim=0))
    return made.unflatten(0, (G, b))


def scratch_training(base: Translator, pairs: Pairs, *, seed: int = 0, settings: Settings | None = None) -> Training:
    """A generator and a discriminator of the base's shape from random weights, for one concept (G is 1)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator, discriminator = Generator(base.shape), PatchDiscriminator(base.shape)

    def forward(sources_1b3SS: Tensor, text_1TD: Tensor) -> Tensor:
        b = sources_1b3SS.shape[1]
        return generator(sources_1b3SS[0], text_1TD.expand(b, -1, -1))[None]

    given = settings or Settings(lr=2e-3, eps=1e-8)
    return Training(forward, [(1.0, list(generator.parameters()))], discriminator, base.silence(1), pairs, [seed], given)


@dataclass(frozen=True)
class Trained:
    """One concept at its end: its LoRA by name, the steps it took, the errors of its checks, whether it reached its target or left all bounds."""

    lora: dict[str, Tensor]
    steps: int
    curve_steps: list[int]
    curve: list[float]
    reached: bool
    diverged: bool
    seconds: float  # of training, its share of the group's; checks excluded


def train_loras(
    training: Training,
    lora: Mapping[str, Tensor],
    held: Pairs,
    *,
    steps: int,
    check_every: int,
    targets: Sequence[float | None] | None = None,
    max_seconds: Sequence[float | None] | None = None,
) -> list[Trained]:
    """Train a group to the end: each concept until its held-out error is at most its target, its seconds are over, or after `steps`.

    Checked before the first step, every `check_every`, and after the last. A concept that has ended is kept as it was then. Its seconds are
    the group's divided by its size.
    """
    G = len(training.seeds)
    targets, max_seconds = targets or [None] * G, max_seconds or [None] * G
    ended: dict[int, Trained] = {}
    checked, curves, seconds = list[int](), [list[float]() for _ in range(G)], 0.0
    while True:
        errors = training.errors(held).tolist()
        checked.append(training.steps)
        for concept in set(range(G)) - ended.keys():
            curves[concept].append(errors[concept])
            target, limit = targets[concept], max_seconds[concept]
            diverged = not errors[concept] < float("inf")
            reached = target is not None and errors[concept] <= target
            if diverged or reached or training.steps >= steps or (limit is not None and seconds >= limit):
                own = {name: value[concept].detach().clone() for name, value in lora.items()}
                ended[concept] = Trained(own, training.steps, list(checked), curves[concept], reached, diverged, seconds)
        if len(ended) == G:
            return [ended[concept] for concept in range(G)]
        started = time.perf_counter()
        for _ in range(min(check_every, steps - training.steps)):
            training.step()
        seconds += (time.perf_counter() - started) / G


def absolute_errors(made_GQ3SS: Tensor, held: Pairs, *, changed_only: bool = False) -> Tensor:
    """(G,) mean absolute error of translations in the range 0 to 1, over all pixels or over those that the edit changes."""
    target, source = _unit(held.targets), _unit(held.sources)
    distance_GQSS = (made_GQ3SS - target).abs().mean(2) / 2
    if not changed_only:
        return distance_GQSS.mean((1, 2, 3))
    changed = ((target - source).abs().mean(2) > CHANGED).to(distance_GQSS)
    return (distance_GQSS * changed).sum((1, 2, 3)) / changed.sum((1, 2, 3)).clamp(min=1)


def _against(logits_Gb1ss: Tensor, truth: float) -> Tensor:
    """(G,) cross-entropy of patches that are all to be called true, or all false."""
    wanted = torch.full_like(logits_Gb1ss, truth)
    return binary_cross_entropy_with_logits(logits_Gb1ss, wanted, reduction="none").mean((1, 2, 3, 4))


def _unit(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images
