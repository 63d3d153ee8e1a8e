"""Neural weights: the LoRA of an image translator from the text of its concept, by one denoising step over blocks of weights.

w_t = sqrt(a_t) w + sqrt(1 - a_t) n;  w' = x0(denoiser(w_T, T, index, text));  w_T ~ N(0, I), all blocks of all concepts in one batch.
Source: arXiv 2407.11966 (method; no code or checkpoint exists). Prediction of x0, grouping, normalisation and sizes are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.lora_files import ForeignBase
from models.low_rank import attached
from models.methods.weight_diffusion import Denoiser
from models.nets.translator import Translator
from models.nets.weight_blocks import LayoutMismatch


@dataclass(frozen=True)
class Settings:
    """What a job may choose."""

    num_steps: int = 1  # more than 1: DDIM


@dataclass(frozen=True)
class Request:
    """`picture` (3,H,W) in [-1, 1]: translated with the generated weights, as a preview. `said`: what else the weights' metadata is to hold."""

    concept: str
    seed: int
    picture: Tensor | None = None
    said: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """`lora` by name, fp32 on the CPU; `metadata` as a LoRA file has it; `picture` (3,H,W) in [-1, 1] where the request had one."""

    lora: dict[str, Tensor]
    metadata: dict[str, str]
    picture: Tensor | None = None


class NeuralWeights:
    """Concepts in, LoRAs out. Every call denoises all blocks of all its concepts in one batch."""

    def __init__(self, base: Translator, denoiser: Denoiser, settings: Settings | None = None) -> None:
        check_base(denoiser, base)
        self.base, self.denoiser, self.settings = base, denoiser, settings or Settings()

    @classmethod
    def load(
        cls,
        sources: Mapping[str, str | Path],
        *,
        settings: Mapping[str, Any] | None = None,
        device: str | torch.device | None = None,
    ) -> NeuralWeights:
        """`checkpoint`: a denoiser's folder, `base`: its translator's. Raises ForeignBase, LayoutMismatch, ModelNotFound, CheckpointMismatch."""
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        base, denoiser = Translator.load(Path(sources["base"])), Denoiser.load(Path(sources["checkpoint"]))
        return cls(base, denoiser.to(device), Settings(**(settings or {})))

    @torch.inference_mode()
    def __call__(self, requests: Sequence[Request]) -> list[Result]:
        """One LoRA a request, in order. Raises ValueError for a concept that the text encoder can't read."""
        if not requests:
            return []
        text_CTD = self.base.encode_text([request.concept for request in requests])
        seeds = [request.seed for request in requests]
        blocks_CNE = self.denoiser.generate(text_CTD.to(self.denoiser.mean.device), seeds, self.settings.num_steps)
        loras = self.denoiser.layout.from_blocks(blocks_CNE.cpu())
        pictures = self._previews(requests, loras)
        return [
            Result({name: stacked[at] for name, stacked in loras.items()}, self._metadata(request), picture)
            for at, (request, picture) in enumerate(zip(requests, pictures, strict=True))
        ]

    def _metadata(self, request: Request) -> dict[str, str]:
        own = {"method": "neural_weights", "state": "generated", "concept": request.concept, "base_hash": self.denoiser.base_hash}
        return {**request.said, **own, "seed": str(request.seed), "num_steps": str(self.settings.num_steps)}

    def _previews(self, requests: Sequence[Request], loras: Mapping[str, Tensor]) -> list[Tensor | None]:
        """The requests' pictures, each through its own LoRA, all in one forward pass."""
        found: list[Tensor | None] = [None] * len(requests)
        at = [i for i, request in enumerate(requests) if request.picture is not None]
        if at:
            rows = torch.tensor(at)
            given = torch.stack([picture for request in requests if (picture := request.picture) is not None])
            with attached(self.base.generator, self.base.low_rank(loras), rows):
                made = self.base.generator(given, self.base.silence(len(rows)))
            for i, picture in zip(at, made, strict=True):
                found[i] = picture
        return found


def check_base(denoiser: Denoiser, base: Translator) -> None:
    """Raises ForeignBase for another base translator than the denoiser's, LayoutMismatch where its LoRA has other tensors."""
    if denoiser.base_hash != base.base_hash:
        raise ForeignBase("This weight denoiser", denoiser.base_hash, base.base_hash)
    if denoiser.layout.tensors != tuple((name, tuple(shape)) for name, shape in base.lora_layout):
        raise LayoutMismatch("The denoiser's layout.json names other tensors than the translator's LoRA has; fetch both again.")
