"""The drawn world: portraits and scenes of one to three objects, every attribute known, each picture with its caption, boxes and masks.

Picture `number` is always the same. Attributes are large, few and clear at 32 px, so that small models can learn them and be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from PIL import Image

from models.lab.people import Identity, View, random_identity
from models.lab.portraits import draw_portrait
from models.lab.scenes import BACKGROUNDS, COLOURS, PAIRS, PLACES, SHAPES, TRIPLES, Scene, Thing, draw_scene

T = TypeVar("T")

SIDE = 32  # pixels
UNSEEN = 1_000_000  # pictures from this number on are never trained on

HAIR = ("bald", "short", "curly", "long")
HAIR_COLOURS = ("black", "brown", "blond", "red", "white")
GLASSES = ("no glasses", "glasses", "sunglasses")
BEARDS = ("shaven", "beard")  # not "no beard": beside "no glasses" a text tower has to keep in mind which of the two "no" belongs to
EXPRESSIONS = ("serious", "smiling")
PORTRAIT_BACKGROUNDS = ("gray", "black", "white", "pink", "teal")
SHIRTS = tuple(COLOURS)

PORTRAIT_VALUES: dict[str, tuple[str, ...]] = {
    "hair": HAIR,
    "hair_colour": HAIR_COLOURS,
    "glasses": GLASSES,
    "beard": BEARDS,
    "expression": EXPRESSIONS,
    "shirt": SHIRTS,
    "background": PORTRAIT_BACKGROUNDS,
}
"""Attribute of a portrait -> its values."""

_DRAWN_HAIR = {"bald": "bald", "short": "cropped", "curly": "curly", "long": "long"}
_DRAWN_GLASSES = {"no glasses": "none", "glasses": "square", "sunglasses": "sun"}
_DRAWN_BEARD = {"shaven": "none", "beard": "full"}


@dataclass(frozen=True, kw_only=True)
class Portrait:
    """What a caption can say of a portrait; `identity` holds everything else that stays with the person."""

    hair: str
    hair_colour: str
    glasses: str
    beard: str
    expression: str
    shirt: str
    background: str
    identity: Identity


Subject: TypeAlias = Scene | Portrait


@dataclass(frozen=True)
class Drawing:
    """image: RGB. boxes: x0, y0, x1, y1 of each object as fractions of the side (none for portraits); masks: (N, S, S) bool."""

    subject: Subject
    image: Image.Image
    boxes: tuple[tuple[float, float, float, float], ...]
    masks: np.ndarray


def subject(number: int, kind: str | None = None) -> Subject:
    """What picture `number` shows; `kind` is portrait, scene or None for either (45 % portraits). Scenes: half one object, a tenth three."""
    generator = torch.Generator().manual_seed(number)
    portrait = _chance(0.45, generator)
    if kind == "portrait" or (kind is None and portrait):
        return random_portrait(generator)
    count = int(torch.multinomial(torch.tensor([0.5, 0.4, 0.1]), 1, generator=generator)) + 1
    return random_scene(count, generator)


def draw(what: Subject, number: int, size: int = SIDE) -> Drawing:
    """Draw a subject; `number` decides what no caption says: pose, light, sizes and small shifts. The same arguments give the same picture."""
    generator = torch.Generator().manual_seed(number + 2**40)
    if isinstance(what, Scene):
        image, boxes, masks = draw_scene(what, generator, size)
        return Drawing(what, image, boxes, masks)
    image = draw_portrait(drawn_identity(what), _view(what, generator), size).image
    return Drawing(what, image, (), np.zeros((0, size, size), dtype=bool))


def random_portrait(generator: torch.Generator) -> Portrait:
    """A portrait drawn from the world's people, attributes independent of each other."""
    return Portrait(
        identity=random_identity(generator),
        hair=_choice(HAIR, generator),
        hair_colour=_choice(HAIR_COLOURS, generator),
        glasses=_choice(GLASSES, generator),
        beard=_choice(BEARDS, generator),
        expression=_choice(EXPRESSIONS, generator),
        shirt=_choice(SHIRTS, generator),
        background=_choice(PORTRAIT_BACKGROUNDS, generator),
    )


def random_scene(count: int, generator: torch.Generator, *, same_shape: bool = False) -> Scene:
    """A scene of `count` objects (1 to 3) that do not touch; colours differ between objects, shapes do unless `same_shape`."""
    if count == 1:
        places: Sequence[str] = (_choice(tuple(PLACES), generator),)
    else:
        places = _choice(PAIRS if count == 2 else TRIPLES, generator)
        places = [places[i] for i in torch.randperm(count, generator=generator).tolist()]
    colours = [tuple(COLOURS)[i] for i in torch.randperm(len(COLOURS), generator=generator)[:count].tolist()]
    shapes = [SHAPES[i] for i in torch.randperm(len(SHAPES), generator=generator)[:count].tolist()]
    if same_shape:
        shapes = [shapes[0]] * count
    things = tuple(Thing(shape, colour, place) for shape, colour, place in zip(shapes, colours, places, strict=True))
    return Scene(things, _choice(tuple(BACKGROUNDS), generator))


def attributes(what: Portrait) -> dict[str, str]:
    """Attribute name -> value of a portrait; the bald have no hair colour."""
    values = {name: getattr(what, name) for name in PORTRAIT_VALUES}
    if values["hair"] == "bald":
        del values["hair_colour"]
    return values


def drawn_identity(portrait: Portrait) -> Identity:
    """The person of a portrait as models.lab.portraits draws it."""
    return replace(
        portrait.identity,
        hair_style=_DRAWN_HAIR[portrait.hair],
        hair_colour=portrait.hair_colour,
        glasses=_DRAWN_GLASSES[portrait.glasses],
        beard=_DRAWN_BEARD[portrait.beard],
    )


def _view(portrait: Portrait, generator: torch.Generator) -> View:
    smiling = portrait.expression == "smiling"
    return View(
        yaw=_uniform(-0.6, 0.6, generator),
        pitch=_uniform(-0.4, 0.4, generator),
        light_x=_uniform(-0.8, 0.8, generator),
        light_y=_uniform(-0.8, 0.0, generator),
        light_contrast=_uniform(0.1, 0.6, generator),
        light_warmth=_uniform(-0.3, 0.3, generator),
        exposure=_uniform(0.93, 1.07, generator),
        smile=_uniform(0.8, 1.0, generator) if smiling else _uniform(-0.5, -0.2, generator),
        mouth_open=_uniform(0.6, 0.9, generator) if smiling else 0.0,
        eyes_open=_uniform(0.7, 1.0, generator),
        gaze=_uniform(-0.4, 0.4, generator),
        background=BACKGROUNDS[portrait.background],
        shirt=COLOURS[portrait.shirt],
    )


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _chance(probability: float, generator: torch.Generator) -> bool:
    return bool(torch.rand((), generator=generator) < probability)


def _choice(options: Sequence[T], generator: torch.Generator) -> T:
    return options[int(torch.randint(len(options), (), generator=generator))]
