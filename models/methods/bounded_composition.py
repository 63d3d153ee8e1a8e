"""Rows of Bounded Attention on their way through denoising: guidance, refinement, and the bounds of every network call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from models.bases import Text
from models.methods.bounded_guidance import Guided, descend, losses_of, step_size
from models.methods.bounded_layers import Bounding, Call, Entry, LayerTable
from models.methods.bounded_layout import Bounds
from models.methods.bounded_refinement import Cluster, Maps, refined_masks
from models.methods.bounded_settings import Settings
from models.sampling import Step


class Composition:
    """Rows of one size on their way: what is called before every denoising step (models/sampling.py), within `attached`."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        settings: Settings,
        table: LayerTable,
        bounds: Sequence[Bounds],
        conditional: Text,
        unconditional: Text,
        clusters: Sequence[Cluster],
        *,
        steps: int,
        packed: bool = False,
        backend: str = "auto",
    ) -> None:
        self.unet, self.settings, self.table, self.bounds, self.clusters = unet, settings, table, bounds, clusters
        self.conditional, self.unconditional = conditional, unconditional
        self.packed, self.backend = packed, backend
        self.bounding = Bounding()
        self.guided = [Guided() for _ in bounds]
        self.maps = [Maps() for _ in bounds]
        self.last_refinement = max((index for index in range(steps) if settings.refines_at(index)), default=-1)

    def __call__(self, step: Step) -> Tensor:
        """The latents to denoise: guided, with masks refined where it is time; sets the bounds of the denoising call that follows."""
        latents = step.latents
        if step.index < self.settings.guidance_steps:
            latents = self._guide(step)
        if self.settings.refines_at(step.index):
            self._refine(step)
        entries = [Entry(row, self.bounds[row], False) for row in step.unconditional] + [
            Entry(row, self.bounds[row], True) for row in step.rows
        ]
        self.bounding.call = self._call(entries, latents, guidance=False)
        if step.index < self.last_refinement:
            self.bounding.call.watched, self.bounding.call.watch = frozenset(self.table.mask), self._keep_maps
        return latents

    def _call(self, entries: list[Entry], latents: Tensor, *, guidance: bool) -> Call:
        h, w = latents.shape[-2:]
        return Call(
            entries, self.table, (h, w), guidance=guidance, self_mask=self.settings.self_mask, cross_mask=self.settings.cross_mask,
            packed=self.packed, backend=self.backend,
        )  # fmt: skip

    def _guide(self, step: Step) -> Tensor:
        at = [position for position, row in enumerate(step.rows) if len(self.bounds[row])]
        if not at or not self.settings.guidance_iterations:
            return step.latents
        settings, rows = self.settings, [step.rows[position] for position in at]
        latents = step.latents.clone()
        latents[at] = descend(
            lambda z, some: self._losses(step, z, [at[one] for one in some]),
            latents[at],
            [len(self.bounds[row]) for row in rows],
            [self.guided[row] for row in rows],
            beta=step_size(step.index, settings.guidance_steps, *settings.step_size),
            iterations=settings.guidance_iterations,
            threshold=settings.loss_threshold,
        )
        return latents

    def _losses(self, step: Step, z_RChw: Tensor, positions: list[int]) -> Tensor:
        """L of the rows at `positions` of the step, from latents of theirs."""
        rows = [step.rows[position] for position in positions]
        both = self.settings.guidance_half == "both"
        halves = (False, True) if both else (True,)
        entries = [Entry(row, self.bounds[row], conditional) for conditional in halves for row in rows]
        states = torch.cat([(self.conditional if half else self.unconditional).take(rows).states for half in halves])
        timesteps = step.timesteps[positions].repeat(len(halves))
        inputs = z_RChw.repeat(len(halves), 1, 1, 1)  # DDIM does not scale them

        def forward(x: Tensor, call: Call) -> None:
            with self.bounding.during(call):
                self.unet(x, timesteps, encoder_hidden_states=states, return_dict=False)

        weights = (self.settings.cross_loss_weight, self.settings.self_loss_weight)
        return losses_of(forward, inputs, self._call(entries, z_RChw, guidance=True), weights, rows, stop=not both)

    def _keep_maps(self, number: int, probabilities_EHnM: Tensor, entries: Sequence[Entry]) -> None:
        for attention_HnM, entry in zip(probabilities_EHnM, entries, strict=True):
            if not entry.conditional or not len(entry.bounds):
                continue
            attention_nM = attention_HnM.float().mean(0)
            if number % 2:
                self.maps[entry.row].add_leading(attention_nM[:, list(entry.bounds.layout.leading_tokens)])
            else:
                self.maps[entry.row].add_self(attention_nM)

    def _refine(self, step: Step) -> None:
        h, w = step.latents.shape[-2:]
        grid = self.table.grid(self.table.mask[0], (h, w))
        for row in step.rows:
            bounds = self.bounds[row]
            if len(bounds):
                bounds.refine(refined_masks(self.maps[row], bounds.masks(grid), bounds.regions(grid), self.clusters[row]), grid)
