"""Pictures of anything for training translators: photographs of a data folder whose licence allows it, and drawn portraits.

A data folder holds sets, each with an `index.csv` (columns `file`, `licence`) and the files that it names. What has no free licence is left out.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.lab.world import draw, subject
from models.training.loop import keyed
from models.training.photographs import NoPhotographs

FREE = ("CC0", "CC-BY-2", "CC-BY-3", "CC-BY-4", "Public domain")  # how the licence of a file that may be trained on begins


def free_photographs(data: Path, sets: Sequence[str], side: int, views: int = 2) -> Tensor:
    """(N,3,S,S) uint8: of every free photograph its middle square, and `views` - 1 squares inside it, always the same.

    Raises NoPhotographs where a set has no index.csv or no free photograph.
    """
    pictures = list[np.ndarray]()
    for name in sets:
        index = data / name / "index.csv"
        if not index.is_file():
            raise NoPhotographs(f"{index} does not exist; pass --data DIR whose folders hold index.csv and its files, or name other sets.")
        with index.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["licence"].startswith(FREE)]
        if not rows:
            raise NoPhotographs(f"{index} names no file whose licence begins with {', '.join(FREE)}; leave {name} out of the sets.")
        for number, row in enumerate(rows):
            with Image.open(data / name / row["file"]) as file:
                pictures += _views(file.convert("RGB"), side, views, keyed(number, 0, name))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def drawn_portraits(count: int, side: int, first: int = 0) -> Tensor:
    """(N,3,S,S) uint8: drawn portraits `first` and on, always the same."""
    images = [np.asarray(draw(subject(number, "portrait"), number, size=side).image) for number in range(first, first + count)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _views(picture: Image.Image, side: int, views: int, generator: torch.Generator) -> list[np.ndarray]:
    whole = min(picture.size)
    found = [_square(picture, (picture.width - whole) / 2, (picture.height - whole) / 2, whole, side)]
    for _ in range(views - 1):
        size = max(side, round(whole * (0.6 + 0.4 * float(torch.rand((), generator=generator)))))
        x, y = torch.rand(2, generator=generator).tolist()
        found.append(_square(picture, x * (picture.width - size), y * (picture.height - size), size, side))
    return found


def _square(picture: Image.Image, x: float, y: float, size: float, side: int) -> np.ndarray:
    return np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS, box=(max(0.0, x), max(0.0, y), x + size, y + size)))
