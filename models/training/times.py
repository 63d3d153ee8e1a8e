"""At which noise a picture is shown to a denoiser in training: times in [0, 1), 1 being noise alone."""

from __future__ import annotations

import torch
from torch import Tensor


def even_times(count: int, generator: torch.Generator) -> Tensor:
    """(B,) uniform times, one in each of B equal parts: less chance in a batch's loss."""
    return (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count


def noisy_share(times_B: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A share of the times drawn anew from the noisiest tenth.

    Where an object lies can be read from a picture until it is nearly all noise. Only there must a network take it from the prompt, and
    it does not learn to if it hardly ever comes there.
    """
    anew = 0.9 + 0.1 * torch.rand(len(times_B), generator=generator)
    return torch.where(torch.rand(len(times_B), generator=generator) < share, anew, times_B)
