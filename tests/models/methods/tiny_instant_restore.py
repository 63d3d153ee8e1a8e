"""Random networks of Stable Diffusion's topology, small enough for any test."""

from __future__ import annotations

import hashlib

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from models.methods.instant_restore import InstantRestore, Networks, Request, Settings
from models.methods.instant_restore_checkpoint import sd_turbo_scheduler
from models.nets.codecs import LatentCodec, PixelCodec

SIDE = 32
SETTINGS = Settings(image_size=SIDE)


def tiny_unet(seed: int, latent_channels: int) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        attention_head_dim=(2, 4, 4),
        cross_attention_dim=8,
        norm_num_groups=4,
        use_linear_projection=True,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )
    return unet.eval().requires_grad_(False)


def tiny_vae(seed: int) -> AutoencoderKL:
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    return vae.eval().requires_grad_(False)


def tiny_networks(*, latent: bool = False) -> Networks:
    """Two U-Nets over a pixel codec, or with `latent` over two autoencoders."""
    codecs = [LatentCodec(tiny_vae(2)), LatentCodec(tiny_vae(3))] if latent else [PixelCodec(4)] * 2
    channels = 4 if latent else 48
    caption = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(4))
    return Networks(tiny_unet(0, channels), tiny_unet(1, channels), codecs[0], codecs[1], sd_turbo_scheduler(), caption)


def tiny_method() -> InstantRestore:
    return InstantRestore(tiny_networks(latent=True), SETTINGS)


def pixels(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def tiny_request(seed: int, references: int, person: int = 0) -> Request:
    photographs = [pixels(1000 * (person + 1) + i) for i in range(references)]
    keys = [hashlib.sha256(photograph.numpy().tobytes()).hexdigest() for photograph in photographs]
    return Request(image=pixels(seed), references=photographs, reference_keys=keys, seed=seed)
