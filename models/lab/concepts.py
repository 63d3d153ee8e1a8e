"""Edits of pictures that have a name: tone x edge x texture x light, 1,250 combinations, each with its text and an exact result.

A translator learns such an edit from pairs, and a generator of weights reads it from its text. Every tone changes most pixels; what a text does
not say stays as it is (even light, no texture). Textures that repeat do so every four pixels, counted from the upper left corner, so that a
network of strides can draw them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from models.training.loop import keyed

HELD_OUT = 20
_LUMA = (0.299, 0.587, 0.114)

TONES: Mapping[str, tuple[str, ...]] = {
    "sepia": ("sepia", "warm sepia", "old brown photograph"),
    "cyanotype": ("cyanotype blue", "blueprint", "blue print"),
    "noir": ("black and white noir", "noir", "stark monochrome"),
    "negative": ("negative colours", "photographic negative", "inverted colours"),
    "golden": ("golden", "golden honey colours", "amber"),
    "teal": ("cold teal", "icy teal colours", "frosty"),
    "dusk": ("violet dusk", "purple dusk", "violet evening"),
    "pastel": ("faded pastel", "washed pastel", "pale pink pastel"),
    "emerald": ("emerald", "emerald night vision", "green night vision"),
    "swapped": ("swapped colours", "red and blue swapped", "exchanged colours"),
}
EDGES: Mapping[str, tuple[str, ...]] = {
    "soft": ("soft focus", "blurred", "dreamy blur"),
    "ink": ("ink outlines", "dark ink lines", "strong black outlines"),
    "chalk": ("chalk outlines", "white chalk lines", "bright outlines"),
    "relief": ("embossed relief", "relief", "carved relief"),
    "crisp": ("crisp edges", "sharp crisp edges", "over sharpened"),
}
TEXTURES: Mapping[str, tuple[str, ...]] = {
    "plain": ("",),
    "poster": ("poster colours", "few flat colours", "flat poster"),
    "halftone": ("halftone dots", "newspaper dots", "printed dots"),
    "scanlines": ("scan lines", "television lines", "striped lines"),
    "canvas": ("woven canvas", "canvas", "linen weave"),
}
LIGHTS: Mapping[str, tuple[str, ...]] = {
    "even": ("",),
    "vignette": ("dark corners", "vignette", "darkened corners"),
    "left": ("light from the left", "window light from the left", "lit from the left"),
    "above": ("light from above", "lit from above", "overhead light"),
    "fog": ("rising fog", "fog", "morning fog"),
}


class UnknownConcept(ValueError):
    """A text names no concept of the lab's family."""

    def __init__(self, text: str) -> None:
        super().__init__(
            f"{text!r} is no edit that the lab can draw. Write a tone, an edge and, where wanted, a texture and a light, such as "
            f"{Concept('sepia', 'ink', 'canvas', 'fog').text!r}; tones: {', '.join(TONES)}; edges: {', '.join(EDGES)}."
        )


@dataclass(frozen=True, order=True)
class Concept:
    """One edit: a key of each of TONES, EDGES, TEXTURES and LIGHTS."""

    tone: str
    edge: str
    texture: str
    light: str

    @property
    def text(self) -> str:
        """The edit in words, such as `sepia, ink outlines, woven canvas, rising fog`."""
        return self.paraphrase(None)

    def paraphrase(self, generator: torch.Generator | None) -> str:
        """One of the ways to say it; None: the first. Parts keep their order."""
        parts = (TONES[self.tone], EDGES[self.edge], TEXTURES[self.texture], LIGHTS[self.light])
        at = [0 if generator is None else int(torch.randint(len(ways), (), generator=generator)) for ways in parts]
        return ", ".join(ways[i] for ways, i in zip(parts, at, strict=True) if ways[i])

    def apply(self, images_B3HW: Tensor) -> Tensor:
        """The pictures as this edit makes them, (B,3,H,W) in [-1, 1], H and W multiples of four. Draws nothing at random."""
        x = (images_B3HW + 1) / 2
        strength_B1HW, relief_B1HW = _edges(x)
        if self.edge == "soft":
            x = _blur(_blur(x, 2), 2)
        elif self.edge == "crisp":
            x = (x + 1.5 * (x - _blur(x, 1))).clamp(0, 1)
        x = _TONES[self.tone](_LIGHTS[self.light](x).clamp(0, 1)).clamp(0, 1)
        if self.edge == "ink":
            x = x * (1 - strength_B1HW)
        elif self.edge == "chalk":
            x = x + (1 - x) * strength_B1HW
        elif self.edge == "relief":
            x = x + relief_B1HW
        return _TEXTURES[self.texture](x.clamp(0, 1)).clamp(0, 1) * 2 - 1


