"""People and their photographs for training and measuring: read from folders of aligned face crops, and held apart by person.

A folder holds sets (`faces_ukparl`, `faces_lab`), each with an `index.csv` (columns `file`, `subject_id`, `landmarks5`) and the files
it names. Crops are square with level eyes at 0.45 of the side, 0.27 of the side apart.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.lab.people import random_identity, random_view
from models.lab.portraits import draw_portrait

SOURCE_SIDE = 128  # pixels: photographs are kept at this size, training crops are taken from them


class NoPhotographs(ValueError):
    """A data folder holds no face set that training can read."""


@dataclass(frozen=True)
class Person:
    """One person's photographs. images: (P, 3, S, S) uint8; landmarks: (P, 5, 2) x, y in pixels of eyes, nose tip, mouth corners."""

    name: str
    images: Tensor
    landmarks: Tensor


@dataclass(frozen=True)
class Split:
    """People held apart: `test` and `validation` have two photographs or more and are never trained on."""

    train: list[Person]
    validation: list[Person]
    test: list[Person]


def read_people(folder: Path, side: int = SOURCE_SIDE) -> list[Person]:
    """Everybody in one face set, by name; pictures resized to `side`. Raises NoPhotographs where there is no index.csv."""
    index = folder / "index.csv"
    if not index.is_file():
        raise NoPhotographs(f"{index} does not exist; pass --data DIR (or CALOTYPE_DATA) whose folders hold index.csv and its files.")
    rows: dict[str, list[dict[str, str]]] = defaultdict(list)
    with index.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows[row["subject_id"]].append(row)
    people = []
    for name in sorted(rows):
        pictures = [_read(folder, row, side) for row in rows[name]]
        people.append(Person(name, torch.stack([image for image, _ in pictures]), torch.stack([points for _, points in pictures])))
    return people


def split_people(people: Sequence[Person], test: int, validation: int) -> Split:
    """Hold out `test` and `validation` people among those with two photographs or more: who has more than two first, then by a hash.

    It depends on nothing but names and numbers of photographs, so that everybody who trains or measures holds out the same people.
    Raises ValueError when too few have two photographs.
    """
    pairs = sorted(
        (person for person in people if len(person.images) > 1), key=lambda person: (len(person.images) == 2, hashed(person.name))
    )
    if len(pairs) < test + validation:
        raise ValueError(f"{test} + {validation} people shall be held out, but only {len(pairs)} have two photographs; hold out fewer.")
    kept = {person.name for person in pairs[: test + validation]}
    return Split([person for person in people if person.name not in kept], pairs[test : test + validation], pairs[:test])


def hashed(name: str) -> str:
    """A stable pseudo-random order of names."""
    return hashlib.sha256(f"calotype:{name}".encode()).hexdigest()


def drawn_person(number: int, views: int, side: int = SOURCE_SIDE) -> Person:
    """Drawn person `number` of the endless drawn population, in `views` pictures; always the same."""
    generator = torch.Generator().manual_seed(number)
    identity = random_identity(generator)
    portraits = [draw_portrait(identity, random_view(generator), side) for _ in range(views)]
    images = [torch.from_numpy(np.array(portrait.image)).permute(2, 0, 1) for portrait in portraits]
    return Person(f"drawn{number:06d}", torch.stack(images), torch.stack([portrait.landmarks for portrait in portraits]))


def _read(folder: Path, row: dict[str, str], side: int) -> tuple[Tensor, Tensor]:
    with Image.open(folder / row["file"]) as file:
        scale = side / file.width
        picture = file.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
    points = torch.tensor(json.loads(row["landmarks5"]), dtype=torch.float32).reshape(5, 2)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1), points * scale
