"""The people of the drawn world: what makes a person (Identity) and what changes from picture to picture (View)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import torch

T = TypeVar("T")

HAIR_STYLES = ("bald", "cropped", "parted", "curly", "long", "bun", "fringe")
HAIR_COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (30, 26, 28),
    "brown": (84, 54, 36),
    "blond": (206, 168, 96),
    "red": (158, 72, 34),
    "grey": (142, 142, 146),
    "white": (216, 214, 210),
}
BEARDS = ("none", "none", "stubble", "moustache", "goatee", "full")  # none twice: half of the people have hair on their lip or chin
GLASSES = ("none", "none", "round", "square", "sun")
EYE_COLOURS: dict[str, tuple[int, int, int]] = {
    "brown": (84, 52, 30),
    "blue": (82, 124, 178),
    "green": (92, 128, 82),
    "grey": (126, 134, 142),
}
BACKGROUNDS = ((198, 200, 204), (120, 146, 178), (170, 140, 120), (104, 124, 104), (226, 216, 196), (72, 78, 92), (158, 120, 130))
SHIRTS = ((40, 46, 66), (232, 232, 228), (128, 34, 40), (58, 92, 70), (180, 150, 96), (96, 110, 140))


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A mole: place in eye distances from the point between the eyes (x to the right, y down), radius in eye distances."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What stays the same in every picture of a drawn person.

    Seventeen continuous factors in [0, 1] (0.5 is the middle of the population), five discrete ones, two skin marks.
    """

    face_width: float
    face_length: float
    jaw: float  # pointed to square
    eye_size: float
    eye_slant: float
    brow_height: float
    brow_weight: float
    brow_slope: float
    nose_length: float
    nose_width: float
    mouth_width: float
    mouth_height: float
    lip_fullness: float
    ear_size: float
    skin_depth: float  # light to dark
    skin_warmth: float
    hair_volume: float
    hair_style: str
    hair_colour: str
    beard: str
    glasses: str
    eye_colour: str
    marks: tuple[Mark, Mark]

    def continuous(self) -> list[float]:
        """The seventeen continuous factors in the order of the fields."""
        return [getattr(self, name) for name in CONTINUOUS]


CONTINUOUS = tuple(field.name for field in fields(Identity) if field.type == "float")


@dataclass(frozen=True, kw_only=True)
class View:
    """What changes between two pictures of one person.

    `yaw`, `pitch`: turn of the head, -1 to 1 for about 20 degrees to either side; `light_x`, `light_y`: where the light comes from, -1 to 1
    (right, down positive); `light_contrast`: 0 flat to 1 hard; `light_warmth`: -1 blue to 1 yellow; `exposure`: factor on the brightness;
    `smile`: -0.3 to 1; `mouth_open`, `eyes_open`, `brow_raise`: 0 to 1; `gaze`: -1 to 1; `background`, `shirt`: 8-bit RGB.
    """

    yaw: float = 0.0
    pitch: float = 0.0
    light_x: float = -0.4
    light_y: float = -0.6
    light_contrast: float = 0.5
    light_warmth: float = 0.0
    exposure: float = 1.0
    smile: float = 0.2
    mouth_open: float = 0.0
    eyes_open: float = 0.8
    brow_raise: float = 0.3
    gaze: float = 0.0
    background: tuple[int, int, int] = BACKGROUNDS[0]
    shirt: tuple[int, int, int] = SHIRTS[0]


def random_identity(generator: torch.Generator) -> Identity:
    """A person drawn from the population; the same generator state gives the same person."""
    factors = {name: _beta_like(generator) for name in CONTINUOUS}
    sides = (-1, 1) if _uniform(generator, 0, 1) < 0.5 else (1, -1)
    marks = tuple(
        Mark(x=side * _uniform(generator, 0.12, 0.62), y=y + _uniform(generator, -0.1, 0.1), radius=_uniform(generator, 0.035, 0.07))
        for side, y in zip(sides, (_choice(generator, (-0.55, 0.45)), 0.8), strict=True)
    )
    return Identity(
        **factors,
        hair_style=_choice(generator, HAIR_STYLES),
        hair_colour=_choice(generator, tuple(HAIR_COLOURS)),
        beard=_choice(generator, BEARDS),
        glasses=_choice(generator, GLASSES),
        eye_colour=_choice(generator, tuple(EYE_COLOURS)),
        marks=(marks[0], marks[1]),
    )


def random_view(generator: torch.Generator) -> View:
    """Pose, light, expression, clothes and background for one picture."""
    expression = _uniform(generator, 0, 1)
    return View(
        yaw=_uniform(generator, -1, 1),
        pitch=_uniform(generator, -0.7, 0.7),
        light_x=_uniform(generator, -1, 1),
        light_y=_uniform(generator, -1, 0.2),
        light_contrast=_uniform(generator, 0.1, 0.9),
        light_warmth=_uniform(generator, -0.7, 0.7),
        exposure=_uniform(generator, 0.85, 1.12),
        smile=_uniform(generator, 0.4, 1) if expression > 0.5 else _uniform(generator, -0.3, 0.3),
        mouth_open=_uniform(generator, 0.2, 0.8) if expression > 0.75 else 0.0,
        eyes_open=_uniform(generator, 0.6, 1),
        brow_raise=_uniform(generator, 0, 1),
        gaze=_uniform(generator, -0.6, 0.6),
        background=_choice(generator, BACKGROUNDS),
        shirt=_choice(generator, SHIRTS),
    )


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _beta_like(generator: torch.Generator) -> float:
    """Mean of two uniform numbers: extremes are rare, as in a population."""
    return (_uniform(generator, 0, 1) + _uniform(generator, 0, 1)) / 2


def _choice(generator: torch.Generator, options: Sequence[T]) -> T:
    return options[int(torch.randint(len(options), (), generator=generator))]
