"""Bounded Attention, "Be Yourself" (arXiv 2403.16990, ECCV 2024): several similar subjects, each in its place and with its own attributes.

Similar subjects blend because attention carries features between them. Here a layout bounds who may attend to whom: masks in every attention
(bounded_layout.py, bounded_layers.py), gradient steps on the latents in the first denoising steps (bounded_guidance.py), and masks refined by
clustering attention afterwards (bounded_refinement.py). Nothing is trained; any U-Net of Stable Diffusion's topology will do.
Letters: B rows, S subjects, C channels, h x w latent cells, n cells of a layer's grid, T tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor
from torch.nn.functional import interpolate

from models.attention import resolve_backend
from models.bases import Text, UNetBase
from models.catalog import read_card
from models.methods.bounded_composition import Composition
from models.methods.bounded_ddim import AuthorsDDIM
from models.methods.bounded_guidance import Guided
from models.methods.bounded_layers import attached, attention_layers, layer_table
from models.methods.bounded_layout import Bounds, Box, Layout, check_region, disjoint
from models.methods.bounded_refinement import Cluster, KMeansClusters
from models.methods.bounded_settings import Settings
from models.phrases import FILTER_WORDS, check_positions, filter_positions, match_phrase, naming_positions, tokens_of
from models.sampling import Request as Sampled
from models.sampling import denoise_by_unet, encode_prompts, initial_noise, prompts_of, rows_by_size, size_of

logger = logging.getLogger(__name__)


class OverlappingSubjects(ValueError):
    """Two subjects of a row share cells or tokens, and overlap is `fail`."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Something that the prompt names, and where it goes."""

    phrase: str  # in the prompt's own words
    box: Box | None = None  # x0, y0, x1, y1 as fractions of the picture
    mask: Tensor | None = None  # (h,w) of the whole frame, above 0.5 where the subject goes; counts in place of the box
    occurrence: int | None = None  # which of equal phrases, from 0
    token_indices: Sequence[int] | None = None  # in place of finding the phrase


@dataclass(frozen=True, kw_only=True)
class Request:
    """One picture with its layout. Without subjects it is plain sampling."""

    prompt: str
    seed: int
    subjects: Sequence[Subject] = ()
    negative_prompt: str = ""
    height: int | None = None  # pixels; the base's own size where None
    width: int | None = None
    guidance_scale: float | None = None


@dataclass(frozen=True)
class Result:
    """What became of a request."""

    image: Tensor  # (3,H,W) in [-1, 1], fp32 on the CPU
    final_loss: float | None  # L / S, last measured; None without guidance
    guidance_iterations_used: int  # gradient steps taken
    token_indices: list[list[int]]  # of each subject's words that name something
    refined_masks: Tensor | None  # (S,H,W) bool, the masks in force at the end; None where none were refined


