"""Low-rank adapters of many people, trained together in one forward pass from one start: the points of weights2weights (arXiv 2406.09413).

A person is a few pictures; what is learned adds alpha B A to `to_q` and `to_v` of every attention, A (1,in), B (out,1), by the base's own
denoising loss under one prompt. All people begin with the same A and B = 0 and are shown the same times and noises, so that what differs between
their adapters comes from their pictures. A person's adapter does not depend on who is trained beside them (fp32: 1e-5 after three steps; Adam
magnifies rounding afterwards). Letters: G people, V pictures of a person, S pictures of a person a step, B = G S rows, n weights of an adapter.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.bases import UNetBase
from models.catalog import model_revision
from models.denoising import denoising_errors
from models.low_rank import attached
from models.methods.weights2weights_files import adapter_metadata
from models.methods.weights2weights_layout import ALPHA, RANK, Layout
from models.sampling import Request as Picture
from models.sampling import sample
from models.training.loop import keyed, learning_rate
from models.training.times import even_times, noisy_share

logger = logging.getLogger(__name__)

LAST_STEPS = 50  # whose mean is the final loss
CHECKS = 20  # points of a curve


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides an adapter besides the base and the pictures. Defaults are the authors' where their code says them."""

    prompt: str = "sks person"
    rank: int = RANK
    alpha: float = ALPHA
    num_steps: int = 800
    learning_rate: float = 1e-4
    batch: int = 1  # pictures of a person a step
    falling: float = 0.0  # last share of the steps, over which the learning rate falls to zero
    noisy_share: float = 0.0  # of the pictures, shown at the noisiest tenth of the times
    start_seed: int = 0  # of the A that all people begin with
    num_inference_steps: int = 50  # of the picture that shows what was learned
    guidance_scale: float = 3.0
    picture_seed: int = 0  # the same noise for everybody

    def with_options(self, options: Mapping[str, Any]) -> Settings:
        """These settings with some fields replaced by name. Raises ValueError for a name that is none."""
        unknown = sorted(options.keys() - {field.name for field in fields(self)})
        if unknown:
            raise ValueError(f"training of identities has no setting {unknown[0]!r}; it has {', '.join(f.name for f in fields(self))}.")
        return replace(self, **options)


@dataclass(frozen=True)
class Request:
    """One person: pictures (V,3,H,W) in [-1, 1] of the base's size, and the seed of times and noises; people of one seed share them."""

    pictures: Tensor
    seed: int
    name: str = ""  # written into what is made


@dataclass(frozen=True)
class Result:
    """adapter: fp32 tensors by PEFT key; metadata: what it is and how it came about. picture: (3,H,W) in [-1, 1], made with it. curve: mean
    losses of equal stretches of the training, which end at curve_steps. final_loss: mean of the last 50 steps, not finite where it diverged."""

    adapter: dict[str, Tensor]
    metadata: dict[str, str]
    picture: Tensor
    final_loss: float
    curve: list[float]
    curve_steps: list[int]