def all_concepts() -> list[Concept]:
    """Every combination, in a fixed order."""
    return [Concept(a, b, c, d) for a in TONES for b in EDGES for c in TEXTURES for d in LIGHTS]


def held_out_concepts() -> list[Concept]:
    """The 20 combinations that nothing is trained on; all their parts occur elsewhere, and every tone is there twice."""
    return _shuffled()[:HELD_OUT]


def training_concepts(count: int | None = None) -> list[Concept]:
    """The first `count` training combinations, or all 1,230; more hold all those of fewer. Every ten have every tone once.

    Raises ValueError beyond 1,230.
    """
    left = _shuffled()[HELD_OUT:]
    if count is None:
        return left
    if not 0 < count <= len(left):
        raise ValueError(f"There are {len(left)} training concepts, not {count}; ask for 1 to {len(left)}.")
    return left[:count]


def find_concept(text: str) -> Concept:
    """The concept that a text says, in any of its paraphrases. Raises UnknownConcept."""
    parts = [" ".join(part.split()).lower() for part in text.split(",") if part.strip()]
    found = dict[str, str]()
    for part in parts:
        for kind, names in (("tone", TONES), ("edge", EDGES), ("texture", TEXTURES), ("light", LIGHTS)):
            name = next((name for name, ways in names.items() if part in ways), None)
            if name is not None and kind not in found:
                found[kind] = name
                break
        else:
            raise UnknownConcept(text)
    if "tone" not in found or "edge" not in found:
        raise UnknownConcept(text)
    return Concept(found["tone"], found["edge"], found.get("texture", "plain"), found.get("light", "even"))


def words() -> list[str]:
    """Every word of every text, sorted."""
    ways = [way for names in (TONES, EDGES, TEXTURES, LIGHTS) for options in names.values() for way in options]
    return sorted({word for way in ways for word in way.split()})


@cache
def _shuffled() -> list[Concept]:
    """All combinations in an order that brings every tone once in ten, and is random otherwise."""
    generator = keyed(0, 0, "concepts")
    of_tone: dict[str, Iterator[Concept]] = {}
    for tone in TONES:
        rest = [concept for concept in all_concepts() if concept.tone == tone]
        of_tone[tone] = iter([rest[i] for i in torch.randperm(len(rest), generator=generator)])
    rounds = len(all_concepts()) // len(TONES)
    return [next(of_tone[tone]) for _ in range(rounds) for tone in TONES]


def _luma(x: Tensor) -> Tensor:
    return (x * torch.tensor(_LUMA, dtype=x.dtype, device=x.device)[:, None, None]).sum(1, keepdim=True)


def _blur(x: Tensor, reach: int) -> Tensor:
    """The mean of a square of 2 reach + 1 pixels."""
    return F.avg_pool2d(F.pad(x, (reach,) * 4, mode="replicate"), 2 * reach + 1, stride=1)


def _edges(x: Tensor) -> tuple[Tensor, Tensor]:
    """How much of an outline a pixel is, 0 to 1, and the light on it if brightness were height, -0.4 to 0.4; (B,1,H,W) each."""
    padded = F.pad(_luma(x), (1, 1, 1, 1), mode="replicate")
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    return ((across.square() + down.square()).sqrt() * 6 - 0.25).clamp(0, 0.95), ((across + down) * 2.5).clamp(-0.4, 0.4)


def _between(dark: tuple[float, float, float], light: tuple[float, float, float], gamma: float = 1.0) -> Callable[[Tensor], Tensor]:
    """Brightness as a way from one colour to another."""

    def tone(x: Tensor) -> Tensor:
        a, b = (torch.tensor(colour, dtype=x.dtype, device=x.device)[:, None, None] for colour in (dark, light))
        return a + (b - a) * _luma(x) ** gamma

    return tone


