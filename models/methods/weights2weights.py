"""weights2weights (arXiv 2406.09413, NeurIPS 2024): pictures of people who are points in a space of adapters.

Each row brings its person as adapter weights or as coefficients in a space, may move it along linear attributes, and is drawn with its own adapter
in one batch with the others: y = W x + 27 B (A x), batched low-rank products beside the frozen layers (models/low_rank.py). No adapter is
switched, merged or loaded into the network. Letters: B rows, n weights, k components, C channels, h x w latent cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.bases import UNetBase
from models.catalog import model_revision
from models.low_rank import attached
from models.methods.weights2weights_directions import Debias, Edit, shift_of
from models.methods.weights2weights_files import Start, load_space
from models.methods.weights2weights_layout import Layout, LayoutMismatch
from models.methods.weights2weights_space import Space
from models.sampling import BeforeStep, Step, denoise, encode_prompts, prompts_of, rows_by_size
from models.sampling import Request as Sampled

NEGATIVE_PROMPT = "low quality, blurry, unfinished, cartoon"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides a result besides base, space and request. Defaults are the authors', except where the comment says ours."""

    num_inference_steps: int = 50
    guidance_scale: float = 3.0
    negative_prompt: str = NEGATIVE_PROMPT  # of requests that name none
    n_components: int | None = None  # of the space, the first ones; None: all
    debias: Debias = "joint"  # ours; theirs: one after another, sequential
    raw_directions: bool = False  # theirs: unscaled least squares directions

    def __post_init__(self) -> None:
        if self.num_inference_steps < 1 or (self.n_components is not None and self.n_components < 1):
            raise ValueError("num_inference_steps and n_components must be at least 1.")
        if self.debias not in ("joint", "sequential", "none"):
            raise ValueError(f"debias is {self.debias!r}; choose joint, sequential or none.")

    def with_options(self, options: Mapping[str, Any]) -> Settings:
        """These settings with some fields replaced by name; `compat` as COMPAT says. Raises ValueError for a name that is none."""
        changes = dict(options)
        for name in changes.pop("compat", None) or ():
            if name not in COMPAT:
                raise ValueError(f"weights2weights has no compat {name!r}; it knows {', '.join(COMPAT)}.")
            changes |= COMPAT[name]
        known = [f.name for f in fields(self)]
        if unknown := sorted(changes.keys() - set(known)):
            raise ValueError(f"weights2weights has no setting {unknown[0]!r}; it has {', '.join(known)}.")
        return replace(self, **changes)


COMPAT: dict[str, dict[str, Any]] = {"sequential_debias": {"debias": "sequential"}, "raw_directions": {"raw_directions": True}}


@dataclass(frozen=True, kw_only=True)
class Request:
    """One picture of one person, who comes as weights or as coefficients. Sizes in pixels, the base's own where None."""

    prompt: str
    seed: int
    start: Start
    edits: Sequence[Edit] = ()
    start_timestep: int | None = None  # T, 0-1000: as the person is while t > T, edited from t <= T; None: edited throughout
    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None


@dataclass(frozen=True)
class Result:
    """What became of a request: (3,H,W) in [-1, 1], fp32 on the CPU."""

    image: Tensor


