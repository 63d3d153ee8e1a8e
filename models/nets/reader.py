"""The lab's attribute reader: what a picture of the drawn world shows, read in known places. It measures generated pictures and trains nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from models.catalog import read_card
from models.checkpoints import load_strict, read_tensors
from models.lab.scenes import BACKGROUNDS, COLOURS, SHAPES
from models.lab.world import PORTRAIT_VALUES

WEIGHTS = "reader.safetensors"
CROP = 20  # pixels a side of what is read of an object
MARGIN = 0.1  # of the box, on each side
THING_VALUES: dict[str, tuple[str, ...]] = {"shape": (*SHAPES, "nothing"), "colour": (*COLOURS, "nothing")}
SCENE_VALUES: dict[str, tuple[str, ...]] = {"background": tuple(BACKGROUNDS)}
HEADS: dict[str, Mapping[str, tuple[str, ...]]] = {"thing": THING_VALUES, "scene": SCENE_VALUES, "portrait": PORTRAIT_VALUES}
"""What is read -> attribute -> values. `nothing`: a box without an object."""


class Reader(nn.Module):
    """Three small classifiers: of an object in its box, of a scene's background, of a portrait."""

    def __init__(self, channels: tuple[int, ...] = (32, 64, 96)) -> None:
        super().__init__()
        self.channels = channels
        self.trunks = nn.ModuleDict({name: _trunk(channels) for name in HEADS})
        self.heads = nn.ModuleDict(
            {
                name: nn.ModuleDict({key: nn.Linear(channels[-1] * 4, len(of)) for key, of in values.items()})
                for name, values in HEADS.items()
            }
        )

    def forward(self, images_B3HW: Tensor, what: str) -> dict[str, Tensor]:
        """Logits (B, values) of each attribute of `what`: thing (crops by `crops`), scene or portrait (whole pictures in [-1, 1])."""
        features_BC = self.features(images_B3HW, what)
        heads = self.heads[what]
        assert isinstance(heads, nn.ModuleDict)
        return {name: head(features_BC) for name, head in heads.items()}

    def features(self, images_B3HW: Tensor, what: str) -> Tensor:
        """(B, 4C) what the heads read from."""
        return F.adaptive_avg_pool2d(self.trunks[what](images_B3HW), 2).flatten(1)

    @torch.inference_mode()
    def read(self, images_B3HW: Tensor, what: str) -> list[dict[str, str]]:
        """The most probable value of each attribute, a dictionary a picture."""
        found = {name: logits.argmax(1).tolist() for name, logits in self(images_B3HW, what).items()}
        return [{name: HEADS[what][name][indices[row]] for name, indices in found.items()} for row in range(len(images_B3HW))]

    @torch.inference_mode()
    def probabilities(self, images_B3HW: Tensor, what: str, attribute: str) -> Tensor:
        """(B, values) probabilities of one attribute."""
        return self(images_B3HW, what)[attribute].softmax(1)

    def save(self, folder: Path, card: Mapping[str, object]) -> None:
        """Write reader.safetensors (fp16) and card.json into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.half().contiguous() for name, value in self.state_dict().items()}, folder / WEIGHTS)
        facts = {"method": "reader", "tier": "lab", "channels": self.channels, **card}
        (folder / "card.json").write_text(json.dumps(facts, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Reader:
        """A saved reader, for measuring. Raises ModelNotFound, CheckpointMismatch."""
        card = read_card(folder)
        reader = cls(tuple(card.facts["channels"]))
        load_strict(reader, {name: value.float() for name, value in read_tensors(folder / WEIGHTS).items()}, str(folder / WEIGHTS))
        return reader.eval().requires_grad_(False)


def crops(images_B3HW: Tensor, boxes: Sequence[Sequence[float]]) -> Tensor:
    """(B, 3, CROP, CROP): each picture's box (x0, y0, x1, y1 as fractions) with a margin, resampled; outside the picture its edge is repeated."""
    grids = []
    for x0, y0, x1, y1 in boxes:
        dx, dy = MARGIN * (x1 - x0), MARGIN * (y1 - y0)
        xs = torch.linspace(x0 - dx, x1 + dx, 2 * CROP + 1)[1::2] * 2 - 1
        ys = torch.linspace(y0 - dy, y1 + dy, 2 * CROP + 1)[1::2] * 2 - 1
        grids.append(torch.stack(torch.meshgrid(ys, xs, indexing="ij")[::-1], dim=-1))
    return F.grid_sample(images_B3HW, torch.stack(grids).to(images_B3HW), mode="bilinear", padding_mode="border", align_corners=False)


def _trunk(channels: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    before = 3
    for at, width in enumerate(channels):
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU()]
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU()]
        layers += [nn.MaxPool2d(2)] if at < len(channels) - 1 else []
        before = width
    return nn.Sequential(*layers)