def _mixed(rows: tuple[tuple[float, float, float], ...], lift: tuple[float, float, float] = (0, 0, 0)) -> Callable[[Tensor], Tensor]:
    """Each channel a mixture of the old ones, and a constant."""

    def tone(x: Tensor) -> Tensor:
        matrix, offset = (torch.tensor(value, dtype=x.dtype, device=x.device) for value in (rows, lift))
        return torch.einsum("oc,bchw->bohw", matrix, x) + offset[:, None, None]

    return tone


def _contrast(x: Tensor) -> Tensor:
    return (0.5 + 2.2 * (_luma(x) - 0.45)).clamp(0, 1).expand_as(x)


_TONES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "sepia": _between((0.16, 0.08, 0.02), (1.0, 0.9, 0.7)),
    "cyanotype": _between((0.02, 0.1, 0.35), (0.92, 0.97, 1.0)),
    "noir": _contrast,
    "negative": lambda x: 1 - x,
    "golden": _mixed(((1.1, 0.2, 0.0), (0.1, 0.8, 0.0), (0.0, 0.1, 0.35)), (0.1, 0.03, 0.0)),
    "teal": _mixed(((0.45, 0.1, 0.0), (0.0, 0.85, 0.15), (0.0, 0.25, 0.85)), (0.0, 0.05, 0.1)),
    "dusk": _between((0.2, 0.02, 0.35), (1.0, 0.85, 0.45), gamma=1.4),
    "pastel": _mixed(((0.42, 0.12, 0.08), (0.1, 0.38, 0.08), (0.1, 0.12, 0.4)), (0.36, 0.3, 0.32)),
    "emerald": _between((0.0, 0.08, 0.05), (0.55, 1.0, 0.5), gamma=0.8),
    "swapped": _mixed(((0.0, 0.1, 0.9), (0.25, 0.65, 0.1), (0.9, 0.1, 0.0))),
}


def _along(x: Tensor, axis: int) -> Tensor:
    """0 to 1 from left to right (axis 3) or from top to bottom (axis 2), shaped to multiply a picture."""
    way = torch.linspace(0, 1, x.shape[axis], dtype=x.dtype, device=x.device)
    return way if axis == 3 else way[:, None]


def _corners(x: Tensor) -> Tensor:
    distance = ((_along(x, 3) - 0.5) ** 2 + (_along(x, 2) - 0.5) ** 2).sqrt() / 0.5**0.5
    return x * (1 - 0.85 * ((distance - 0.35) / 0.65).clamp(0, 1))


_LIGHTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "even": lambda x: x,
    "vignette": _corners,
    "left": lambda x: x * (1.45 - 1.1 * _along(x, 3)),
    "above": lambda x: x * (1.45 - 1.1 * _along(x, 2)),
    "fog": lambda x: x + (0.85 - x) * 0.8 * _along(x, 2),
}


def _steps(x: Tensor) -> Tensor:
    """Four levels a channel, with slopes between them as wide as a fifth of a level, so that a rounding error is no other colour."""
    scaled = x * 3
    whole = scaled.floor()
    return (whole + ((scaled - whole - 0.4) / 0.2).clamp(0, 1)) / 3


def _tile(x: Tensor, pattern: tuple[tuple[float, ...], ...]) -> Tensor:
    """A 4 x 4 pattern repeated over the picture, (H,W)."""
    tile = torch.tensor(pattern, dtype=x.dtype, device=x.device)
    return tile.repeat(x.shape[2] // len(tile), x.shape[3] // len(tile))


_DOTS = ((0.15, 0.5, 0.5, 0.15), (0.5, 1.0, 1.0, 0.5), (0.5, 1.0, 1.0, 0.5), (0.15, 0.5, 0.5, 0.15))
_STRIPES = ((0.25,) * 4, (0.65,) * 4, (1.0,) * 4, (0.65,) * 4)
_WEAVE = ((0.18, 0.0, -0.18, 0.0), (0.0, -0.12, 0.0, 0.12), (-0.18, 0.0, 0.18, 0.0), (0.0, 0.12, 0.0, -0.12))

_TEXTURES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda x: x,
    "poster": _steps,
    "halftone": lambda x: (x + _tile(x, _DOTS) - 0.85) * 2.5 + 0.5,
    "scanlines": lambda x: x * _tile(x, _STRIPES),
    "canvas": lambda x: x + _tile(x, _WEAVE),
}
