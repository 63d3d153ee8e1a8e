"""One photograph to one model: its coefficients in the space of adapters, by the base's own denoising loss (arXiv 2406.09413, spec section 2).

p minimises E |m * (eps - eps_theta(z_t; w(p)))|^2 with w(p) = (p Vᵀ) std + mean, from p = 0, with random t and noise each step and all else frozen;
m is the photograph's mask. Ours: B photographs together, each with its mask, noises and p, so that V is read for all of them at once.
Letters: B photographs, S noises of each a step, k components, C channels, h x w latent cells.
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
from torch.nn.functional import interpolate

from models.bases import UNetBase
from models.catalog import model_revision
from models.denoising import denoising_errors
from models.low_rank import attached
from models.methods.weights2weights_files import load_space
from models.methods.weights2weights_layout import Layout
from models.methods.weights2weights_space import Space

logger = logging.getLogger(__name__)

LAST_STEPS = 50  # whose mean is the final loss
CHECKS = 20  # points of a curve


class EmptyMask(ValueError):
    """A mask that leaves nothing of the photograph."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides an inversion besides base, space and photograph. Defaults are the authors'; their batch is 1, ours as many as asked."""

    prompt: str = "sks person"
    num_steps: int = 400
    learning_rate: float = 0.1  # Adam's, in the units of p
    weight_decay: float = 1e-10
    noises: int = 1  # of each photograph a step
    n_components: int | None = None  # of the space, the first ones; None: all (the authors: 10,000)
    checkpointing: bool = False  # less memory for activations, more time

    def __post_init__(self) -> None:
        if min(self.num_steps, self.noises, 1 if self.n_components is None else self.n_components) < 1:
            raise ValueError("num_steps, noises and n_components must be at least 1.")
        if self.learning_rate <= 0 or self.weight_decay < 0:
            raise ValueError("learning_rate must be above 0 and weight_decay at least 0.")

    def with_options(self, options: Mapping[str, Any]) -> Settings:
        """These settings with some fields replaced by name. Raises ValueError for a name that is none."""
        known = [f.name for f in fields(self)]
        if unknown := sorted(options.keys() - set(known)):
            raise ValueError(f"inversion has no setting {unknown[0]!r}; it has {', '.join(known)}.")
        return replace(self, **options)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One photograph: (3,H,W) in [-1, 1] of a size that the base takes. `mask` (H,W): above 0 what counts, all of it where None."""

    image: Tensor
    seed: int
    mask: Tensor | None = None


@dataclass(frozen=True)
class Result:
    """Coefficients (k,), fp32 on the CPU, and how the loss fell. `final_loss`, of the last 50 steps, is not finite where it diverged."""

    coefficients_k: Tensor
    final_loss: float
    curve: list[float]  # mean losses of equal stretches of the steps
    curve_steps: list[int]  # where each stretch ends


class Inversion:
    """Inverts photographs, those of one size together. A result depends on its photograph, mask and seed only."""

    def __init__(self, base: UNetBase, space: Space, settings: Settings | None = None) -> None:
        self.base, self.settings = base, settings or Settings()
        self.space = space.to(base.device)
        self.space.check_network(base.unet)

    @classmethod
    def load(
        cls,
        sources: Mapping[str, str | Path],
        *,
        settings: Mapping[str, Any] | None = None,
        device: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Inversion:
        """From local folders: `base` in diffusers layout and `checkpoint`, a space of ours or the authors'. Errors as of Weights2Weights.load."""
        chosen = Settings().with_options({name: value for name, value in (settings or {}).items() if value is not None})
        folder = Path(sources["base"])
        base = UNetBase.load(folder, device=device, dtype=dtype)
        layout = Layout.of(base.unet, base_hash=model_revision(folder / "unet"))
        return cls(base, load_space(Path(sources["checkpoint"]), layout, n_components=chosen.n_components), chosen)

    def __call__(self, requests: Sequence[Request]) -> list[Result]:
        """One result a request, in order. Raises EmptyMask, ValueError."""
        groups: dict[torch.Size, list[int]] = {}
        for row, request in enumerate(requests):
            groups.setdefault(request.image.shape, []).append(row)
        results: dict[int, Result] = {}
        for rows in groups.values():
            results |= zip(rows, self._inverted([requests[row] for row in rows]), strict=True)
        return [results[row] for row in range(len(requests))]

    def _inverted(self, requests: Sequence[Request]) -> list[Result]:
        settings, k = self.settings, self.space.components
        with torch.no_grad():
            clean_BChw = self.base.encode(torch.stack([request.image for request in requests])).float()
            states_1TC = self.base.encode_text([settings.prompt]).states
        masks_B1hw = torch.stack([self._mask(request, clean_BChw.shape[-2:]) for request in requests]).to(clean_BChw)
        generators = [torch.Generator().manual_seed(request.seed) for request in requests]
        p_Bk = torch.zeros(len(requests), k, device=self.base.device, requires_grad=True)
        optimizer = torch.optim.Adam([p_Bk], lr=settings.learning_rate, weight_decay=settings.weight_decay)
        losses = []
        if settings.checkpointing:
            self.base.unet.enable_gradient_checkpointing()
        try:
            for _ in range(settings.num_steps):
                times_BS, noise_BSChw = self._drawn(generators, clean_BChw.shape[1:])
                optimizer.zero_grad(set_to_none=True)
                losses.append(self.step_backward(p_Bk, clean_BChw, masks_B1hw, times_BS, noise_BSChw, states_1TC))
                optimizer.step()
        finally:
            self.base.unet.disable_gradient_checkpointing()
        losses_TB = torch.stack(losses).cpu()
        logger.info("photographs=%d loss first=%.4f last=%.4f", len(requests), losses_TB[0].mean(), losses_TB[-LAST_STEPS:].mean())
        ends = sorted({math.ceil(settings.num_steps * (at + 1) / CHECKS) for at in range(CHECKS)})
        curve_KB = torch.stack([stretch_TB.mean(0) for stretch_TB in losses_TB.tensor_split(ends[:-1])])
        final_B, found_Bk = losses_TB[-LAST_STEPS:].mean(0), p_Bk.detach().cpu()
        return [Result(p_k, float(final_B[at]), curve_KB[:, at].tolist(), ends) for at, p_k in enumerate(found_Bk)]

    def step_backward(
        self, p_Bk: Tensor, clean_BChw: Tensor, masks_B1hw: Tensor, times_BS: Tensor, noise_BSChw: Tensor, states_1TC: Tensor
    ) -> Tensor:
        """Each photograph's loss (B,), its gradient added to p_Bk.grad. No photograph is in another one's gradient."""
        B, S = times_BS.shape
        people = torch.arange(B, device=p_Bk.device).repeat_interleave(S)
        with torch.enable_grad():
            adapters = self.space.layout.adapters(self.space.unproject(p_Bk).to(self.base.dtype))
            with attached(self.base.unet, adapters, people):  # around backward too: checkpointing runs layers again there
                errors_RChw = denoising_errors(
                    self.base, clean_BChw[people], times_BS.flatten(), noise_BSChw.flatten(0, 1), states_1TC.expand(B * S, -1, -1)
                )
                weights_R1hw = masks_B1hw[people] / masks_B1hw[people].mean((1, 2, 3), keepdim=True)
                loss_B = (errors_RChw * weights_R1hw).mean((1, 2, 3)).reshape(B, S).mean(1)
                loss_B.sum().backward()
        return loss_B.detach()

    def _drawn(self, generators: Sequence[torch.Generator], shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Times (B,S) and noises (B,S,C,h,w) of a step, from each photograph's generator."""
        S, levels = self.settings.noises, len(self.base.scheduler.alphas_cumprod)
        times_BS = torch.stack([torch.randint(levels, (S,), generator=generator) for generator in generators])
        noise_BSChw = torch.stack([torch.randn((S, *shape), generator=generator) for generator in generators])
        return times_BS.to(self.base.device), noise_BSChw.to(self.base.device)

    def _mask(self, request: Request, cells: torch.Size) -> Tensor:
        """(1,h,w): how much of each latent cell counts. Raises EmptyMask, ValueError for another shape than the photograph's."""
        if request.mask is None:
            return torch.ones(1, *cells)
        if request.mask.shape != request.image.shape[-2:]:
            raise ValueError(
                f"the mask is {tuple(request.mask.shape)}, the photograph {tuple(request.image.shape[-2:])}; give one of its size."
            )
        mask_1hw = interpolate((request.mask > 0).float()[None, None], size=cells, mode="area")[0]
        if not bool((mask_1hw > 0).any()):
            raise EmptyMask("the mask is empty; mark the face, or leave the mask out to use the whole photograph.")
        return mask_1hw
