"""Where a row's subjects are, on any grid, and who may attend to whom: the geometry of Bounded Attention (models/methods/bounded_attention.py).

S subjects; n cells of a grid, row by row; T text tokens. M_s: the cells of subject s; B: the cells of none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import floor
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import interpolate

Box: TypeAlias = tuple[float, float, float, float]
"""x0, y0, x1, y1 as fractions of the picture."""
Grid: TypeAlias = tuple[int, int]
"""Rows and columns."""

ASPECT_TOLERANCE = 0.02  # a mask's rounding to whole pixels


class BadRegion(ValueError):
    """A box or mask cannot be one."""


@dataclass(frozen=True)
class Layout:
    """A row's subjects: regions, and positions of their tokens (see models/phrases.py)."""

    regions: Sequence[Box | Tensor]  # a box, or a full-frame mask (H,W), where above 0.5
    subject_tokens: Sequence[Sequence[int]]
    leading_tokens: Sequence[int]  # one a subject: its last noun
    filter_tokens: Sequence[int]
    end_token: int

    def __len__(self) -> int:
        return len(self.regions)


def check_region(region: Box | Tensor, height: int, width: int, name: str) -> None:
    """Raises BadRegion for a box outside [0, 1] or without area, and for a mask that is empty or of another aspect ratio than the picture."""
    if isinstance(region, Tensor):
        if region.ndim != 2 or not bool((region > 0.5).any()):
            raise BadRegion(f"the mask of {name!r} is empty; a mask is white where the subject is.")
        h, w = region.shape
        if abs(w * height / (h * width) - 1) > ASPECT_TOLERANCE:
            raise BadRegion(f"the mask of {name!r} is {w} x {h} px; give it the aspect ratio of the picture, {width} x {height}.")
        return
    x0, y0, x1, y1 = region
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        raise BadRegion(f"the box {list(region)} of {name!r} is none: x0 < x1 and y0 < y1, all from 0 to 1, are fractions of the picture.")


def cells_of(region: Box | Tensor, grid: Grid, min_cells: int) -> Tensor:
    """(n,) bool: the region's cells. At least `min_cells` a side of a box, around its middle; at least one of a mask, unless min_cells is 0."""
    rows, columns = grid
    if isinstance(region, Tensor):
        share = interpolate((region > 0.5).float()[None, None], size=grid, mode="area")[0, 0]
        cells = share >= 0.5
        if min_cells and not cells.any():
            cells = share == share.max()
        return cells.flatten()
    x0, y0, x1, y1 = region
    cells = torch.zeros(rows, columns, dtype=torch.bool)
    cells[_span(y0, y1, rows, min_cells), _span(x0, x1, columns, min_cells)] = True
    return cells.flatten()


def _span(start: float, end: float, size: int, least: int) -> slice:
    first, last = round(start * size), round(end * size)
    least = min(least, size)
    if last - first < least:
        first = min(max(floor((start + end) / 2 * size - (least - 1) / 2), 0), size - least)
        last = first + least
    return slice(first, last)


def masks_of(layout: Layout, grid: Grid, min_cells: int) -> Tensor:
    """(S,n) bool: M_s of every subject."""
    if not len(layout):
        return torch.zeros(0, grid[0] * grid[1], dtype=torch.bool)
    return torch.stack([cells_of(region, grid, min_cells) for region in layout.regions])


def disjoint(masks_Sn: Tensor) -> bool:
    """Whether no cell belongs to two subjects."""
    return bool((masks_Sn.sum(0) <= 1).all())


def self_allowed(masks_Sn: Tensor) -> Tensor:
    """(n,n) bool: cell i may see cell j iff one of them is in B, or both are in one M_s."""
    background_n = ~masks_Sn.any(0)
    together_nn = (masks_Sn.float().T @ masks_Sn.float()) > 0
    return together_nn | background_n[:, None] | background_n[None, :]


