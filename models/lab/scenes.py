"""Scenes of the drawn world: flat objects of a shape and a colour in named places of a background."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star", "heart")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 36, 38),
    "green": (40, 156, 58),
    "blue": (40, 78, 212),
    "yellow": (246, 214, 40),
    "purple": (136, 48, 168),
    "orange": (246, 136, 28),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "gray": (142, 142, 146),
    "black": (26, 26, 30),
    "white": (236, 236, 232),
    "pink": (240, 170, 196),
    "teal": (44, 140, 146),
    "snow": (214, 228, 244),  # with flakes
    "beach": (150, 206, 244),  # sky above sand
    "jungle": (24, 82, 44),  # with leaves
}
PLACES: dict[str, tuple[float, float]] = {  # centre, as fractions of the side
    "top left": (0.26, 0.26),
    "top": (0.5, 0.26),
    "top right": (0.74, 0.26),
    "left": (0.26, 0.5),
    "middle": (0.5, 0.5),
    "right": (0.74, 0.5),
    "bottom left": (0.26, 0.74),
    "bottom": (0.5, 0.74),
    "bottom right": (0.74, 0.74),
}
SHIFT = 0.02  # how far a centre may lie from its place
RADIUS = (0.2, 0.225)  # half the extent of an object, as a fraction of the side
SUPERSAMPLING = 4


def _apart(places: tuple[str, ...]) -> bool:
    centres = [PLACES[place] for place in places]
    return all(max(abs(ax - bx), abs(ay - by)) >= 0.48 for (ax, ay), (bx, by) in itertools.combinations(centres, 2))


PAIRS = tuple(pair for pair in itertools.combinations(PLACES, 2) if _apart(pair))
TRIPLES = tuple(triple for triple in itertools.combinations(PLACES, 3) if _apart(triple))
"""Places whose objects do not touch."""


@dataclass(frozen=True)
class Thing:
    """One object; `place` is a key of PLACES."""

    shape: str
    colour: str
    place: str


@dataclass(frozen=True)
class Scene:
    """One to three objects before a background, a key of BACKGROUNDS."""

    things: tuple[Thing, ...]
    background: str


def draw_scene(
    scene: Scene, generator: torch.Generator, size: int
) -> tuple[Image.Image, tuple[tuple[float, float, float, float], ...], np.ndarray]:
    """The picture, each object's box (x0, y0, x1, y1 as fractions) and mask ((N, size, size) bool); `generator` draws sizes and shifts."""
    side = SUPERSAMPLING * size
    image = Image.new("RGB", (side, side), BACKGROUNDS[scene.background])
    _draw_background(image, scene.background, generator)
    boxes, masks = [], []
    for thing in scene.things:
        jitter, extent = (torch.rand(2, generator=generator) * 2 - 1) * SHIFT, torch.rand((), generator=generator)
        radius = RADIUS[0] + (RADIUS[1] - RADIUS[0]) * float(extent)
        angle = math.radians(8) * (2 * float(torch.rand((), generator=generator)) - 1)
        centre = np.array(PLACES[thing.place]) + jitter.numpy()
        points = outline(thing.shape) @ np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        points = centre + radius * points
        mask = Image.new("L", (side, side), 0)
        ImageDraw.Draw(mask).polygon([(float(x) * side, float(y) * side) for x, y in points], fill=255)
        image.paste(COLOURS[thing.colour], (0, 0), mask)
        (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
        boxes.append((max(0.0, float(x0)), max(0.0, float(y0)), min(1.0, float(x1)), min(1.0, float(y1))))
        masks.append(np.asarray(mask.resize((size, size), Image.Resampling.BOX)) > 127)
    return image.resize((size, size), Image.Resampling.BOX), tuple(boxes), np.stack(masks)


def outline(shape: str) -> np.ndarray:
    """(N, 2) corners of a shape within [-1, 1], y down."""
    if shape == "circle":
        angles = np.linspace(0, 2 * math.pi, 48, endpoint=False)
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)
    if shape == "square":
        return 0.92 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], dtype=float)
    if shape == "triangle":
        return np.array([(0, -1), (1, 0.88), (-1, 0.88)], dtype=float)
    if shape == "star":
        angles = -math.pi / 2 + np.arange(10) * math.pi / 5
        radii = np.where(np.arange(10) % 2 == 0, 1.08, 0.45)
        return np.stack([radii * np.cos(angles), 0.06 + radii * np.sin(angles)], axis=1)
    if shape == "heart":
        t = np.linspace(0, 2 * math.pi, 60, endpoint=False)
        x, y = 16 * np.sin(t) ** 3, 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return np.stack([x / 16, -(y + 2.5) / 14.5], axis=1)
    raise ValueError(f"There is no shape {shape!r}; there are {', '.join(SHAPES)}.")


def _draw_background(image: Image.Image, background: str, generator: torch.Generator) -> None:
    pen, side = ImageDraw.Draw(image), image.width
    if background == "beach":
        horizon = round(side * (0.5 + 0.06 * float(torch.rand((), generator=generator))))
        pen.rectangle((0, horizon, side, side), fill=(230, 204, 142))
    if background == "snow":
        for x, y in torch.rand(14, 2, generator=generator).tolist():
            r = side * 0.028
            pen.ellipse((x * side - r, y * side - r, x * side + r, y * side + r), fill=(255, 255, 255))
    if background == "jungle":
        for x in torch.rand(7, generator=generator).tolist():
            w = side * 0.035
            pen.polygon([(x * side - w, side), (x * side, 0), (x * side + w, side)], fill=(60, 138, 62))
