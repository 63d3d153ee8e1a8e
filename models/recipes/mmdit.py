"""Train the lab's text-to-image transformer of FLUX's topology on the drawn world by flow matching (`calotype train mmdit`).

Its text tower starts from the lab towers' and is trained with it; its hidden states are the text stream, its pooled output the vector that
modulates every block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from models.recipes.autoencoder import cache_folder
from models.sampling import pack, positions
from models.training.captioned import Captioned, text_tower, write_base
from models.training.loop import fit, keyed
from models.training.times import noisy_share


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 9_600  # optimizer steps; may be changed on resuming
    minutes: float | None = None
    pictures: int = 48_000
    cache: str | None = None  # folder of drawn pictures and latents, to share between recipes; default: <out>/cache
    autoencoder: str | None = None  # folder of the autoencoder; default: the one that ships
    text: str | None = None  # folder whose text_encoder is the start; default: the lab towers
    batch: int = 32
    heads: int = 4
    head_dim: int = 32
    double: int = 4  # blocks with a stream for the text and one for the picture
    single: int = 6  # blocks with one stream
    axes: tuple[int, int, int] = (8, 12, 12)  # rotary channels
    text_drop: float = 0.1  # share of pictures without a caption, for guidance
    time_mean: float = 0.5  # of the logit-normal times
    noisy: float = 0.4  # share of pictures in the noisiest tenth of the times, where places are decided
    lr: float = 1.5e-3
    warmup: int = 200
    decay: float = 0.35
    weight_decay: float = 1e-2
    clip: float = 1.0
    average: float = 0.998
    save_every: int = 200
    seed: int = 0


class TextToImage(nn.Module):
    """The transformer and its text tower, trained together. Latents are packed in 2 x 2 patches, as FLUX's are."""

    def __init__(self, cfg: Config, text: Any, latent_channels: int) -> None:
        super().__init__()
        self.text = text
        self.transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=4 * latent_channels,
            num_layers=cfg.double,
            num_single_layers=cfg.single,
            attention_head_dim=cfg.head_dim,
            num_attention_heads=cfg.heads,
            joint_attention_dim=text.config.hidden_size,
            pooled_projection_dim=text.config.hidden_size,
            guidance_embeds=False,
            axes_dims_rope=cfg.axes,
        )


def train(cfg: Config, out: Path) -> None:
    """Train until `cfg.steps` (or `cfg.minutes`), resuming from out/checkpoint.pt; then write the lab folder out/mmdit (diffusers layout)."""
    data = Captioned.read(cfg.pictures, cfg.autoencoder, cache_folder(cfg.cache, out))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        model = TextToImage(cfg, text_tower(cfg.text, "towers"), data.latents.shape[1])
    places = positions(*data.latents.shape[-2:])
    no_places = torch.zeros(data.ids.shape[-1], 3)

    def loss(step: int) -> tuple[Tensor, Mapping[str, float]]:
        generator = keyed(cfg.seed, step)
        batch = data.draw(cfg.batch, cfg.text_drop, generator)
        times = torch.sigmoid(cfg.time_mean + torch.randn(cfg.batch, generator=generator))  # 1: noise
        times = noisy_share(times, cfg.noisy, generator)
        clean, noise = pack(batch.clean), pack(batch.noise)
        noisy = clean + times[:, None, None] * (noise - clean)
        told = model.text(input_ids=batch.ids)
        found = model.transformer(
            hidden_states=noisy,
            encoder_hidden_states=told.last_hidden_state,
            pooled_projections=told.pooler_output,
            timestep=times,
            img_ids=places,
            txt_ids=no_places,
        ).sample
        return (found - (noise - clean)).square().mean(), {}

    steps = fit(model, loss, cfg, out)
    facts = {
        "summary": "text to image of the drawn world, 32 px, FLUX's topology",
        "topology": "flux",
        "settings": {"nudge": 1.0},  # measured: inverting a picture nudged away from the mean harms here (docs/proofs/stable_flow.md)
        "recipe": "mmdit",
        "seed": cfg.seed,
        "steps": steps,
        "samples": steps * cfg.batch,
        "data": "drawn world",
    }
    networks = {"transformer": model.transformer, "text_encoder": model.text, "vae": data.vae}
    write_base(out / "mmdit", networks, FlowMatchEulerDiscreteScheduler(), facts)
