"""Train the lab's text and vision towers together (`calotype train towers`): a picture must find its caption and a caption its picture (CLIP)."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection

from models.checkpoints import save_network
from models.lab.captions import MAX_TOKENS, tokenizer
from models.lab.world import SIDE
from models.recipes.autoencoder import cache_folder
from models.training.captioned import CAPTIONS
from models.training.drawings import captions, drawings, to_unit
from models.training.loop import fit, keyed

logger = logging.getLogger(__name__)

HELD_OUT = 1000  # the last pictures drawn are measured on


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 1_800  # optimizer steps; may be changed on resuming
    minutes: float | None = None
    pictures: int = 48_000
    cache: str | None = None  # folder of drawn pictures, to share between recipes; default: <out>/cache
    batch: int = 64
    width: int = 96
    text_layers: int = 2
    vision_layers: int = 3
    heads: int = 3
    patch: int = 4  # pixels
    projection: int = 96
    lr: float = 1.5e-3
    warmup: int = 200
    decay: float = 0.4
    weight_decay: float = 2e-2
    clip: float = 1.0
    average: float = 0.99
    save_every: int = 200
    seed: int = 0


class Towers(nn.Module):
    """Both towers and the temperature of their agreement."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.text = CLIPTextModelWithProjection(text_config(cfg))
        self.vision = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=cfg.width,
                intermediate_size=4 * cfg.width,
                num_hidden_layers=cfg.vision_layers,
                num_attention_heads=cfg.heads,
                image_size=SIDE,
                patch_size=cfg.patch,
                projection_dim=cfg.projection,
            )
        )
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def embed_texts(self, ids_BT: Tensor) -> Tensor:
        """(B, D) unit vectors of token ids."""
        return F.normalize(self.text(input_ids=ids_BT).text_embeds, dim=-1)

    def embed_images(self, images_B3HW: Tensor) -> Tensor:
        """(B, D) unit vectors of pictures in [-1, 1]."""
        return F.normalize(self.vision(pixel_values=images_B3HW).image_embeds, dim=-1)


def text_config(cfg: Config) -> CLIPTextConfig:
    """The text tower's shape; its tokens are those of models.lab.captions."""
    words: Any = tokenizer()
    return CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=cfg.width,
        intermediate_size=4 * cfg.width,
        num_hidden_layers=cfg.text_layers,
        num_attention_heads=cfg.heads,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=cfg.projection,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )


def train(cfg: Config, out: Path) -> None:
    """Train until `cfg.steps` (or `cfg.minutes`), resuming from out/checkpoint.pt; then write the lab folder out/towers."""
    pictures = drawings(cfg.pictures, cache_folder(cfg.cache, out))
    ids = captions(cfg.pictures, CAPTIONS, cache_folder(cfg.cache, out))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        towers = Towers(cfg)

    def loss(step: int) -> tuple[Tensor, Mapping[str, float]]:
        generator = keyed(cfg.seed, step)
        at = torch.randint(cfg.pictures - HELD_OUT, (cfg.batch,), generator=generator)
        said = torch.randint(CAPTIONS, (cfg.batch,), generator=generator)
        texts, images = towers.embed_texts(ids[at, said]), towers.embed_images(to_unit(pictures[at]))
        logits = towers.log_scale.clamp(max=math.log(100)).exp() * images @ texts.T
        right = torch.arange(cfg.batch)
        found = float((logits.detach().argmax(1) == right).float().mean())
        return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2, {"found": found}

    steps = fit(towers, loss, cfg, out)
    measured = measure(towers.eval(), pictures[-HELD_OUT:], ids[-HELD_OUT:, 0])
    logger.info("measured %s", measured)
    folder = out / "towers"
    save_network(towers.text, folder / "text_encoder")
    save_network(towers.vision, folder / "image_encoder")
    tokenizer().save_pretrained(folder / "tokenizer")
    summary = "text and vision towers of the drawn world (CLIP)"
    card: dict[str, Any] = {
        "summary": summary,
        "method": "towers",
        "tier": "lab",
        "recipe": "towers",
        "seed": cfg.seed,
        "steps": steps,
        "data": "drawn world",
    }
    (folder / "card.json").write_text(json.dumps({**card, "metrics": measured}, indent=2) + "\n")


@torch.inference_mode()
def measure(towers: Towers, pictures: Tensor, ids: Tensor) -> dict[str, float]:
    """How often a picture finds its whole caption first among all of them, and the other way round; pictures not trained on."""
    images = torch.cat([towers.embed_images(to_unit(chunk)) for chunk in pictures.split(250)])
    texts = torch.cat([towers.embed_texts(chunk) for chunk in ids.split(250)])
    similarity, right = images @ texts.T, torch.arange(len(ids))
    return {
        f"image_to_text_of_{len(ids)}": round(float((similarity.argmax(1) == right).float().mean()), 4),
        f"text_to_image_of_{len(ids)}": round(float((similarity.argmax(0) == right).float().mean()), 4),
    }
