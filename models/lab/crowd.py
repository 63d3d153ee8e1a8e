"""People of the drawn world by number: who they are, pictures of them, and a folder of picture files with a table of their attributes.

What belongs to a person here is what the world's captions can say of them (hair, its colour, glasses, beard) and the face itself; expression,
shirt, background, pose and light change from picture to picture. Person `number` is always the same.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image

from models.lab.people import CONTINUOUS
from models.lab.world import EXPRESSIONS, PORTRAIT_BACKGROUNDS, SHIRTS, SIDE, Portrait, draw, random_portrait
from models.training.loop import keyed

T = TypeVar("T")

DISCRETE = ("hair", "hair_colour", "glasses", "beard")
TABLE = "people.csv"
PHOTOS = "photos"


def person(number: int) -> Portrait:
    """Who person `number` is; the expression, shirt and background of the portrait are those of none of their pictures in particular."""
    return random_portrait(keyed(0, number, "person"))


def pictures(number: int, count: int, first: int = 0, size: int = SIDE) -> list[Image.Image]:
    """`count` pictures of a person from their picture `first` on, `size` pixels a side. The same arguments give the same pictures."""
    who, found = person(number), []
    for at in range(first, first + count):
        generator = keyed(number, at, "picture of a person")
        shown = replace(
            who,
            expression=_choice(EXPRESSIONS, generator),
            shirt=_choice(SHIRTS, generator),
            background=_choice(PORTRAIT_BACKGROUNDS, generator),
        )
        found.append(draw(shown, int(torch.randint(2**31, (), generator=generator)), size).image)
    return found


def attributes(who: Portrait) -> dict[str, str | float]:
    """What stays with a person: the discrete attributes by value, the continuous factors in [0, 1]. The bald have no hair colour."""
    named: dict[str, str | float] = {name: getattr(who, name) for name in DISCRETE}
    if who.hair == "bald":
        named["hair_colour"] = ""
    return named | {name: getattr(who.identity, name) for name in CONTINUOUS}


def person_id(number: int) -> str:
    """As folders and tables name a person: person-00007."""
    return f"person-{number:05d}"


def write_people(folder: Path, people: int, pictures_each: int, *, first: int = 0, size: int = SIDE) -> None:
    """Draw people from number `first` on as files: photos/person-00000/01.png and on, and people.csv, a line a person."""
    lines = []
    for number in range(first, first + people):
        place = folder / PHOTOS / person_id(number)
        place.mkdir(parents=True, exist_ok=True)
        for at, image in enumerate(pictures(number, pictures_each, size=size), 1):
            image.save(place / f"{at:02d}.png")
        lines.append({"person_id": person_id(number), **attributes(person(number))})
    with (folder / TABLE).open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def read_people(file: Path) -> dict[str, dict[str, str]]:
    """A table of people by `person_id`, values as written. Raises ValueError for a file without that column."""
    with file.open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    if not lines or "person_id" not in lines[0]:
        raise ValueError(
            f"{file} is no table of people: its first line must name columns, person_id among them, and a line a person follow."
        )
    return {line.pop("person_id"): line for line in lines}


def _choice(options: Sequence[T], generator: torch.Generator) -> T:
    return options[int(torch.randint(len(options), (), generator=generator))]
