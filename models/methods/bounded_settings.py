"""What may be set of Bounded Attention (models/methods/bounded_attention.py), and the authors' behaviours that we changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

COMPAT: dict[str, dict[str, Any]] = {
    "full_guidance": {"guidance_half": "both"},
    "authors_ddim": {"ddim": "authors"},
    "raw_rounding": {"min_cells": 0},
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides a result besides the base and the request. Defaults are the authors' for SD 1.5, except where the comment says ours."""

    num_inference_steps: int = 50
    guidance_scale: float = 7.5  # of requests that name none
    guidance_steps: int = 15  # the first denoising steps
    guidance_iterations: int = 5  # gradient steps in each of them, at most
    step_size: tuple[float, float] = (8.0, 2.0)  # of the first guided step, and where guidance ends
    loss_threshold: float = 0.2  # of L / S: below it a row's guidance in this step is done; each row for itself is ours
    cross_loss_weight: float = 1.5
    self_loss_weight: float = 0.5
    guidance_half: Literal["conditional", "both"] = "conditional"  # ours: the same gradient from half of the network's work
    mask_refinement: bool = True
    refine_from: int = 15  # the first denoising step with refined masks
    refine_every: int = 5
    clusters_per_subject: int = 3
    kmeans_restarts: int = 10  # ours; theirs 100
    bounded_layers: Mapping[str, Sequence[int]] | None = None  # {loss, mask}: numbers in order of computation; None: see `layer_table`
    filter_words: Sequence[str] | None = None  # function words; None: models.phrases.FILTER_WORDS, which is ours
    overlap: Literal["allow", "fail"] = "allow"
    min_cells: int = 1  # ours: a box's cells a side, at least; 0: as rounded
    self_mask: bool = True
    cross_mask: bool = True
    ddim: Literal["scheduler", "authors"] = "scheduler"

    def __post_init__(self) -> None:
        for name, least in (("num_inference_steps", 1), ("guidance_steps", 0), ("guidance_iterations", 0), ("refine_from", 1),
                            ("refine_every", 1), ("clusters_per_subject", 1), ("kmeans_restarts", 1), ("min_cells", 0)):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; the least is {least}.")
        for name, options in (
            ("guidance_half", ("conditional", "both")),
            ("overlap", ("allow", "fail")),
            ("ddim", ("scheduler", "authors")),
        ):
            if getattr(self, name) not in options:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose {' or '.join(options)}.")

    def with_options(self, options: Mapping[str, Any]) -> Settings:
        """These settings with some fields replaced by name; `compat` is taken by `with_compat`. Raises ValueError for a name that is none."""
        changes = dict(options)
        compat = changes.pop("compat", None) or ()
        known = [f.name for f in fields(self)]
        if unknown := sorted(changes.keys() - set(known)):
            raise ValueError(f"bounded_attention has no setting {unknown[0]!r}; it has {', '.join(known)}.")
        if "step_size" in changes:
            changes["step_size"] = tuple(changes["step_size"])
        return replace(self, **changes).with_compat(compat)

    def with_compat(self, names: Sequence[str]) -> Settings:
        """These settings with authors' behaviours that we changed put back: full_guidance, authors_ddim, raw_rounding (spec section 5)."""
        changes: dict[str, Any] = {}
        for name in names:
            if name not in COMPAT:
                raise ValueError(f"bounded_attention has no compat {name!r}; it knows {', '.join(COMPAT)}.")
            changes |= COMPAT[name]
        return replace(self, **changes)

    def refines_at(self, index: int) -> bool:
        """Whether masks are refined before step `index`."""
        return self.mask_refinement and index >= self.refine_from and (index - self.refine_from) % self.refine_every == 0
