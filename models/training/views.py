"""Crops of an aligned photograph, moved and recoloured, that still know where every pixel came from.

A placement is the 2x3 matrix that takes a point of the crop to a point of the aligned photograph, both in [-1, 1] (x, y), as
torch.nn.functional.affine_grid has it. Faces are aligned, so two placements say which cell of one crop shows what a cell of another shows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

GREY = torch.tensor([0.299, 0.587, 0.114])


@dataclass(frozen=True, kw_only=True)
class Moves:
    """How far a crop may be moved: rotation in radians, scale as a share of one, shift as a share of half a side."""

    rotation: float
    scale: float
    shift: float


@dataclass(frozen=True, kw_only=True)
class Colours:
    """Factors on brightness, contrast, and saturation, and the three channels' gains: each within 1 - x to 1 + x."""

    brightness: float
    contrast: float
    saturation: float
    gain: float


def random_placement(moves: Moves, flip: bool, generator: torch.Generator) -> Tensor:
    """A (2, 3) placement; `flip` mirrors left and right."""
    turn, scale, x, y = (2 * torch.rand(4, generator=generator) - 1).tolist()
    angle, size = turn * moves.rotation, 1 + scale * moves.scale
    mirror = -1.0 if flip else 1.0
    cos, sin = size * math.cos(angle), size * math.sin(angle)
    return torch.tensor([[mirror * cos, -mirror * sin, mirror * x * moves.shift], [sin, cos, y * moves.shift]])


def crop(image_3SS: Tensor, placement_23: Tensor, side: int) -> Tensor:
    """The placed crop of an 8-bit picture, (3, side, side) in [-1, 1], taken finely and averaged; beyond the border the edge goes on."""
    fine = max(1, round(image_3SS.shape[-1] / side))
    grid = F.affine_grid(placement_23[None], [1, 3, side * fine, side * fine], align_corners=False)
    pixels = image_3SS[None].float() / 127.5 - 1
    taken = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return F.avg_pool2d(taken, fine)[0] if fine > 1 else taken[0]


def recolour(image_3HW: Tensor, factors_6: Tensor) -> Tensor:
    """Brightness, contrast, saturation and gains of red, green, blue applied to a picture in [-1, 1]; stays there."""
    brightness, contrast, saturation = factors_6[:3].tolist()
    pixels = (image_3HW + 1) / 2 * factors_6[3:, None, None] * brightness
    pixels = (pixels - pixels.mean()) * contrast + pixels.mean()
    grey_1HW = (pixels * GREY[:, None, None]).sum(0, keepdim=True)
    return ((pixels - grey_1HW) * saturation + grey_1HW).clamp(0, 1) * 2 - 1


def random_factors(colours: Colours, generator: torch.Generator) -> Tensor:
    """Six factors for `recolour`."""
    reach = torch.tensor([colours.brightness, colours.contrast, colours.saturation, *[colours.gain] * 3])
    return 1 + reach * (2 * torch.rand(6, generator=generator) - 1)


def greyed(image_3HW: Tensor) -> Tensor:
    """The picture without colour, still three channels."""
    return (image_3HW * GREY[:, None, None]).sum(0, keepdim=True).expand(3, -1, -1)


def cell_centres(cells: int) -> Tensor:
    """(cells^2, 2) x, y of a square grid's cells in [-1, 1], row by row: cell y * cells + x."""
    centres = (torch.arange(cells) + 0.5) * 2 / cells - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def corresponding(points_N2: Tensor, placement_23: Tensor, other_23: Tensor) -> Tensor:
    """Where points of one crop lie in another crop of an aligned face, (N, 2) in [-1, 1]; values beyond lie outside the other crop."""
    aligned_N2 = points_N2 @ placement_23[:, :2].T + placement_23[:, 2]
    return (aligned_N2 - other_23[:, 2]) @ torch.linalg.inv(other_23[:, :2]).T


def face_weight(placement_23: Tensor, side: int, background: float) -> Tensor:
    """(1, side, side): 1 within the face of an aligned crop, `background` outside it, soft between."""
    aligned_N2 = cell_centres(side) @ placement_23[:, :2].T + placement_23[:, 2]
    x, y = aligned_N2[:, 0] / 0.62, (aligned_N2[:, 1] - 0.1) / 0.8
    inside_N = torch.sigmoid((1 - (x**2 + y**2).sqrt()) * 10)
    return (background + (1 - background) * inside_N).reshape(1, side, side)