def cross_allowed(masks_Sn: Tensor, layout: Layout, tokens: int, *, guidance: bool) -> Tensor:
    """(n,T) bool: a subject's tokens are seen by its cells (and by B during guidance), function words by none, the end token by B in guidance only."""
    background_n = ~masks_Sn.any(0)
    allowed_nT = torch.ones(masks_Sn.shape[1], tokens, dtype=torch.bool)
    closed = [*layout.filter_tokens, *(at for positions in layout.subject_tokens for at in positions)]
    allowed_nT[:, closed] = False
    for cells_n, positions in zip(masks_Sn, layout.subject_tokens, strict=True):
        viewers_n = cells_n | background_n if guidance else cells_n
        for at in positions:
            allowed_nT[viewers_n, at] = True
    if not guidance:
        allowed_nT[background_n, layout.end_token] = False
    return allowed_nT


@dataclass(frozen=True)
class Packing:
    """Self-attention under masks without a mask: queries by region, each with the keys it may see. Indices run over a batch of B n cells."""

    queries: Tensor  # every cell once
    keys: Tensor
    query_lens: list[int]
    key_lens: list[int]


def packing(masks_BSn: Sequence[Tensor]) -> Packing:
    """Region s of a row has the keys [M_s | B], its background all keys. Every row's masks must be disjoint."""
    queries, keys = [], []
    for row, masks_Sn in enumerate(masks_BSn):
        n = masks_Sn.shape[1]
        background = (~masks_Sn.any(0)).nonzero()[:, 0]
        blocks = [(cells, torch.cat([cells, background])) for cells in (mask_n.nonzero()[:, 0] for mask_n in masks_Sn)]
        blocks.append((background, torch.arange(n)))
        for block_queries, block_keys in blocks:
            if len(block_queries):
                queries.append(block_queries + row * n)
                keys.append(block_keys + row * n)
    return Packing(torch.cat(queries), torch.cat(keys), [len(q) for q in queries], [len(k) for k in keys])


@dataclass
class Bounds:
    """One row's masks while it is made: its regions' cells, until refinement puts better ones in their place. All on the CPU."""

    layout: Layout
    min_cells: int = 1
    refined: Tensor | None = None  # (S,n)
    refined_grid: Grid | None = None
    _made: dict[tuple[object, ...], Tensor] = field(default_factory=dict)  # everything is built once a grid, until masks change

    def __len__(self) -> int:
        return len(self.layout)

    def regions(self, grid: Grid) -> Tensor:
        """(S,n) bool: the cells of the regions as given; what guidance measures."""
        return self._once(("regions", grid), lambda: masks_of(self.layout, grid, self.min_cells))

    def masks(self, grid: Grid) -> Tensor:
        """(S,n) bool: the masks in force, resized from where they were refined."""
        if self.refined is None or self.refined_grid is None:
            return self.regions(grid)
        refined_1Shw = self.refined.reshape(1, -1, *self.refined_grid).float()
        return self._once(("masks", grid), lambda: interpolate(refined_1Shw, size=grid, mode="nearest-exact")[0].flatten(1) > 0.5)

    def refine(self, masks_Sn: Tensor, grid: Grid) -> None:
        """Put refined masks in force."""
        self.refined, self.refined_grid = masks_Sn, grid
        self._made = {key: made for key, made in self._made.items() if key[0] == "regions"}

    def self_allowed(self, grid: Grid) -> Tensor:
        """(n,n) bool, see `self_allowed`."""
        return self._once(("self", grid), lambda: self_allowed(self.masks(grid)))

    def cross_allowed(self, grid: Grid, tokens: int, *, guidance: bool) -> Tensor:
        """(n,T) bool, see `cross_allowed`."""
        return self._once(("cross", grid, guidance), lambda: cross_allowed(self.masks(grid), self.layout, tokens, guidance=guidance))

    def _once(self, key: tuple[object, ...], make: Callable[[], Tensor]) -> Tensor:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]