class BoundedAttention:
    """Makes pictures whose subjects keep to their regions, rows of different layouts, prompts and guidance scales together.

    A row's randomness (noise, clustering) comes from its seed, its masks and its guidance are its own, so neither depends on its batch.
    Arithmetic is in the base's dtype, on its device; the base gets its own processors back after every call.
    """

    def __init__(self, base: UNetBase, settings: Settings, *, backend: str = "auto", packed: bool | None = None) -> None:
        self.base, self.settings, self.backend = base, settings, backend
        self.table = layer_table(attention_layers(base.unet), settings.bounded_layers)
        scheduler = AuthorsDDIM if settings.ddim == "authors" else DDIMScheduler
        self.scheduler = scheduler.from_config(base.scheduler.config, clip_sample=False, set_alpha_to_one=False)
        self.attention_backend = resolve_backend(base.device, base.dtype, backend=backend)  # for the job's log
        self.packed = self.attention_backend != "sdpa" if packed is None else packed  # sdpa would take region after region

    @classmethod
    def load(
        cls,
        sources: Mapping[str, str | Path],
        *,
        settings: Mapping[str, Any] | None = None,
        device: str | None = None,
        dtype: torch.dtype | None = None,
        backend: str = "auto",
    ) -> BoundedAttention:
        """From local paths: `folder` of a lab base, whose card may hold settings, or `base` in diffusers layout.

        `settings` that are not None replace the model's own. Without `device` CUDA if there is one, without `dtype` bf16 there, else fp32.
        Raises ValueError (ModelNotFound, CheckpointMismatch) saying what to do.
        """
        folder = Path(sources["folder"] if "folder" in sources else sources["base"])
        own = read_card(folder).facts.get("settings", {}) if (folder / "card.json").is_file() else {}
        asked = {name: value for name, value in (settings or {}).items() if value is not None}
        return cls(UNetBase.load(folder, device=device, dtype=dtype), Settings().with_options({**own, **asked}), backend=backend)

    @torch.no_grad()
    def __call__(self, requests: Sequence[Request]) -> list[Result]:
        """One result a request, in order. Raises ValueError for a request that cannot be: PhraseNotFound, BadRegion, NonFiniteLoss and others."""
        sampled = [self._sampled(request) for request in requests]
        layouts = [self.layout(request) for request in requests]
        text, indices = encode_prompts(self.base, sampled)
        results: dict[int, Result] = {}
        for rows in rows_by_size(self.base, sampled):
            group = [sampled[row] for row in rows]
            conditional, unconditional = (text.take([indices[prompt] for prompt in prompts]) for prompts in prompts_of(group))
            composition = self._composition([layouts[row] for row in rows], group, conditional, unconditional)
            with attached(self.base.unet, self.table.layers, composition.bounding):
                latents_BChw = denoise_by_unet(
                    self.base.unet,
                    self.scheduler,
                    group,
                    conditional,
                    unconditional,
                    initial_noise(self.base, group),
                    before_step=composition,
                )
            images_B3HW = self.base.decode(latents_BChw).float().cpu()
            for at, row in enumerate(rows):
                results[row] = _result(images_B3HW[at], composition.bounds[at], composition.guided[at])
        return [results[row] for row in range(len(requests))]

    def layout(self, request: Request) -> Layout:
        """A request's regions and tokens, checked. Raises ValueError (see models.phrases, BadRegion, OverlappingSubjects)."""
        height, width = size_of(self.base, self._sampled(request))
        tokens = tokens_of(self.base.tokenizer, request.prompt)
        words = FILTER_WORDS if self.settings.filter_words is None else frozenset(word.lower() for word in self.settings.filter_words)
        filters = filter_positions(tokens, words)
        regions, naming = [], []
        for subject in request.subjects:
            region = subject.box if subject.mask is None else subject.mask
            if region is None:
                raise ValueError(f"the subject {subject.phrase!r} has neither box nor mask; give one of them.")
            check_region(region, height, width, subject.phrase)
            if subject.token_indices is None:
                naming.append(naming_positions(match_phrase(tokens, subject.phrase, subject.occurrence), filters))
            else:
                check_positions(tokens, subject.token_indices, subject.phrase)
                naming.append(list(subject.token_indices))
            regions.append(region)
        taken = {at for positions in naming for at in positions}
        layout = Layout(regions, naming, [positions[-1] for positions in naming], [at for at in filters if at not in taken], tokens.end)
        self._check_overlap(request, layout, (height // self.base.factor, width // self.base.factor))
        return layout

    def _check_overlap(self, request: Request, layout: Layout, latents: tuple[int, int]) -> None:
        shared = [
            f"{request.subjects[a].phrase!r} and {request.subjects[b].phrase!r} share words"
            for a, b in combinations(range(len(layout)), 2)
            if set(layout.subject_tokens[a]) & set(layout.subject_tokens[b])
        ]
        if not disjoint(Bounds(layout, self.settings.min_cells).regions(latents)):
            shared.append("regions overlap")
        if shared and self.settings.overlap == "fail":
            raise OverlappingSubjects(f"{'; '.join(shared)} in {request.prompt!r}; move them apart, or set overlap: allow.")
        if shared:
            logger.warning("subjects may blend: %s prompt=%r", "; ".join(shared), request.prompt)

    def _sampled(self, request: Request) -> Sampled:
        scale = self.settings.guidance_scale if request.guidance_scale is None else request.guidance_scale
        return Sampled(
            prompt=request.prompt, negative_prompt=request.negative_prompt, seed=request.seed, steps=self.settings.num_inference_steps,
            guidance_scale=scale, height=request.height, width=request.width,
        )  # fmt: skip

    def _composition(self, layouts: Sequence[Layout], group: Sequence[Sampled], conditional: Text, unconditional: Text) -> Composition:
        settings = self.settings
        clusters: list[Cluster] = [
            KMeansClusters(settings.clusters_per_subject * len(layout), request.seed, settings.kmeans_restarts)
            for layout, request in zip(layouts, group, strict=True)
        ]
        bounds = [Bounds(layout, settings.min_cells) for layout in layouts]
        return Composition(
            self.base.unet, settings, self.table, bounds, conditional, unconditional, clusters,
            steps=settings.num_inference_steps, packed=self.packed, backend=self.backend,
        )  # fmt: skip


def _result(image_3HW: Tensor, bounds: Bounds, guided: Guided) -> Result:
    refined = None
    if bounds.refined is not None and bounds.refined_grid is not None:
        masks_1Shw = bounds.refined.reshape(1, -1, *bounds.refined_grid).float()
        refined = interpolate(masks_1Shw, size=image_3HW.shape[-2:], mode="nearest-exact")[0] > 0.5
    loss = guided.losses[-1] / len(bounds) if guided.losses else None
    return Result(image_3HW, loss, guided.updates, [list(positions) for positions in bounds.layout.subject_tokens], refined)
