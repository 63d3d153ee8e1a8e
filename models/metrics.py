"""How close a picture is to the original, how alike two faces are, and how sure one may be of a difference.

All pictures are (B, 3, H, W) in [-1, 1]; every measure gives one number a picture. No learned perceptual distance is among them: LPIPS
needs weights that come from elsewhere. GMSD needs none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure, structural_similarity_index_measure

LUMA = (0.299, 0.587, 0.114)
GMSD_CONSTANT = 170 / 255**2  # Xue et al. 2014, section II-B, for values in [0, 1]


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def psnr(images_B3HW: Tensor, originals_B3HW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, (B,). Equal pictures give infinity."""
    return -10 * ((images_B3HW - originals_B3HW).square().mean((1, 2, 3)) / 4).log10()


def ssim(images_B3HW: Tensor, originals_B3HW: Tensor) -> Tensor:
    """Structural similarity, (B,), at most 1 (Wang et al. 2004, window 11, sigma 1.5)."""
    values = structural_similarity_index_measure(_unit(images_B3HW), _unit(originals_B3HW), data_range=1.0, reduction="none")
    assert isinstance(values, Tensor)
    return values


def ms_ssim(images_B3HW: Tensor, originals_B3HW: Tensor) -> Tensor:
    """Multi-scale structural similarity, (B,), at most 1, with all five scales. Raises ValueError for sides of 160 px or less."""
    if min(images_B3HW.shape[-2:]) <= 160:
        raise ValueError(f"MS-SSIM's five scales need pictures above 160 px, got {tuple(images_B3HW.shape[-2:])}; use ssim.")
    values = multiscale_structural_similarity_index_measure(_unit(images_B3HW), _unit(originals_B3HW), data_range=1.0, reduction="none")
    assert isinstance(values, Tensor)
    return values


def gmsd(images_B3HW: Tensor, originals_B3HW: Tensor) -> Tensor:
    """Gradient magnitude similarity deviation of the luma, (B,), 0 for equal pictures, lower is better. Weight-free.

    Means of 2x2 pixels at half size, Prewitt gradients, deviation over pixels. Source: Xue, Zhang, Mou, Bovik, IEEE TIP 2014, eq. 4-7.
    """
    magnitudes = []
    prewitt = torch.tensor([[1.0, 0.0, -1.0]] * 3, device=images_B3HW.device) / 3
    kernels = torch.stack([prewitt, prewitt.T])[:, None]
    weights = torch.tensor(LUMA, device=images_B3HW.device)[:, None, None]
    for pictures in (images_B3HW, originals_B3HW):
        luma = F.avg_pool2d((_unit(pictures) * weights).sum(1, keepdim=True), 2)
        magnitudes.append(F.conv2d(F.pad(luma, [1] * 4, mode="replicate"), kernels).square().sum(1).sqrt())
    a, b = magnitudes
    similarity = (2 * a * b + GMSD_CONSTANT) / (a.square() + b.square() + GMSD_CONSTANT)
    return similarity.flatten(1).std(1, unbiased=False)


def rank_1(probes_ND: Tensor, gallery_ND: Tensor) -> float:
    """Share of probes whose nearest picture of the gallery (Euclidean) is the one of the same number."""
    nearest = torch.cdist(probes_ND, gallery_ND).argmin(1)
    return float((nearest == torch.arange(len(probes_ND), device=nearest.device)).float().mean())


def bootstrap(values: Sequence[float] | Tensor, seed: int = 0, draws: int = 2000) -> Interval:
    """Mean and 95 % percentile interval, resampled over the values: one value a person. For paired differences hand in the differences."""
    x = np.asarray(values, dtype=np.float64)
    if x.size < 2:
        raise ValueError(f"an interval needs two values or more, got {x.size}")
    chosen = np.random.default_rng(seed).integers(0, x.size, size=(draws, x.size))
    low, high = np.quantile(x[chosen].mean(1), [0.025, 0.975])
    return Interval(float(x.mean()), float(low), float(high))


def _unit(images_B3HW: Tensor) -> Tensor:
    return (images_B3HW.clamp(-1, 1) + 1) / 2
