"""A small face embedder for aligned crops: it compares drawn people in the proofs and scores `identity_similarity` in jobs.

It is no judge of real people's identity: it was trained on few of them. The proofs judge real people by a net that took no part in
training.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from models.catalog import ModelNotFound, read_card
from models.checkpoints import load_strict, read_tensors

SIDE = 64  # pixels that the network sees
WEIGHTS = "identity.safetensors"


class IdentityNet(nn.Module):
    """(B, 3, H, W) aligned face crops in [-1, 1] to (B, D) unit vectors; the inner product of two is their similarity, -1 to 1."""

    mask: Tensor

    def __init__(self, channels: tuple[int, ...] = (24, 48, 96, 144), dimensions: int = 96) -> None:
        super().__init__()
        self.channels, self.dimensions = channels, dimensions
        self.first = nn.Conv2d(3, channels[0], 3, stride=2, padding=1)
        stages = [_Stage(before, after) for before, after in pairwise(channels)]
        self.stages = nn.Sequential(_Residual(channels[0]), *stages)
        self.last = nn.Linear(channels[-1] * 16, dimensions)
        self.register_buffer("mask", _face_mask(SIDE), persistent=False)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        pixels = images_B3HW
        if pixels.shape[-1] != SIDE or pixels.shape[-2] != SIDE:
            pixels = F.interpolate(pixels, size=(SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
        features_BC = F.adaptive_avg_pool2d(self.stages(self.first(pixels * self.mask)), 4).flatten(1)
        return F.normalize(self.last(features_BC), dim=-1)

    @torch.inference_mode()
    def embed(self, images_B3HW: Tensor) -> Tensor:
        """`forward` without gradients, in the network's own dtype, on its device; returns fp32."""
        return self(images_B3HW.to(self.last.weight)).float()

    @classmethod
    def load(cls, path: str | Path) -> IdentityNet:
        """From a lab folder whose card says `"method": "identity"`. Raises ModelNotFound or CheckpointMismatch."""
        folder = Path(path)
        card = read_card(folder)
        if card.method != "identity":
            raise ModelNotFound(f"{folder} is a model of {card.method}, not of identity.")
        net = cls(tuple(card.facts["channels"]), card.facts["dimensions"])
        load_strict(net, read_tensors(folder / WEIGHTS), str(folder / WEIGHTS))
        return net.eval()

    def save(self, folder: Path, card: dict[str, object]) -> None:
        """Write a lab folder in half precision; card.json is written last."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.half().contiguous() for name, value in self.state_dict().items()}, folder / WEIGHTS)
        facts = {"method": "identity", "tier": "lab", "channels": self.channels, "dimensions": self.dimensions, **card}
        (folder / "card.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.one = nn.Conv2d(channels, channels, 3, padding=1)
        self.two = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(F.silu(self.one(F.silu(self.norm(x)))))


class _Stage(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(before, after, 3, stride=2, padding=1)
        self.residual = _Residual(after)

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(self.down(x))


def _face_mask(side: int) -> Tensor:
    """(1, side, side): 1 on the face and hair of an aligned crop, 0 on the background, which often differs between two photographs."""
    at = (torch.arange(side) + 0.5) * 2 / side - 1
    y, x = torch.meshgrid(at, at, indexing="ij")
    return torch.sigmoid((1 - ((x / 0.78) ** 2 + ((y - 0.02) / 0.95) ** 2).sqrt()) * 12)[None]