class Weights2Weights:
    """Draws people, each row with its own adapter. A result depends on its request and the settings only.

    Weights are computed in fp32, adapters are applied in the base's dtype; the base gets its layers back untouched after every call.
    """

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
    ) -> Weights2Weights:
        """From local folders: `base` in diffusers layout and `checkpoint`, a space of ours or the authors'.

        `settings` that are not None replace the authors'. Without `device` CUDA if there is one, without `dtype` bf16 there, else fp32.
        Raises ValueError (ModelNotFound, CheckpointMismatch, LayoutMismatch, ForeignBase) saying what to do.
        """
        chosen = Settings().with_options({name: value for name, value in (settings or {}).items() if value is not None})
        folder = Path(sources["base"])
        base = UNetBase.load(folder, device=device, dtype=dtype)
        layout = Layout.of(base.unet, base_hash=model_revision(folder / "unet"))
        return cls(base, load_space(Path(sources["checkpoint"]), layout, n_components=chosen.n_components), chosen)

    @torch.no_grad()
    def __call__(self, requests: Sequence[Request]) -> list[Result]:
        """One result a request, in order. Raises ValueError for a request that cannot be: UnknownAttribute, LayoutMismatch and others."""
        if not requests:
            return []
        sampled = [self._sampled(request) for request in requests]
        unedited_Bn, edited_Bn = self.weights(requests)
        text, indices = encode_prompts(self.base, sampled)
        results: dict[int, Result] = {}
        for rows in rows_by_size(self.base, sampled):
            group = [sampled[row] for row in rows]
            conditional, unconditional = (text.take([indices[prompt] for prompt in prompts]) for prompts in prompts_of(group))
            from_B = [requests[row].start_timestep for row in rows]
            with people(self.base, self.space.layout, unedited_Bn[rows], edited_Bn[rows], from_B) as before_step:
                latents_BChw = denoise(self.base, group, conditional, unconditional, before_step=before_step)
            images_B3HW = self.base.decode(latents_BChw).float().cpu()
            results |= {row: Result(image) for row, image in zip(rows, images_B3HW, strict=True)}
        return [results[row] for row in range(len(requests))]

    def weights(self, requests: Sequence[Request]) -> tuple[Tensor, Tensor]:
        """The people's weights (B,n) as they come and edited, fp32 on the base's device: one product for all rows.

        Edits are added to the weights, so that what lies outside the space is kept. Raises ValueError (UnknownAttribute, LayoutMismatch, ...).
        """
        p_Bk = torch.stack([self._coefficients(request.start) for request in requests]).to(self.base.device)
        shift_Bk = torch.stack(
            [shift_of(self.space, r.edits, debias=self.settings.debias, raw=self.settings.raw_directions) for r in requests]
        )
        start_Bn = self.space.unproject(p_Bk)
        for row, request in enumerate(requests):
            if request.start.weights_n is not None:
                start_Bn[row] = request.start.weights_n.to(start_Bn)
        edited_Bn = start_Bn + self.space.shift(shift_Bk)
        has_edits_B1 = (shift_Bk != 0).any(1, keepdim=True)
        return start_Bn, torch.where(has_edits_B1, edited_Bn, start_Bn)

    def _coefficients(self, start: Start) -> Tensor:
        """(k,) of a start, zero-padded; zeros where it has weights. Raises LayoutMismatch, ValueError."""
        k = self.space.components
        given = [value for value in (start.weights_n, start.coefficients_k) if value is not None]
        if len(given) != 1:
            raise ValueError("a person comes either as weights or as coefficients; give one of them.")
        if not bool(torch.isfinite(given[0]).all()):
            raise ValueError("the person's weights or coefficients are not all finite.")
        if start.coefficients_k is None:
            if given[0].shape != (self.space.layout.size,):
                raise LayoutMismatch(f"{tuple(given[0].shape)} weights were given; this base takes ({self.space.layout.size},).")
            return torch.zeros(k)
        if len(given[0]) > k:
            raise LayoutMismatch(f"{len(given[0])} coefficients were given; this space has {k} components.")
        return torch.nn.functional.pad(given[0].float().cpu(), (0, k - len(given[0])))

    def _sampled(self, request: Request) -> Sampled:
        negative = self.settings.negative_prompt if request.negative_prompt is None else request.negative_prompt
        return Sampled(
            prompt=request.prompt, negative_prompt=negative, seed=request.seed, steps=self.settings.num_inference_steps,
            guidance_scale=self.settings.guidance_scale, height=request.height, width=request.width,
        )  # fmt: skip


@contextmanager
def people(
    base: UNetBase, layout: Layout, unedited_Bn: Tensor, edited_Bn: Tensor, edited_from: Sequence[int | None]
) -> Iterator[BeforeStep]:
    """Inside, the rows of a denoising have their own adapters: `unedited_Bn` while t > T, `edited_Bn` from t <= T or, T None, throughout.

    Yields what to call before each step. Both halves of guidance get the row's adapter.
    """
    adapters = layout.adapters(torch.cat([unedited_Bn, edited_Bn]).to(base.dtype))
    B, current = len(unedited_Bn), []

    with ExitStack() as stack:

        def before_step(step: Step) -> Tensor:
            nonlocal current
            at = {row: float(timestep) for row, timestep in zip(step.rows, step.timesteps, strict=True)}
            later = {row: (T := edited_from[row]) is not None and at[row] > T for row in step.rows}
            chosen = [row if later[row] else B + row for row in (*step.unconditional, *step.rows)]
            if chosen != current:
                stack.close()
                stack.enter_context(attached(base.unet, adapters, torch.tensor(chosen, device=base.device)))
                current = chosen
            return step.latents

        yield before_step
