"""Scenes asked for with a layout, and what the reader finds in their boxes: what the lab proof of Bounded Attention compares.

Objects of a scene have one shape and different colours; the prompt names no places, the layout alone says where each goes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.lab.captions import of_background, of_thing
from models.lab.scenes import COLOURS, PLACES, RADIUS, Scene, Thing
from models.lab.world import UNSEEN, Drawing, draw, random_scene
from models.methods.bounded_attention import BoundedAttention, Request, Result, Subject
from models.metrics import Interval, bootstrap
from models.nets.reader import THING_VALUES, Reader, crops

ROWS_A_CALL = 32


@dataclass(frozen=True)
class Asked:
    """A scene asked for: its drawing, whose boxes are the layout and whose masks are the truth, and its prompt."""

    drawing: Drawing
    prompt: str

    @property
    def things(self) -> tuple[Thing, ...]:
        assert isinstance(self.drawing.subject, Scene)
        return self.drawing.subject.things

    def request(self, seed: int, *, layout: bool = True) -> Request:
        """The scene's request; without `layout` plain sampling of the same prompt from the same noise."""
        subjects = [
            Subject(phrase=f"{thing.colour} {thing.shape}", box=box) for thing, box in zip(self.things, self.drawing.boxes, strict=True)
        ]
        return Request(prompt=self.prompt, seed=seed, subjects=subjects if layout else ())


def asked(first: int, count: int, *, places: bool = False, single: bool = False) -> list[Asked]:
    """`count` scenes never trained on, from number UNSEEN + `first`: three of two objects to one of three, or `single` ones."""
    found = []
    for number in range(UNSEEN + first, UNSEEN + first + count):
        generator = torch.Generator().manual_seed(number)
        objects = 1 if single else 3 if number % 4 == 3 else 2
        scene = random_scene(objects, generator, same_shape=True)
        things = " and ".join(of_thing(thing, place=places) for thing in scene.things)
        found.append(Asked(draw(scene, number), f"{things} {of_background(scene.background)}"))
    return found


@dataclass(frozen=True)
class Arm:
    """One way of making P prompts' pictures with R seeds each: results, pictures (P R, 3, H, W), and scores (P,), means over boxes and seeds."""

    results: list[Result]
    pictures: Tensor
    seconds: float  # CPU time a picture, of this process
    scores: Mapping[str, Tensor] = field(default_factory=dict)

    def mean(self, score: str) -> Interval:
        """Mean over prompts, with its interval."""
        return bootstrap(self.scores[score])


def measure(method: BoundedAttention, reader: Reader, prompts: Sequence[Asked], seeds: int, *, layout: bool = True) -> Arm:
    """Make and score every prompt's pictures, `seeds` of them each. Seeds belong to the prompt's place, so that arms can be paired."""
    requests = [one.request(1000 * at + seed, layout=layout) for at, one in enumerate(prompts) for seed in range(seeds)]
    started = time.process_time()
    results = [result for start in range(0, len(requests), ROWS_A_CALL) for result in method(requests[start : start + ROWS_A_CALL])]
    seconds = (time.process_time() - started) / len(requests)
    pictures = torch.stack([result.image for result in results])
    return Arm(results, pictures, seconds, score(reader, pictures, prompts, seeds))


def score(reader: Reader, pictures: Tensor, prompts: Sequence[Asked], seeds: int = 1) -> dict[str, Tensor]:
    """(P,) a score: `leakage`, the probability that a box shows another subject's colour; `object`, `colour`, `shape`, `present`: the

    share of boxes that hold the right object, colour, shape, or any object at all; `scene`: of pictures with the right object in each box.
    """
    colours = {name: at for at, name in enumerate(COLOURS)}
    nothing = THING_VALUES["shape"].index("nothing")
    found: dict[str, list[float]] = {name: [] for name in ("leakage", "object", "colour", "shape", "present", "scene")}
    for at, picture in enumerate(pictures):
        one = prompts[at // seeds]
        boxes = crops(picture.expand(len(one.things), -1, -1, -1), one.drawing.boxes)
        colour, shape = (reader.probabilities(boxes, "thing", name) for name in ("colour", "shape"))
        own = torch.tensor([colours[thing.colour] for thing in one.things])
        wanted = torch.tensor([THING_VALUES["shape"].index(thing.shape) for thing in one.things])
        right_colour, right_shape = colour.argmax(1) == own, shape.argmax(1) == wanted
        right = right_colour & right_shape
        found["leakage"].append(float((colour[:, own].sum(1) - colour[range(len(own)), own]).mean()))
        found["object"].append(float(right.float().mean()))
        found["colour"].append(float(right_colour.float().mean()))
        found["shape"].append(float(right_shape.float().mean()))
        found["present"].append(float((shape.argmax(1) != nothing).float().mean()))
        found["scene"].append(float(right.all()))
    return {name: torch.tensor(values).reshape(-1, seeds).mean(1) for name, values in found.items()}


def attributes(reader: Reader, pictures: Tensor, prompts: Sequence[Asked]) -> Tensor:
    """(P,) share of shape and colour that are right, of pictures of one object, read at whichever place shows an object most surely."""
    half = sum(RADIUS) / 2
    places = [(x - half, y - half, x + half, y + half) for x, y in PLACES.values()]
    shares = []
    for picture, one in zip(pictures, prompts, strict=True):
        boxes = crops(picture.expand(len(places), -1, -1, -1), places)
        surest = int(reader.probabilities(boxes, "thing", "shape")[:, THING_VALUES["shape"].index("nothing")].argmin())
        read = reader.read(boxes[surest : surest + 1], "thing")[0]
        (thing,) = one.things
        shares.append(((read["shape"] == thing.shape) + (read["colour"] == thing.colour)) / 2)
    return torch.tensor(shares)


def mask_agreement(results: Sequence[Result], prompts: Sequence[Asked], seeds: int) -> tuple[Tensor, Tensor]:
    """(P,) mean intersection over union with the drawn objects, of refined masks and, beside them, of the boxes."""
    refined, boxed = [], []
    for at, result in enumerate(results):
        drawing = prompts[at // seeds].drawing
        assert result.refined_masks is not None
        truth = torch.from_numpy(drawing.masks)
        side = truth.shape[-1]
        frames = torch.zeros_like(truth)
        for frame, (x0, y0, x1, y1) in zip(frames, drawing.boxes, strict=True):
            frame[round(y0 * side) : round(y1 * side), round(x0 * side) : round(x1 * side)] = True
        for kept, masks in ((refined, result.refined_masks), (boxed, frames)):
            kept.append(float(((masks & truth).flatten(1).sum(1) / (masks | truth).flatten(1).sum(1)).mean()))
    return torch.tensor(refined).reshape(-1, seeds).mean(1), torch.tensor(boxed).reshape(-1, seeds).mean(1)
