"""What the lab's text-to-image recipes share: captioned latents of the drawn world, batches of them, and the folder that they end as."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTextModel

from models.catalog import lab_path
from models.checkpoints import save_network
from models.lab.captions import tokenizer
from models.training.drawings import captions
from models.training.latents import latents

CAPTIONS = 6  # of each picture


@dataclass(frozen=True)
class Batch:
    """clean, noise: (B, C, H, W) fp32 latents; ids: (B, T) tokens of a caption each, of the empty one where it was dropped."""

    clean: Tensor
    ids: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Captioned:
    """latents: (N, C, H, W) fp16, scaled; ids: (N, CAPTIONS, T); vae: the autoencoder that made the latents, frozen."""

    latents: Tensor
    ids: Tensor
    empty: Tensor
    vae: Any

    @classmethod
    def read(cls, count: int, autoencoder: str | None, cache: Path) -> Captioned:
        """The first `count` pictures, from `cache` where they were made before. `autoencoder`: its folder; None: the one that ships."""
        vae = AutoencoderKL.from_pretrained((Path(autoencoder) if autoencoder else lab_path("autoencoder")) / "vae")
        vae.eval().requires_grad_(False)
        empty = torch.tensor(tokenizer()("", padding="max_length").input_ids)
        return cls(latents(vae, count, cache), captions(count, CAPTIONS, cache), empty, vae)

    def draw(self, count: int, drop: float, generator: torch.Generator) -> Batch:
        """`count` pictures, each with one of its captions or, for a share `drop` of them, none."""
        at = torch.randint(len(self.latents), (count,), generator=generator)
        ids = self.ids[at, torch.randint(CAPTIONS, (count,), generator=generator)]
        ids[torch.rand(count, generator=generator) < drop] = self.empty
        clean = self.latents[at].float()
        return Batch(clean, ids, torch.randn(clean.shape, generator=generator))


def text_tower(folder: str | None, default: str) -> Any:
    """The CLIP text tower (fp32) that a training starts from: a folder's text_encoder, or that of the lab model `default`."""
    found = Path(folder) if folder else lab_path(default)
    return CLIPTextModel.from_pretrained(found / "text_encoder", torch_dtype=torch.float32)


def write_base(folder: Path, networks: Mapping[str, nn.Module], scheduler: Any, facts: Mapping[str, Any]) -> None:
    """Write a lab base in diffusers layout, fp16, with its card; `networks` by sub-folder."""
    for name, network in networks.items():
        save_network(network, folder / name)
    tokenizer().save_pretrained(folder / "tokenizer")
    scheduler.save_pretrained(folder / "scheduler")
    card = {"method": "text_to_image", "tier": "lab", **facts}
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")
