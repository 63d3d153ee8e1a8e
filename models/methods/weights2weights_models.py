"""Models as what a job makes: sampled from the space, a person moved along attributes, or one photograph inverted (arXiv 2406.09413).

Each comes with its weights, its coefficients and a picture made with it, all pictures of a job from one noise, so that what differs between them
is the model. Letters: B models, n weights, k components.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.methods.weights2weights import Request, Weights2Weights
from models.methods.weights2weights_directions import Edit
from models.methods.weights2weights_files import Start
from models.methods.weights2weights_inversion import Inversion
from models.methods.weights2weights_inversion import Request as Photograph
from models.methods.weights2weights_inversion import Settings as InversionSettings

OF_INVERSION = ("prompt", "num_steps", "learning_rate", "weight_decay", "noises")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A model: `start` moved by `edits`, or, without a start, one sampled from the space by `seed`."""

    seed: int
    start: Start | None = None
    edits: Sequence[Edit] = ()
    facts: Mapping[str, str] = field(default_factory=dict)  # whose it is and the like, handed through


@dataclass(frozen=True)
class Made:
    """weights (n,) and coefficients (k,), fp32 on the CPU. picture: (3,H,W) in [-1, 1], made with it; before: with its start, where it has one.

    Of an inverted photograph also the loss: its course at curve_steps, and final_loss, which is not finite where the inversion diverged.
    """

    weights_n: Tensor
    coefficients_k: Tensor
    picture: Tensor
    facts: Mapping[str, str]
    before: Tensor | None = None
    final_loss: float | None = None
    curve: Sequence[float] = ()
    curve_steps: Sequence[int] = ()


class Models:
    """Makes models on one base and space, and a picture with each by `prompt` from the noise of `picture_seed`."""

    def __init__(self, method: Weights2Weights, *, prompt: str, std_factor: float = 1.0, picture_seed: int = 0) -> None:
        self.method, self.prompt, self.std_factor, self.picture_seed = method, prompt, std_factor, picture_seed

    @classmethod
    def load(
        cls,
        sources: Mapping[str, str | Path],
        *,
        prompt: str,
        settings: Mapping[str, Any],
        std_factor: float = 1.0,
        device: str | None = None,
    ) -> Models:
        """From `base` and `checkpoint`, as Weights2Weights.load; raises what that raises."""
        return cls(Weights2Weights.load(sources, settings=settings, device=device), prompt=prompt, std_factor=std_factor)

    @torch.no_grad()
    def __call__(self, wanted: Sequence[Wanted]) -> list[Made]:
        """One model each, in order. Raises UnknownAttribute, DirectionVanished, LayoutMismatch, ValueError."""
        if not wanted:
            return []
        requests = [Request(prompt=self.prompt, seed=self.picture_seed, start=self._start(one), edits=one.edits) for one in wanted]
        _, weights_Bn = self.method.weights(requests)
        coefficients_Bk = self.method.space.project(weights_Bn)
        pictures = [result.image for result in self.method(requests)]
        befores: list[Tensor | None] = [None] * len(requests)
        if any(one.start is not None for one in wanted):
            befores = [result.image for result in self.method([replace(request, edits=()) for request in requests])]
        return [
            Made(weights_n.cpu(), p_k.cpu(), picture, one.facts, before if one.start is not None else None)
            for one, weights_n, p_k, picture, before in zip(wanted, weights_Bn, coefficients_Bk, pictures, befores, strict=True)
        ]

    def _start(self, one: Wanted) -> Start:
        if one.start is not None:
            return one.start
        generator = torch.Generator().manual_seed(one.seed)
        n_components = self.method.settings.n_components
        return Start(coefficients_k=self.method.space.sample([generator], n_components=n_components, std_factor=self.std_factor)[0])


@dataclass(frozen=True)
class Inverted:
    """A photograph to invert, and what to write into what is made of it."""

    photograph: Photograph
    facts: Mapping[str, str] = field(default_factory=dict)


class InvertedModels:
    """Photographs in, models out: inverts those of a batch together, then draws a picture with each."""

    def __init__(self, models: Models, inversion: Inversion) -> None:
        self.models, self.inversion = models, inversion

    @classmethod
    def load(cls, sources: Mapping[str, str | Path], *, settings: Mapping[str, Any], device: str | None = None) -> InvertedModels:
        """From `base` and `checkpoint`; `settings`: of Weights2Weights and, by the names in OF_INVERSION, of Inversion. Raises as those do."""
        own = {name: value for name, value in settings.items() if name in OF_INVERSION}
        rest = {name: value for name, value in settings.items() if name not in OF_INVERSION}
        models = Models.load(sources, prompt=own["prompt"], settings=rest, device=device)
        return cls(models, Inversion(models.method.base, models.method.space, InversionSettings().with_options(own)))

    def __call__(self, photographs: Sequence[Inverted]) -> list[Made]:
        """One model a photograph, in order; where `final_loss` is not finite the rest means nothing. Raises EmptyMask, ValueError."""
        found = self.inversion([one.photograph for one in photographs])
        safe = [torch.nan_to_num(one.coefficients_k, nan=0.0, posinf=0.0, neginf=0.0) for one in found]
        wanted = [Wanted(seed=0, start=Start(coefficients_k=p_k), facts=one.facts) for p_k, one in zip(safe, photographs, strict=True)]
        return [
            replace(
                model,
                before=None,
                coefficients_k=one.coefficients_k,
                final_loss=one.final_loss,
                curve=one.curve,
                curve_steps=one.curve_steps,
            )
            for model, one in zip(self.models(wanted), found, strict=True)
        ]
