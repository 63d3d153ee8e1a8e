"""Damage with known strength, for training, proof and demo alike: what years, scanners and compression do to a small portrait.

InstantRestore's training data are blurred, shrunk, made noisy, compressed and enlarged. Here the picture is enlarged before it is
compressed, as an archive's file is: eight pixels square would leave JPEG one block. Strengths are measured on a face crop of 64 px and
scale with the picture, so that a level takes the same detail from a face at any size.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

MEASURED_AT = 64  # pixels: the side that the strengths below refer to


@dataclass(frozen=True, kw_only=True)
class Damage:
    """Ranges, both ends included, from which the damage of one picture is drawn.

    `shrink`: factor by which detail is lost at 64 px; `jpeg`: quality, None for no compression; `blur`: standard
    deviation of the blur along either axis, in pixels at 64 px; `noise`: standard deviation of the noise on the shrunken picture, of 255.
    """

    shrink: tuple[float, float]
    jpeg: tuple[int, int] | None
    blur: tuple[float, float]
    noise: tuple[float, float]


LEVELS: dict[str, Damage] = {
    "mild": Damage(shrink=(2, 2), jpeg=(30, 60), blur=(0.1, 0.4), noise=(0, 3)),
    "medium": Damage(shrink=(4, 4), jpeg=(15, 30), blur=(0.1, 0.8), noise=(1, 5)),
    "strong": Damage(shrink=(8, 8), jpeg=(10, 20), blur=(0.1, 1.2), noise=(2, 8)),
    "anything": Damage(shrink=(1, 8), jpeg=(10, 90), blur=(0.1, 2.0), noise=(0, 20)),  # training only: what archives hold
}


def degrade(image_3HW: Tensor, level: str | Damage, generator: torch.Generator) -> Tensor:
    """A damaged copy of a picture, same shape, in [-1, 1].

    image_3HW: square, in [-1, 1]. `level`: a name of LEVELS or ranges of one's own. Raises ValueError for an unknown name or a picture that
    is not square. The same generator state gives the same damage.
    """
    if isinstance(level, str) and level not in LEVELS:
        raise ValueError(f"no damage level {level!r}; choose one of {', '.join(LEVELS)}")
    damage = LEVELS[level] if isinstance(level, str) else level
    side = image_3HW.shape[-1]
    if image_3HW.shape[-2] != side:
        raise ValueError(f"degrade works on square face crops, got {tuple(image_3HW.shape)}; crop the face first")
    scale = side / MEASURED_AT
    sigma_x, sigma_y = (scale * _between(damage.blur, generator) for _ in range(2))
    blurred = blur(image_3HW, sigma_x, sigma_y, angle=_between((0.0, math.pi), generator))
    small_side = max(4, round(MEASURED_AT / _between(damage.shrink, generator)))
    small = _resize(blurred, min(small_side, side))
    noise = _between(damage.noise, generator) / 127.5
    small = (small + noise * torch.randn(small.shape, generator=generator)).clamp(-1, 1)
    large = _resize(small, side).clamp(-1, 1)
    if damage.jpeg is None:
        return large
    return jpeg(large, quality=int(torch.randint(damage.jpeg[0], damage.jpeg[1] + 1, (), generator=generator)))


def blur(image_3HW: Tensor, sigma_x: float, sigma_y: float, angle: float) -> Tensor:
    """Gaussian blur of two widths (pixels), the first along `angle` (radians); the border is mirrored."""
    radius = max(1, math.ceil(2.5 * max(sigma_x, sigma_y)))
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    y, x = torch.meshgrid(offsets, offsets, indexing="ij")
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    kernel = torch.exp(-0.5 * ((along / sigma_x) ** 2 + (across / sigma_y) ** 2))
    kernel = (kernel / kernel.sum()).expand(image_3HW.shape[0], 1, -1, -1).to(image_3HW)
    padded = F.pad(image_3HW[None], [radius] * 4, mode="reflect")
    return F.conv2d(padded, kernel, groups=image_3HW.shape[0])[0]


def jpeg(image_3HW: Tensor, quality: int) -> Tensor:
    """The picture after one JPEG compression by Pillow, in [-1, 1]."""
    file = io.BytesIO()
    to_pil(image_3HW).save(file, format="JPEG", quality=quality)
    return from_pil(Image.open(file))


def to_pil(image_3HW: Tensor) -> Image.Image:
    """An 8-bit RGB picture from one in [-1, 1]; values beyond are clamped."""
    return Image.fromarray(((image_3HW.detach().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy())


def from_pil(image: Image.Image) -> Tensor:
    """(3, H, W) in [-1, 1] from a picture of any mode."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 127.5 - 1


def _resize(image_3HW: Tensor, side: int) -> Tensor:
    return F.interpolate(image_3HW[None], size=(side, side), mode="bicubic", align_corners=False, antialias=True)[0]


def _between(bounds: tuple[float, float], generator: torch.Generator) -> float:
    low, high = bounds
    return low + (high - low) * float(torch.rand((), generator=generator))
