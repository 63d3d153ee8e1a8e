"""Pairs of pictures that somebody has, as files: a folder CONCEPT/input and CONCEPT/target, files of the same names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from models.training.translations import Pairs


def read_pairs(folder: Path, side: int) -> dict[str, Pairs]:
    """Concept -> its pairs (1,P,3,S,S) uint8, the middle square of each picture; what has no partner of its name is left out.

    Raises ValueError where no folder holds a pair.
    """
    found = dict[str, Pairs]()
    for concept in sorted(each for each in folder.iterdir() if each.is_dir()):
        inputs, targets = ({file.stem: file for file in sorted((concept / name).glob("*"))} for name in ("input", "target"))
        both = [name for name in inputs if name in targets]
        if both:
            sides = (torch.stack([_square(files[name], side) for name in both])[None] for files in (inputs, targets))
            found[concept.name] = Pairs(*sides)
    if not found:
        raise ValueError(
            f"{folder} holds no pairs; --data (or CALOTYPE_DATA) takes a folder of CONCEPT/input and CONCEPT/target, files of the same names"
        )
    return found


def _square(file: Path, side: int) -> Tensor:
    with Image.open(file) as opened:
        picture = ImageOps.exif_transpose(opened).convert("RGB")
    return torch.from_numpy(np.asarray(ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS)).copy()).permute(2, 0, 1)
