"""The drawn world in an autoencoder's latents: encoded once, kept beside the training that needs them."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.training.drawings import drawings, to_unit

logger = logging.getLogger(__name__)


@torch.inference_mode()
def latents(vae: Any, count: int, cache: Path) -> Tensor:
    """Scaled latents (N, C, H, W) fp16 of the first pictures by an AutoencoderKL, read from `cache` where this autoencoder has made them before."""
    scale, shift = vae.config["scaling_factor"], vae.config["shift_factor"] or 0.0
    file = cache / f"latents-{count}-{scale}-{shift}.npy"
    if not file.is_file():
        pictures = drawings(count, cache)
        logger.info("encoding pictures=%d", count)
        encoded = [(vae.encode(to_unit(chunk)).latent_dist.mean - shift) * scale for chunk in pictures.split(100)]
        partial = file.with_suffix(f".{os.getpid()}.partial")
        with partial.open("wb") as stream:
            np.save(stream, torch.cat(encoded).half().numpy())
        os.replace(partial, file)
    return torch.from_numpy(np.load(file))
