"""How well a text-to-image base obeys: attributes that the reader finds in generated pictures, against those that the prompts asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from models.bases import FlowBase, UNetBase
from models.lab.captions import caption
from models.lab.scenes import Scene
from models.lab.world import UNSEEN, Drawing, Portrait, attributes, draw, random_portrait, random_scene
from models.nets.reader import Reader, crops
from models.sampling import Request, sample

PICTURES_A_PASS = 32
STEPS, GUIDANCE = 20, 3.0
GROUPS = ("portrait", "scene of 1", "scene of 2")


@dataclass(frozen=True)
class Asked:
    """A picture asked for: its drawing (which knows the boxes) and its prompt."""

    drawing: Drawing
    prompt: str
    seed: int


def asked(group: str, count: int, first: int = UNSEEN) -> list[Asked]:
    """`count` prompts of a group (portrait, scene of N), every attribute named; none was trained on in this combination of numbers."""
    found = []
    for number in range(first, first + count):
        generator = torch.Generator().manual_seed(number)
        what = random_portrait(generator) if group == "portrait" else random_scene(int(group[-1]), generator)
        found.append(Asked(draw(what, number), caption(what), number))
    return found


def generate(base: UNetBase | FlowBase, wanted: Sequence[Asked], steps: int = STEPS, guidance: float = GUIDANCE) -> Tensor:
    """(N, 3, S, S) pictures in [-1, 1] of prompts."""
    requests = [Request(prompt=one.prompt, seed=one.seed, steps=steps, guidance_scale=guidance) for one in wanted]
    chunks = [requests[start : start + PICTURES_A_PASS] for start in range(0, len(requests), PICTURES_A_PASS)]
    return torch.stack([picture for chunk in chunks for picture in sample(base, chunk)])


def accuracy(reader: Reader, images: Tensor, drawings: Sequence[Drawing]) -> dict[str, float]:
    """Share of pictures in which each attribute is the one drawn; `object` and `scene`: shape and colour right in one and in all boxes."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for image, drawing in zip(images, drawings, strict=True):
        what = drawing.subject
        if isinstance(what, Portrait):
            read = reader.read(image[None], "portrait")[0]
            for name, value in attributes(what).items():
                hits[name].append(read[name] == value)
            continue
        assert isinstance(what, Scene)
        hits["background"].append(reader.read(image[None], "scene")[0]["background"] == what.background)
        found = reader.read(crops(image.expand(len(what.things), -1, -1, -1), drawing.boxes), "thing")
        right = []
        for thing, read in zip(what.things, found, strict=True):
            hits["shape"].append(read["shape"] == thing.shape)
            hits["colour"].append(read["colour"] == thing.colour)
            hits["place"].append(read["shape"] != "nothing")
            right.append(hits["shape"][-1] and hits["colour"][-1])
        hits["object"] += right
        hits["scene"].append(all(right))
    return {name: sum(values) / len(values) for name, values in hits.items()}


def measure(base: UNetBase | FlowBase, reader: Reader, count: int, say: Callable[[str], None]) -> dict[str, dict[str, float]]:
    """Accuracy of generated pictures, and beside it the reader's ceiling: the same drawings through the autoencoder, group by group."""
    measured: dict[str, dict[str, float]] = {}
    for group in GROUPS:
        wanted = asked(group, count)
        drawings = [one.drawing for one in wanted]
        real = torch.stack([pixels(drawing.image) for drawing in drawings])
        with torch.inference_mode():
            through = torch.cat([base.decode(base.encode(chunk)) for chunk in real.split(PICTURES_A_PASS)])
        ceiling = accuracy(reader, through, drawings)
        measured[group] = accuracy(reader, generate(base, wanted), drawings)
        measured[f"{group}, ceiling"] = ceiling
        say(f"{group}: " + ", ".join(f"{name} {value:.2f} ({ceiling[name]:.2f})" for name, value in measured[group].items()))
    return measured


def pixels(image: Image.Image) -> Tensor:
    """(3, S, S) in [-1, 1] of a picture."""
    raw = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return raw.reshape(image.height, image.width, 3).permute(2, 0, 1).float() / 127.5 - 1


def picture(pixels_3HW: Tensor) -> Image.Image:
    """The inverse of `pixels`."""
    return Image.fromarray(pixels_3HW.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0).contiguous().numpy())
