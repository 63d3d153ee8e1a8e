"""Train the lab's autoencoder on the drawn world (`calotype train autoencoder`): 32 px pictures to 8 x 8 latents and back."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from models.checkpoints import save_network
from models.lab.world import SIDE, UNSEEN
from models.training.drawings import drawings, to_unit
from models.training.loop import fit, keyed

logger = logging.getLogger(__name__)

MEASURED = 1000  # pictures never trained on


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 3_000  # optimizer steps; may be changed on resuming
    minutes: float | None = None  # stop (resumable) after this long
    pictures: int = 48_000
    cache: str | None = None  # folder of drawn pictures, to share between recipes; default: <out>/cache
    batch: int = 16
    latent_channels: int = 12
    channels: tuple[int, ...] = (16, 32, 64)
    divergence: float = 1e-4  # weight of the Kullback-Leibler term
    lr: float = 2e-3
    warmup: int = 50
    decay: float = 0.4
    weight_decay: float = 1e-3
    clip: float = 1.0
    average: float = 0.995
    save_every: int = 200
    seed: int = 0


def train(cfg: Config, out: Path) -> None:
    """Train until `cfg.steps` (or `cfg.minutes`), resuming from out/checkpoint.pt; then write the lab folder out/autoencoder."""
    pictures = drawings(cfg.pictures, cache_folder(cfg.cache, out))
    vae = new_autoencoder(cfg)

    def loss(step: int) -> tuple[Tensor, Mapping[str, float]]:
        generator = keyed(cfg.seed, step)
        images = to_unit(pictures[torch.randint(len(pictures), (cfg.batch,), generator=generator)])
        latents = vae.encode(images).latent_dist
        noise = torch.randn(latents.mean.shape, generator=generator)
        back = vae.decode(latents.mean + latents.std * noise).sample
        difference = back - images
        pixels = difference.abs().mean() + difference.square().mean()
        divergence = latents.kl().mean() / latents.mean[0].numel()
        return pixels + cfg.divergence * divergence, {"pixels": float(pixels.detach()), "kl": float(divergence.detach())}

    steps = fit(vae, loss, cfg, out)
    vae.eval().requires_grad_(False)
    normalise(vae, pictures[:2000])
    card = {
        "summary": "pictures of the drawn world, 32 px, to 8 x 8 latents and back",
        "recipe": "autoencoder",
        "seed": cfg.seed,
        "steps": steps,
        "data": "drawn world",
        "metrics": measure(vae, cfg, out),
    }
    logger.info("measured %s", card["metrics"])
    save_network(vae, out / "autoencoder" / "vae")
    (out / "autoencoder" / "card.json").write_text(json.dumps({"method": "autoencoder", "tier": "lab", **card}, indent=2) + "\n")


def cache_folder(cache: str | None, out: Path) -> Path:
    """Where a recipe keeps drawn pictures."""
    return out / "cache" if cache is None else Path(cache)


def new_autoencoder(cfg: Config) -> Any:  # diffusers declares its configuration's tuples as pairs of one
    """The network at step 0, in the layout of Stable Diffusion's and FLUX's autoencoders, a quarter of the side."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        levels = len(cfg.channels)
        build: Any = AutoencoderKL
        vae = build(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=cfg.channels,
            layers_per_block=1,
            latent_channels=cfg.latent_channels,
            norm_num_groups=8,
            sample_size=SIDE,
            mid_block_add_attention=False,
        )
        start_as_wavelets(vae)
        return vae


@torch.no_grad()
def start_as_wavelets(vae: Any, small: float = 0.1) -> None:
    """Begin near a Haar transform: reductions take sums and differences of four pixels, all else passes on what it gets.

    From the usual start the same network reached 19 dB where this one reached 24 (docs/log.md).
    """
    bands = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]).reshape(4, 2, 2) / 2
    _pass_on(vae.encoder.conv_in, small)
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            module.conv2.weight.mul_(small)
            if module.conv_shortcut is not None:
                _pass_on(module.conv_shortcut, small)
        elif isinstance(module, Upsample2D):
            _pass_on(module.conv, small)
    known = 3
    for block in vae.encoder.down_blocks:
        for reduction in block.downsamplers or ():
            weight = reduction.conv.weight  # (out, in, 3, 3)
            weight.mul_(small)
            sources = [(band, channel) for band in bands for channel in range(known)][: weight.shape[0]]
            for target, (band, channel) in enumerate(sources):
                weight[target, channel, :2, :2] += band
            known = len(sources)


def _pass_on(convolution: nn.Module | None, small: float) -> None:
    assert isinstance(convolution, nn.Conv2d)
    out_channels, in_channels, height, width = convolution.weight.shape
    convolution.weight.mul_(small)
    for channel in range(min(in_channels, out_channels)):
        convolution.weight[channel, channel, height // 2, width // 2] += 1


@torch.no_grad()
def normalise(vae: Any, pictures: Tensor) -> None:
    """Give the latents of `pictures` mean 0 over all channels, within the network, and set the scaling that gives them deviation 1.

    A mean of zero and not a shift_factor: Stable Diffusion's pipelines know none.
    """
    latents = torch.cat([vae.encode(to_unit(chunk)).latent_dist.mean for chunk in pictures.split(100)])
    centre(vae, float(latents.mean()))
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))


@torch.no_grad()
def centre(vae: Any, mean: float) -> None:
    """Move the latents by -mean, and let the decoder take that back."""
    vae.quant_conv.bias[: vae.config["latent_channels"]] -= mean
    vae.post_quant_conv.bias += mean * vae.post_quant_conv.weight.sum(dim=(1, 2, 3))


@torch.inference_mode()
def measure(vae: Any, cfg: Config, out: Path) -> dict[str, Any]:
    """Mean PSNR (dB) of pictures never trained on."""
    images = to_unit(drawings(MEASURED, cache_folder(cfg.cache, out), UNSEEN))
    back = torch.cat([vae.decode(vae.encode(chunk).latent_dist.mean).sample for chunk in images.split(100)]).clamp(-1, 1)
    errors = ((back - images) / 2).square().mean(dim=(1, 2, 3))
    return {"psnr": round(float((-10 * errors.log10()).mean()), 2)}