class Identities:
    """Trains the adapters of a batch of people on a frozen base."""

    def __init__(self, base: UNetBase, settings: Settings, base_hash: str | None = None) -> None:
        self.base, self.settings = base, settings
        self.layout = Layout.of(base.unet, rank=settings.rank, alpha=settings.alpha, base_hash=base_hash)

    @classmethod
    def load(cls, folder: Path, settings: Mapping[str, Any], *, device: str | torch.device | None = None) -> Identities:
        """From a base in diffusers layout, in fp32. Raises ModelNotFound, CheckpointMismatch, ValueError for an unknown setting."""
        base = UNetBase.load(folder, device=device, dtype=torch.float32)
        return cls(base, Settings().with_options(settings), model_revision(folder / "unet"))

    def __call__(self, requests: Sequence[Request]) -> list[Result]:
        """An adapter a person, in order. Raises ValueError for a request without pictures."""
        if not requests:
            return []
        for request in requests:
            if not len(request.pictures):
                raise ValueError("A person without pictures has nothing to learn from; give one or more.")
        with torch.no_grad():
            latents = [self.base.encode(request.pictures) for request in requests]
        weights_Gn = starting_weights(self.layout, self.settings.start_seed).repeat(len(requests), 1).to(self.base.device)
        losses_TG = self._train(weights_Gn.requires_grad_(), latents, [request.seed for request in requests])
        weights_Gn = weights_Gn.detach()
        logger.info("people=%d loss first=%.4f last=%.4f", len(requests), losses_TG[0].mean(), losses_TG[-LAST_STEPS:].mean())
        ends = sorted({math.ceil(self.settings.num_steps * (at + 1) / CHECKS) for at in range(CHECKS)})
        curve_KG = torch.stack([stretch.mean(0) for stretch in losses_TG.tensor_split(ends[:-1])])
        final_G = losses_TG[-LAST_STEPS:].mean(0)
        return [
            Result(
                adapter=self.layout.unflatten(weights_n.cpu()),
                metadata=self._facts(requests[at], float(final_G[at])),
                picture=picture,
                final_loss=float(final_G[at]),
                curve=curve_KG[:, at].tolist(),
                curve_steps=ends,
            )
            for at, (weights_n, picture) in enumerate(zip(weights_Gn, self._pictures(weights_Gn), strict=True))
        ]

    def _facts(self, request: Request, final_loss: float) -> dict[str, str]:
        """What an adapter's file says of it."""
        settings = self.settings
        return {
            **adapter_metadata(self.layout),
            "state": "trained",
            "person": request.name,
            "prompt": settings.prompt,
            "start_seed": str(settings.start_seed),
            "seed": str(request.seed),
            "steps": str(settings.num_steps),
            "pictures": str(len(request.pictures)),
            "quality": f"{final_loss:.6g}",
        }

    def _train(self, weights_Gn: Tensor, latents: Sequence[Tensor], seeds: Sequence[int]) -> Tensor:
        """Fit the weights in place; (steps, G) losses."""
        settings = self.settings
        optimizer = torch.optim.Adam([weights_Gn], lr=settings.learning_rate)
        people = torch.arange(len(latents), device=self.base.device).repeat_interleave(settings.batch)
        with torch.no_grad():
            text_1TC = self.base.encode_text([settings.prompt]).states
        losses = []
        for step in range(settings.num_steps):
            rate = learning_rate(step, settings.num_steps, settings.learning_rate, 1, settings.falling)
            optimizer.param_groups[0]["lr"] = rate
            clean_BChw, times_B, noise_BChw = self._drawn(latents, seeds, step)
            with torch.enable_grad(), attached(self.base.unet, self.layout.adapters(weights_Gn), people):
                states_BTC = text_1TC.expand(len(clean_BChw), -1, -1)
                loss_B = denoising_errors(self.base, clean_BChw, times_B, noise_BChw, states_BTC).mean((1, 2, 3))
                loss_G = loss_B.reshape(len(latents), settings.batch).mean(1)
                optimizer.zero_grad(set_to_none=True)
                loss_G.sum().backward()
            optimizer.step()
            losses.append(loss_G.detach())
        return torch.stack(losses).cpu()

    def _drawn(self, latents: Sequence[Tensor], seeds: Sequence[int], step: int) -> tuple[Tensor, Tensor, Tensor]:
        """What people are shown in a step, S rows each: clean latents (B,C,h,w), times (B,), noise. Drawn once a seed."""
        S, levels = self.settings.batch, len(self.base.scheduler.alphas_cumprod)
        drawn: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        for seed in set(seeds):
            generator = keyed(seed, step)
            times = noisy_share(even_times(S, generator), self.settings.noisy_share, generator)
            places = even_times(S, generator)  # of the pictures shown, as shares of a person's pictures
            noise = torch.randn((S, *latents[0].shape[1:]), generator=generator)
            drawn[seed] = (places, (times * levels).long().clamp(max=levels - 1), noise)
        clean = [own[(drawn[seed][0] * len(own)).long().to(own.device)] for own, seed in zip(latents, seeds, strict=True)]
        times_B, noise_BChw = (torch.cat([drawn[seed][part] for seed in seeds]).to(self.base.device) for part in (1, 2))
        return torch.cat(clean), times_B, noise_BChw

    def _pictures(self, weights_Gn: Tensor) -> list[Tensor]:
        """A picture of each person by the prompt they were trained with, all from the same noise."""
        settings = self.settings
        wanted = Picture(
            prompt=settings.prompt,
            seed=settings.picture_seed,
            steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
        )
        halves = 2 if wanted.guidance_scale > 1 else 1
        with attached(self.base.unet, self.layout.adapters(weights_Gn), torch.arange(len(weights_Gn)).repeat(halves)):
            return sample(self.base, [wanted] * len(weights_Gn))


def starting_weights(layout: Layout, seed: int) -> Tensor:
    """(n,) of an adapter that changes nothing yet: A uniform within 1/sqrt(in), as PEFT draws it, from `seed`; B zero."""
    generator = torch.Generator().manual_seed(seed)
    parts = {}
    for entry in layout.entries:
        is_down = ".lora_A." in entry.key
        drawn = (torch.rand(entry.shape, generator=generator) * 2 - 1) * entry.shape[1] ** -0.5 if is_down else torch.zeros(entry.shape)
        parts[entry.key] = drawn
    return layout.flatten(parts)
