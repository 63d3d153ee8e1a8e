"""What stands between pixels and latents: an autoencoder, or a fixed pixel-unshuffle behind the same two calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


class Codec(Protocol):
    """Pixels in [-1, 1] to latents and back; `factor` pixels a latent cell and side."""

    factor: int

    def encode(self, pixels_B3HW: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Latents (B,C,H/factor,W/factor); a codec that samples draws row i from generators[i]."""
        ...

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Pixels (B,3,H,W), not clamped."""
        ...


class PixelCodec(nn.Module):
    """Space to depth: (3,H,W) <-> (3 f^2, H/f, W/f). Has no parameters, loses nothing, draws nothing."""

    def __init__(self, factor: int = 4) -> None:
        super().__init__()
        self.factor = factor

    def encode(self, pixels_B3HW: Tensor, generators: Sequence[torch.Generator] = ()) -> Tensor:
        return pixel_unshuffle(pixels_B3HW, self.factor)

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        return pixel_shuffle(latents_BCHW, self.factor)


class LatentCodec(nn.Module):
    """A diffusers AutoencoderKL; latents are scaled by its `scaling_factor`, encoding samples the posterior, one generator a row."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae
        self.scale: float = vae.config["scaling_factor"]
        self.factor = 2 ** (len(vae.config["block_out_channels"]) - 1)

    def encode(self, pixels_B3HW: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        posterior = self.vae.encode(pixels_B3HW, return_dict=False)[0]
        assert isinstance(posterior, DiagonalGaussianDistribution)
        return self.scale * (posterior.mean + posterior.std * normal_like(posterior.mean, generators))

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        return self.vae.decode(latents_BCHW / self.scale, return_dict=False)[0]  # pyright: ignore[reportArgumentType]


def normal_like(x_BCHW: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal noise of x's shape, row i from generators[i] alone, so that a row's noise does not depend on its batch."""
    if len(generators) != x_BCHW.shape[0]:
        raise ValueError(f"{x_BCHW.shape[0]} rows need as many generators, not {len(generators)}.")
    rows = [torch.randn(x_BCHW.shape[1:], generator=g, device=g.device) for g in generators]
    return torch.stack(rows).to(x_BCHW)
