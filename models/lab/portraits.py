"""Drawn portraits: pictures of people who do not exist, with every attribute known. Deterministic, and fast enough to train on.

A portrait is drawn in eye distances around the point between the eyes, at two to four times its size, shaded, and reduced. Eyes stand
where the aligned crops of real photographs have them: level at 0.45 of the side, 0.27 of the side apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw, ImageFilter
from torch import Tensor

from models.lab.people import EYE_COLOURS, HAIR_COLOURS, Identity, View

EYE_LEVEL = 0.45  # of the side
EYE_DISTANCE = 0.27  # of the side
CANVAS = 256  # pixels: small portraits are drawn this large, large ones at twice their size

Colour = tuple[int, int, int]
Points = np.ndarray  # (N, 2) x, y in eye distances
Outline: TypeAlias = Points | Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Portrait:
    """image: RGB; landmarks: (5, 2) x, y in pixels of left eye, right eye, nose tip, left and right corner of the mouth (left as seen);
    box: x0, y0, x1, y1 of the face in pixels."""

    image: Image.Image
    landmarks: Tensor
    box: tuple[float, float, float, float]
    identity: Identity
    view: View


def draw_portrait(identity: Identity, view: View, size: int) -> Portrait:
    """Draw one picture of a person, `size` pixels square. The same arguments give the same picture, bit for bit."""
    sketch = _Sketch(max(2 * size, CANVAS), view.background)
    head = _Head(identity, view)
    _draw_background(sketch, view)
    _draw_hair_behind(sketch, head)
    _draw_body(sketch, head)
    _draw_face(sketch, head)
    _draw_beard(sketch, head)
    for side in (-1, 1):
        _draw_eye(sketch, head, side)
    _draw_nose(sketch, head)
    _draw_mouth(sketch, head)
    for side in (-1, 1):
        _draw_brow(sketch, head, side)
    _draw_hair_before(sketch, head)
    _draw_glasses(sketch, head)
    image = _lit(sketch.image, view).resize((size, size), Image.Resampling.BOX)
    to_pixels = EYE_DISTANCE * size
    centre = np.array([0.5 * size, EYE_LEVEL * size])
    mouth = head.mouth_corners()
    landmarks = np.array([[-0.5, 0.0], [0.5, 0.0], head.nose_tip, *mouth]) * to_pixels + centre
    outline = head.outline * to_pixels + centre
    (x0, y0), (x1, y1) = outline.min(axis=0), outline.max(axis=0)
    box = (max(0.0, float(x0)), max(0.0, float(y0)), min(float(size), float(x1)), min(float(size), float(y1)))
    return Portrait(image, torch.tensor(landmarks, dtype=torch.float32), box, identity, view)


def _spread(value: float, low: float, high: float) -> float:
    return low + (high - low) * value


class _Head:
    """The measures of a head in eye distances, after its turn: what several parts of the drawing share."""

    def __init__(self, identity: Identity, view: View) -> None:
        self.identity, self.view = identity, view
        light, dark = np.array([244.0, 208.0, 184.0]), np.array([92.0, 58.0, 42.0])
        skin = _spread(identity.skin_depth, 0.0, 1.0) * (dark - light) + light
        skin += (identity.skin_warmth - 0.5) * np.array([22.0, 2.0, -26.0])
        self.skin = _colour(skin)
        self.hair = HAIR_COLOURS[identity.hair_colour]
        self.half_width = _spread(identity.face_width, 0.9, 1.22)
        self.chin = _spread(identity.face_length, 1.5, 1.95) + 0.06 * view.mouth_open
        self.crown = -_spread(identity.face_length, 1.2, 1.36)
        self.shift = np.array([-0.17 * view.yaw, -0.06 * view.pitch])  # the outline moves against the features
        self.nose_tip = (0.16 * view.yaw, _spread(identity.nose_length, 0.52, 0.82) + 0.08 * view.pitch)
        self.mouth = (0.08 * view.yaw, _spread(identity.mouth_height, 0.98, 1.16) + 0.2 * (identity.nose_length - 0.5) + 0.04 * view.pitch)
        jaw = _spread(identity.jaw, 0.52, 0.86)
        w, top, chin = self.half_width, self.crown, self.chin
        right = [(0, top), (0.55 * w, top + 0.1), (0.92 * w, top + 0.55), (w, -0.1), (0.97 * w, 0.45)]
        right += [(_spread(jaw, 0.6, 1.0) * w * 0.98, 0.62 * chin), (jaw * 0.8 * w, 0.86 * chin), (0.3 * w, chin), (0, 1.02 * chin)]
        left = [(-x, y) for x, y in reversed(right[1:-1])]
        self.outline = _smooth(np.array(right + left)) + self.shift

    def mouth_corners(self) -> list[tuple[float, float]]:
        half = _spread(self.identity.mouth_width, 0.3, 0.5) * (1 + 0.16 * max(0.0, self.view.smile))
        lift = 0.12 * self.view.smile
        x, y = self.mouth
        return [(x - half, y - lift), (x + half, y - lift)]


class _Sketch:
    """A canvas with the eye distance as its unit."""

    def __init__(self, side: int, background: Colour) -> None:
        self.side = side
        self.image = Image.new("RGB", (side, side), background)

    def pixels(self, points: Outline) -> list[tuple[float, float]]:
        scaled = np.asarray(points, dtype=float) * (EYE_DISTANCE * self.side) + np.array([0.5 * self.side, EYE_LEVEL * self.side])
        return [(float(x), float(y)) for x, y in scaled]

    def fill(self, points: Outline, colour: Colour, *, alpha: float = 1.0, soft: float = 0.0, inside: Outline | None = None) -> None:
        """A filled outline; `soft` blurs its edge (eye distances), `inside` keeps the paint within another outline."""
        self._paint(self.pixels(points), None, colour, alpha, soft, inside)

    def stroke(self, points: Outline, width: float, colour: Colour, *, alpha: float = 1.0, soft: float = 0.0) -> None:
        """A line of a width in eye distances."""
        self._paint(self.pixels(points), max(1, round(width * EYE_DISTANCE * self.side)), colour, alpha, soft, None)

    def _paint(
        self, pixels: list[tuple[float, float]], width: int | None, colour: Colour, alpha: float, soft: float, inside: Outline | None
    ) -> None:
        if width is None and alpha == 1 and soft == 0 and inside is None:
            ImageDraw.Draw(self.image).polygon(pixels, fill=colour)
            return
        blur = soft * EYE_DISTANCE * self.side
        margin = 2 * math.ceil(blur) + (width or 0) + 1
        xs, ys = [x for x, _ in pixels], [y for _, y in pixels]
        x0, x1 = (min(self.side, max(0, math.floor(x))) for x in (min(xs) - margin, max(xs) + margin))
        y0, y1 = (min(self.side, max(0, math.floor(y))) for y in (min(ys) - margin, max(ys) + margin))
        if x0 >= x1 or y0 >= y1:
            return
        mask = Image.new("L", (x1 - x0, y1 - y0), 0)
        pen, moved = ImageDraw.Draw(mask), [(x - x0, y - y0) for x, y in pixels]
        level = round(255 * alpha)
        if width is None:
            pen.polygon(moved, fill=level)
        else:
            pen.line(moved, fill=level, width=width, joint="curve")
        if blur > 0:
            mask = mask.filter(ImageFilter.BoxBlur(blur))
        if inside is not None:
            stencil = Image.new("L", mask.size, 0)
            ImageDraw.Draw(stencil).polygon([(x - x0, y - y0) for x, y in self.pixels(inside)], fill=255)
            mask = ImageChops.multiply(mask, stencil)
        self.image.paste(colour, (x0, y0, x1, y1), mask)


def _draw_background(sketch: _Sketch, view: View) -> None:
    dark = _shade(view.background, 0.8)
    sketch.fill([(-2, 0.6), (2, 0.6), (2, 2.2), (-2, 2.2)], dark, alpha=0.7, soft=0.6)


def _draw_body(sketch: _Sketch, head: _Head) -> None:
    x, chin = 0.6 * float(head.shift[0]), head.chin
    shirt = head.view.shirt
    sketch.fill(_smooth(np.array([(-2.1, 2.3), (-1.7, chin + 0.28), (-0.6, chin), (0.6, chin), (1.7, chin + 0.28), (2.1, 2.3)])), shirt)
    neck = np.array([(-0.62, 0.9), (0.62, 0.9), (0.66, chin + 0.12), (0.1, chin + 0.42), (-0.1, chin + 0.42), (-0.66, chin + 0.12)])
    sketch.fill(neck + np.array([x, 0.0]), _shade(head.skin, 0.78))
    sketch.stroke([(x - 0.7, chin + 0.05), (x, chin + 0.5), (x + 0.7, chin + 0.05)], 0.07, _shade(shirt, 0.7))


def _draw_face(sketch: _Sketch, head: _Head) -> None:
    ear = _spread(head.identity.ear_size, 0.18, 0.34)
    for side in (-1, 1):
        centre = head.shift + np.array([side * (head.half_width + 0.02 + 0.05 * side * -head.view.yaw), 0.14])
        sketch.fill(_ellipse(centre, 0.15, ear + 0.06), _shade(head.skin, 0.88))
        sketch.fill(_ellipse(centre, 0.07, ear * 0.6), _shade(head.skin, 0.7), alpha=0.8, soft=0.03)
    sketch.fill(head.outline, head.skin)
    light = np.array([head.view.light_x, 0.5 * head.view.light_y])
    hard = head.view.light_contrast
    sketch.fill(
        _ellipse(head.shift - 0.75 * light + (0, 0.3), 0.9, 1.4), _shade(head.skin, 0.62), alpha=0.75 * hard, soft=0.35, inside=head.outline
    )
    sketch.fill(
        _ellipse(head.shift + 0.6 * light + (0, -0.1), 0.6, 0.8), _shade(head.skin, 1.14), alpha=0.7 * hard, soft=0.4, inside=head.outline
    )
    blush = _colour(np.array(head.skin) * (1.0, 0.8, 0.78))
    for side in (-1, 1):
        sketch.fill(_ellipse((side * 0.62 + 0.5 * float(head.shift[0]), 0.62), 0.26, 0.2), blush, alpha=0.45, soft=0.12)
        sketch.fill(_ellipse((side * 0.5, 0.02), 0.36, 0.24), _shade(head.skin, 0.8), alpha=0.55, soft=0.1)
    for mark in head.identity.marks:
        turned = (mark.x + 0.05 * head.view.yaw, mark.y)
        sketch.fill(_ellipse(turned, mark.radius, mark.radius), _shade(head.skin, 0.45))


def _draw_eye(sketch: _Sketch, head: _Head, side: int) -> None:
    who, view = head.identity, head.view
    narrow = 1 - 0.12 * side * view.yaw
    half = _spread(who.eye_size, 0.21, 0.3) * narrow
    lid = _spread(who.eye_size, 0.1, 0.16) * _spread(view.eyes_open, 0.55, 1.1) * (1 - 0.2 * max(0.0, view.smile))
    slant = _spread(who.eye_slant, -0.05, 0.09) * side
    x = 0.5 * side
    upper = [(x - half, slant * 0.9), (x - 0.5 * half, -0.8 * lid), (x, -lid), (x + 0.55 * half, -0.75 * lid), (x + half, -slant * 0.9)]
    lower = [(x + 0.5 * half, 0.7 * lid), (x, 0.85 * lid), (x - 0.5 * half, 0.7 * lid)]
    opening = _smooth(np.array(upper + lower))
    sketch.fill(opening, (238, 234, 228))
    iris = (x + 0.1 * view.gaze, -0.1 * lid)
    radius = min(0.125, 1.02 * lid + 0.02)
    sketch.fill(_ellipse(iris, 0.125, 0.125), EYE_COLOURS[who.eye_colour], inside=opening)
    sketch.fill(_ellipse(iris, 0.06, 0.06), (16, 14, 14), inside=opening)
    sketch.fill(_ellipse((iris[0] + 0.05 * (1 if view.light_x > 0 else -1), iris[1] - 0.3 * radius), 0.026, 0.026), (255, 255, 255))
    lash = _shade(_blend(head.hair, (40, 26, 22), 0.6), 0.7)
    sketch.stroke(_curve(np.array(upper)), 0.055, lash)
    sketch.stroke(_curve(np.array(upper)) - np.array([0, 0.08]), 0.03, _shade(head.skin, 0.6), alpha=0.8)
    sketch.stroke(_curve(np.array([upper[-1], *lower, upper[0]])), 0.025, _shade(head.skin, 0.55), alpha=0.8)


def _draw_brow(sketch: _Sketch, head: _Head, side: int) -> None:
    who = head.identity
    y = -_spread(who.brow_height, 0.24, 0.38) - 0.07 * head.view.brow_raise
    slope = _spread(who.brow_slope, -0.1, 0.12)
    thick = _spread(who.brow_weight, 0.05, 0.15)
    inner, middle, outer = (0.2, y + slope), (0.52, y - 0.08), (0.86, y + 0.04 - slope * 0.4)
    line = _curve(np.array([inner, middle, outer])) * (side, 1)
    widths = np.linspace(1.0, 0.35, len(line))[:, None] * thick / 2
    ring = np.concatenate([line - np.array([0, 1]) * widths, (line + np.array([0, 1]) * widths)[::-1]])
    sketch.fill(ring, _blend(_shade(head.hair, 0.8), head.skin, 0.12), soft=0.01)


def _draw_nose(sketch: _Sketch, head: _Head) -> None:
    x, tip = head.nose_tip
    half = _spread(head.identity.nose_width, 0.15, 0.3)
    shadow = -1 if head.view.light_x > 0 else 1
    dark, bright = _shade(head.skin, 0.66), _shade(head.skin, 1.16)
    sketch.fill(
        _smooth(np.array([(shadow * 0.1, -0.05), (x + shadow * 0.09, 0.6 * tip), (x + shadow * half, tip), (x, tip + 0.02)])),
        dark,
        alpha=0.55,
        soft=0.04,
    )
    sketch.stroke(_curve(np.array([(0.0, 0.0), (0.5 * x, 0.5 * tip), (x, tip - 0.06)])), 0.09, bright, alpha=0.6, soft=0.03)
    base = [(x - half, tip - 0.06), (x - 0.8 * half, tip + 0.08), (x, tip + 0.12), (x + 0.8 * half, tip + 0.08), (x + half, tip - 0.06)]
    sketch.stroke(_curve(np.array(base)), 0.045, _shade(head.skin, 0.52), alpha=0.85, soft=0.01)
    for side in (-1, 1):
        sketch.fill(_ellipse((x + side * 0.52 * half, tip + 0.06), 0.06, 0.036), _shade(head.skin, 0.3))


def _draw_mouth(sketch: _Sketch, head: _Head) -> None:
    (left, y), (right, _) = head.mouth_corners()
    x, middle = head.mouth
    full = _spread(head.identity.lip_fullness, 0.05, 0.14)
    gap = 0.2 * head.view.mouth_open + 0.015
    drop = 0.06 * max(0.0, head.view.smile)
    lip = _colour(np.array(head.skin) * (0.86, 0.6, 0.6))
    upper = [(left, y), (x - 0.12, middle - full), (x, middle - 0.75 * full), (x + 0.12, middle - full), (right, y)]
    lower = [(x + 0.2, middle + gap + full + drop), (x, middle + gap + 1.25 * full + drop), (x - 0.2, middle + gap + full + drop)]
    sketch.fill(_smooth(np.array(upper + lower)), lip)
    inner = [
        (left + 0.03, y + 0.01),
        (x, middle),
        (right - 0.03, y + 0.01),
        (x + 0.14, middle + gap + drop),
        (x - 0.14, middle + gap + drop),
    ]
    opening = _smooth(np.array(inner))
    if head.view.mouth_open > 0:
        sketch.fill(opening, (70, 26, 28))
        sketch.fill(
            np.array([(left, y - 0.1), (right, y - 0.1), (right, middle + 0.55 * gap), (left, middle + 0.55 * gap)]),
            (240, 236, 228),
            inside=opening,
        )
    else:
        sketch.stroke(_curve(np.array([(left, y), (x, middle + drop), (right, y)])), 0.04, _shade(lip, 0.5))
    sketch.fill(_ellipse((x, middle + gap + 2.3 * full + drop), 0.22, 0.05), _shade(head.skin, 0.7), alpha=0.6, soft=0.05)


def _draw_beard(sketch: _Sketch, head: _Head) -> None:
    beard = head.identity.beard
    if beard == "none":
        return
    colour = _blend(_shade(head.hair, 0.85), head.skin, 0.1)
    x, y = head.mouth
    shift, w, chin = float(head.shift[0]), head.half_width, head.chin
    if beard in ("full", "stubble"):
        side = [(shift + 1.05 * w, 0.25), (shift + 1.1 * w, chin + 0.4), (shift - 1.1 * w, chin + 0.4), (shift - 1.05 * w, 0.25)]
        inner = [
            (shift - 0.86 * w, 0.45),
            (x - 0.62, y - 0.12),
            (x - 0.3, y - 0.3),
            (x, y - 0.24),
            (x + 0.3, y - 0.3),
            (x + 0.62, y - 0.12),
        ]
        region = np.array([*side, *inner, (shift + 0.86 * w, 0.45)])
        outline = head.outline if beard == "stubble" else head.outline * (1.02, 1.07)
        sketch.fill(region, colour, alpha=0.38 if beard == "stubble" else 0.96, soft=0.06, inside=outline)
    if beard in ("moustache", "goatee"):
        top, bottom = y - 0.26, y - 0.04
        sketch.fill(
            _smooth(
                np.array(
                    [(x - 0.5, bottom + 0.08), (x - 0.26, top), (x, top + 0.05), (x + 0.26, top), (x + 0.5, bottom + 0.08), (x, bottom)]
                )
            ),
            colour,
            soft=0.02,
        )
    if beard == "goatee":
        sketch.fill(
            _smooth(
                np.array([(x - 0.36, y + 0.22), (x + 0.36, y + 0.22), (x + 0.3, chin + 0.05), (x, chin + 0.16), (x - 0.3, chin + 0.05)])
            ),
            colour,
            soft=0.03,
        )


def _draw_hair_behind(sketch: _Sketch, head: _Head) -> None:
    style, w = head.identity.hair_style, head.half_width
    more = _spread(head.identity.hair_volume, 0.1, 0.34)
    dark = _shade(head.hair, 0.72)
    top = head.crown - more
    if style in ("long", "fringe"):
        length = 2.3 if style == "long" else 1.25
        wide = w + 0.24 + more
        sheet = [
            (0, top),
            (0.8 * wide, top + 0.4),
            (wide, 0.1),
            (1.04 * wide, length),
            (0.4, length),
            (-0.4, length),
            (-1.04 * wide, length),
            (-wide, 0.1),
            (-0.8 * wide, top + 0.4),
        ]
        sketch.fill(_smooth(np.array(sheet)) + head.shift, dark)
    if style == "bun":
        sketch.fill(_ellipse(head.shift + np.array([0.0, top - 0.12]), 0.42 + more * 0.4, 0.4), dark)
    if style == "curly":
        for angle in np.linspace(-0.25 * math.pi, 1.25 * math.pi, 13):
            centre = head.shift + np.array([math.cos(angle) * (w + 0.1), -math.sin(angle) * 1.25 + 0.0])
            sketch.fill(_ellipse(centre, 0.26 + more * 0.6, 0.26 + more * 0.6), dark)


def _draw_hair_before(sketch: _Sketch, head: _Head) -> None:
    style, w, top = head.identity.hair_style, head.half_width, head.crown
    more = _spread(head.identity.hair_volume, 0.06, 0.26)
    if style == "bald":
        shine = head.shift + np.array([0.25 * head.view.light_x, top + 0.35])
        sketch.fill(_ellipse(shine, 0.3, 0.16), _shade(head.skin, 1.2), alpha=0.7, soft=0.12)
        return
    edge = {"cropped": -0.72, "parted": -0.62, "curly": -0.6, "long": -0.66, "bun": -0.8, "fringe": -0.36}[style]
    temple = {"cropped": -0.2, "parted": -0.05, "curly": 0.0, "long": 0.5, "bun": -0.25, "fringe": 0.4}[style]
    outside = [
        (-1.03 * w, temple),
        (-1.05 * w - 0.6 * more, -0.45),
        (-0.7 * w - 0.5 * more, top + 0.18),
        (0, top - more),
        (0.7 * w + 0.5 * more, top + 0.18),
        (1.05 * w + 0.6 * more, -0.45),
        (1.03 * w, temple),
    ]
    if style in ("parted", "long"):
        inside = [(0.86 * w, -0.25), (0.66 * w, edge + 0.1), (-0.25 * w, edge - 0.38), (-0.62 * w, edge + 0.05), (-0.88 * w, -0.25)]
    elif style == "fringe":
        inside = [(0.86 * w, 0.1), (0.8 * w, edge), (0.3 * w, edge - 0.04), (-0.3 * w, edge - 0.02), (-0.8 * w, edge), (-0.86 * w, 0.1)]
    else:
        inside = [(0.88 * w, -0.3), (0.7 * w, edge - 0.08), (0, edge - 0.16), (-0.7 * w, edge - 0.08), (-0.88 * w, -0.3)]
    cap = _smooth(np.array(outside + inside)) + head.shift
    sketch.fill(cap, head.hair)
    if style == "curly":
        for angle in np.linspace(0.08 * math.pi, 0.92 * math.pi, 9):
            centre = head.shift + np.array([math.cos(angle) * 0.92 * w, -math.sin(angle) * 1.05 - 0.04])
            sketch.fill(_ellipse(centre, 0.2 + more * 0.5, 0.2 + more * 0.5), _shade(head.hair, 0.95 + 0.18 * math.sin(7 * angle)))
    shine = head.shift + np.array([0.4 * head.view.light_x * w, top + 0.2 - 0.4 * more])
    sketch.fill(_ellipse(shine, 0.5, 0.12), _blend(head.hair, (255, 255, 255), 0.4), alpha=0.55, soft=0.1, inside=cap)


def _draw_glasses(sketch: _Sketch, head: _Head) -> None:
    kind = head.identity.glasses
    if kind == "none":
        return
    frame = (26, 24, 26) if kind != "round" else (96, 70, 40)
    for side in (-1, 1):
        centre = (side * 0.5, 0.03)
        if kind == "round":
            rim = _ellipse(centre, 0.38, 0.36)
        else:
            x, y = centre
            rim = _smooth(
                np.array([(x - 0.4, y - 0.24), (x, y - 0.27), (x + 0.4, y - 0.24), (x + 0.37, y + 0.2), (x, y + 0.28), (x - 0.37, y + 0.2)])
            )
        sketch.fill(rim, (28, 26, 34) if kind == "sun" else (225, 235, 245), alpha=0.9 if kind == "sun" else 0.14)
        sketch.stroke(np.concatenate([rim, rim[:2]]), 0.075, frame)
        sketch.stroke([(side * 0.88, -0.02), (side * (head.half_width + 0.02) + float(head.shift[0]), -0.06)], 0.06, frame)
    sketch.stroke(_curve(np.array([(-0.13, 0.0), (0.0, -0.06), (0.13, 0.0)])), 0.065, frame)


def _lit(image: Image.Image, view: View) -> Image.Image:
    """Light falling from one side over the whole picture, its colour, and the exposure."""
    side = image.width
    across = np.linspace(-1, 1, side, dtype=np.float32)
    fall = across[None, :] * view.light_x + across[:, None] * 0.6 * view.light_y
    gain = view.exposure * (1 + 0.28 * view.light_contrast * fall)
    tint = np.array([1 + 0.07 * view.light_warmth, 1.0, 1 - 0.09 * view.light_warmth], dtype=np.float32)
    lit = np.asarray(image, dtype=np.float32) * gain[:, :, None] * tint
    return Image.fromarray(np.clip(lit, 0, 255).round().astype(np.uint8))


def _smooth(points: Points, per_segment: int = 6) -> Points:
    """A closed curve through all points (Catmull-Rom)."""
    return _catmull_rom(np.concatenate([points[-1:], points, points[:2]]), per_segment)


def _curve(points: Points, per_segment: int = 8) -> Points:
    """An open curve through all points (Catmull-Rom)."""
    ends = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    return np.concatenate([_catmull_rom(ends, per_segment), points[-1:]])


def _catmull_rom(points: Points, per_segment: int) -> Points:
    t = np.linspace(0, 1, per_segment, endpoint=False)[None, :, None]
    a, b, c, d = (points[i : len(points) - 3 + i, None, :] for i in range(4))
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return curve.reshape(-1, 2)


def _ellipse(centre: Sequence[float] | np.ndarray, half_width: float, half_height: float) -> Points:
    angle = np.linspace(0, 2 * math.pi, 32, endpoint=False)
    return np.stack([centre[0] + half_width * np.cos(angle), centre[1] + half_height * np.sin(angle)], axis=1)


def _colour(rgb: np.ndarray) -> Colour:
    red, green, blue = np.clip(rgb, 0, 255).round().astype(int).tolist()
    return red, green, blue


def _shade(colour: Colour, factor: float) -> Colour:
    return _colour(np.array(colour) * factor)


def _blend(colour: Colour, other: Colour, share: float) -> Colour:
    return _colour(np.array(colour) * (1 - share) + np.array(other) * share)
