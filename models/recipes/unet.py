"""Train the lab's text-to-image U-Net of Stable Diffusion's topology on the drawn world (`calotype train unet`).

It learns velocities (v-prediction) in the lab autoencoder's latents; its text tower starts from the lab transformer's and is
trained with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from models.recipes.autoencoder import cache_folder
from models.training.captioned import Captioned, text_tower, write_base
from models.training.loop import fit, keyed
from models.training.times import even_times, noisy_share

SETTINGS = {
    "num_inference_steps": 20,
    "guidance_scale": 3.0,
    "guidance_steps": 10,
    "refine_from": 10,
    "refine_every": 2,
    "bounded_layers": {"loss": list(range(14)), "mask": [6, 7, 8, 9]},
}
"""How methods run on it where a job says nothing, swept on 30 prompts (docs/proofs/bounded_attention.md): this base takes places from the

prompt, and follows a layout only where all its attentions are pulled at, and for half of the steps.
"""


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 7_600  # optimizer steps; may be changed on resuming
    minutes: float | None = None
    pictures: int = 48_000
    cache: str | None = None  # folder of drawn pictures and latents, to share between recipes; default: <out>/cache
    autoencoder: str | None = None  # folder of the autoencoder; default: the one that ships
    text: str | None = None  # folder whose text_encoder is the start; default: lab/mmdit's, which tells left from right
    batch: int = 32
    channels: tuple[int, ...] = (64, 128)
    head_dim: int = 32
    text_drop: float = 0.1  # share of pictures without a caption, for guidance
    noisy: float = 0.4  # share of pictures in the noisiest tenth of the times, where places are decided
    lr: float = 1.2e-3
    warmup: int = 200
    decay: float = 0.35
    weight_decay: float = 1e-2
    clip: float = 1.0
    average: float = 0.998
    save_every: int = 200
    seed: int = 0


class TextToImage(nn.Module):
    """The U-Net and its text tower, trained together."""

    def __init__(self, cfg: Config, text: Any, latent_channels: int) -> None:
        super().__init__()
        self.text = text
        levels = len(cfg.channels)
        build: Any = UNet2DConditionModel  # diffusers declares its configuration's tuples as pairs of one
        self.unet = build(
            sample_size=8,
            in_channels=latent_channels,
            out_channels=latent_channels,
            block_out_channels=cfg.channels,
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",) * levels,
            up_block_types=("CrossAttnUpBlock2D",) * levels,
            attention_head_dim=tuple(channels // cfg.head_dim for channels in cfg.channels),  # diffusers' name for the number of heads
            cross_attention_dim=text.config.hidden_size,
            norm_num_groups=16,
        )


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise levels with v-prediction, but the last one is noise alone.

    As published it holds a little of the picture, and where an object lies can be read from it: a network trained so takes places from the
    noise, not from the prompt (docs/log.md). Source: arXiv 2305.08891.
    """
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        clip_sample=False, set_alpha_to_one=False, rescale_betas_zero_snr=True, timestep_spacing="trailing",
    )  # fmt: skip


def train(cfg: Config, out: Path) -> None:
    """Train until `cfg.steps` (or `cfg.minutes`), resuming from out/checkpoint.pt; then write the lab folder out/unet (diffusers layout)."""
    data = Captioned.read(cfg.pictures, cfg.autoencoder, cache_folder(cfg.cache, out))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        model = TextToImage(cfg, text_tower(cfg.text, "mmdit"), data.latents.shape[1])
    alphas = scheduler().alphas_cumprod

    def loss(step: int) -> tuple[Tensor, Mapping[str, float]]:
        generator = keyed(cfg.seed, step)
        batch = data.draw(cfg.batch, cfg.text_drop, generator)
        times = noisy_share(even_times(cfg.batch, generator), cfg.noisy, generator)
        times = (times * len(alphas)).long().clamp(max=len(alphas) - 1)
        signal = alphas[times, None, None, None]
        noisy = signal.sqrt() * batch.clean + (1 - signal).sqrt() * batch.noise
        velocity = signal.sqrt() * batch.noise - (1 - signal).sqrt() * batch.clean
        found = model.unet(noisy, times, model.text(input_ids=batch.ids).last_hidden_state).sample
        return (found - velocity).square().mean(), {}

    steps = fit(model, loss, cfg, out)
    facts = {
        "summary": "text to image of the drawn world, 32 px, Stable Diffusion's topology",
        "topology": "stable-diffusion",
        "settings": SETTINGS,
        "recipe": "unet",
        "seed": cfg.seed,
        "steps": steps,
        "samples": steps * cfg.batch,
        "data": "drawn world",
    }
    networks = {"unet": model.unet, "text_encoder": model.text, "vae": data.vae}
    write_base(out / "unet", networks, scheduler(), facts)
