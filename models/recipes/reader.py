"""Train the lab's attribute reader on real drawings (`calotype train reader`): the judge of generated pictures, never a loss."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from models.lab.scenes import Scene
from models.lab.world import UNSEEN, Drawing, Portrait, attributes, draw, subject
from models.nets.reader import HEADS, Reader, crops
from models.recipes.autoencoder import cache_folder
from models.training.drawings import drawings, subjects, to_unit
from models.training.loop import fit, keyed

logger = logging.getLogger(__name__)

MEASURED = 2000  # pictures never trained on
IGNORED = -100  # the bald have no hair colour


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 1_200  # optimizer steps; may be changed on resuming
    minutes: float | None = None
    pictures: int = 48_000  # drawn, as for the other recipes
    read: int = 16_000  # of them that are trained on
    cache: str | None = None  # folder of drawn pictures, to share between recipes; default: <out>/cache
    batch: int = 24  # of each: objects, scenes, portraits
    blur: float = 0.5  # share of pictures that are made softer, as a decoder makes them
    lr: float = 2e-3
    warmup: int = 50
    decay: float = 0.4
    weight_decay: float = 1e-2
    clip: float = 1.0
    average: float = 0.99
    save_every: int = 200
    seed: int = 0


@dataclass
class Labelled:
    """Pictures (N, 3, S, S) in [-1, 1] and, attribute by attribute, the index of each one's value (IGNORED: has none)."""

    images: Tensor
    labels: dict[str, Tensor]


def train(cfg: Config, out: Path) -> None:
    """Train until `cfg.steps` (or `cfg.minutes`), resuming from out/checkpoint.pt; then write the lab folder out/reader."""
    pools = labelled(drawings(cfg.pictures, cache_folder(cfg.cache, out))[: cfg.read])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        reader = Reader()

    def loss(step: int) -> tuple[Tensor, Mapping[str, float]]:
        generator, total = keyed(cfg.seed, step), torch.zeros(())
        for what, pool in pools.items():
            at = torch.randint(len(pool.images), (cfg.batch,), generator=generator)
            images = softened(pool.images[at], cfg.blur, generator)
            for name, logits in reader(images, what).items():
                total = total + F.cross_entropy(logits, pool.labels[name][at], ignore_index=IGNORED)
        return total, {}

    steps = fit(reader, loss, cfg, out)
    measured = measure(reader.eval(), cache_folder(cfg.cache, out))
    logger.info("measured %s", measured)
    summary = "judge: reads attributes of the drawn world in known boxes"
    reader.save(
        out / "reader",
        {"summary": summary, "recipe": "reader", "seed": cfg.seed, "steps": steps, "data": "drawn world", "metrics": measured},
    )


def softened(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Some pictures blurred by a 3 x 3 binomial, all with a little noise."""
    kernel = (torch.tensor([1.0, 2.0, 1.0])[:, None] * torch.tensor([1.0, 2.0, 1.0]) / 16).expand(3, 1, 3, 3)
    soft = F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    chosen = (torch.rand(len(images), 1, 1, 1, generator=generator) < share).float()
    return images + chosen * (soft - images) + 0.05 * torch.randn(images.shape, generator=generator)


def labelled(pictures: Tensor, first: int = 0) -> dict[str, Labelled]:
    """What is read of pictures `first` and on: objects cut out by their boxes (and places without one), scenes, portraits."""
    images = to_unit(pictures)
    shown = subjects(len(pictures), first)
    scenes = [at for at, what in enumerate(shown) if isinstance(what, Scene)]
    portraits = [at for at, what in enumerate(shown) if isinstance(what, Portrait)]
    pools = {
        "scene": Labelled(images[scenes], _indices("scene", [{"background": shown[at].background} for at in scenes])),
        "portrait": Labelled(images[portraits], _indices("portrait", [attributes(what) for what in shown if isinstance(what, Portrait)])),
    }
    sources, boxes, values = [], [], []
    for at in scenes:
        number = first + at
        scene = draw(subject(number), number, size=8)  # small: only its boxes are wanted
        for box, value in things(scene, keyed(0, number, "empty")):
            sources.append(at)
            boxes.append(box)
            values.append(value)
    cut = torch.cat([crops(images[sources[i : i + 500]], boxes[i : i + 500]) for i in range(0, len(sources), 500)])
    pools["thing"] = Labelled(cut, _indices("thing", values))
    return pools


def things(drawing: Drawing, generator: torch.Generator) -> list[tuple[Sequence[float], dict[str, str]]]:
    """Boxes with what is in them: every object, its box a little off, and in scenes of one object a box that holds nothing."""
    assert isinstance(drawing.subject, Scene)
    found: list[tuple[Sequence[float], dict[str, str]]] = []
    for thing, box in zip(drawing.subject.things, drawing.boxes, strict=True):
        moved = (torch.tensor(box) + 0.03 * (2 * torch.rand(4, generator=generator) - 1)).tolist()
        found.append((moved, {"shape": thing.shape, "colour": thing.colour}))
    x0, _y0, x1, _y1 = drawing.boxes[0]
    if len(drawing.boxes) == 1 and (x1 < 0.5 or x0 > 0.5):
        x = 0.54 if x1 < 0.5 else 0.04
        y = 0.04 + 0.5 * float(torch.rand((), generator=generator))
        found.append(((x, y, x + 0.42, y + 0.42), {"shape": "nothing", "colour": "nothing"}))
    return found


@torch.inference_mode()
def measure(reader: Reader, cache: Path) -> dict[str, float]:
    """Accuracy on drawings never trained on, attribute by attribute: the ceiling of every accuracy it measures."""
    measured = {}
    for what, pool in labelled(drawings(MEASURED, cache, UNSEEN), UNSEEN).items():
        read = {name: torch.cat([reader(chunk, what)[name].argmax(1) for chunk in pool.images.split(500)]) for name in HEADS[what]}
        for name, found in read.items():
            known = pool.labels[name] != IGNORED
            measured[f"{what}.{name}"] = round(float((found == pool.labels[name])[known].float().mean()), 4)
    return measured


def _indices(what: str, values: Sequence[Mapping[str, str]]) -> dict[str, Tensor]:
    return {
        name: torch.tensor([list(options).index(value[name]) if name in value else IGNORED for value in values])
        for name, options in HEADS[what].items()
    }
