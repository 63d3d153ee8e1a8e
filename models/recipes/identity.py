"""Train the lab's small face embedder on drawn people and photographs of training people (`calotype train identity`).

Two pictures of each person a step; every picture must find its partner among all others (a softmax over inner products). Some pictures are
damaged, so that a blurred face stays the same person.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from models.lab.damage import degrade
from models.metrics import rank_1
from models.nets.identity import SIDE, IdentityNet
from models.recipes.instant_restore import ATTRIBUTION, LIGHT, read_pools
from models.recipes.instant_restore import Config as RestorerConfig
from models.training.loop import fit, keyed
from models.training.photographs import Person, drawn_person
from models.training.views import Moves, crop, greyed, random_factors, random_placement, recolour

logger = logging.getLogger(__name__)

MOVES = Moves(rotation=0.06, scale=0.06, shift=0.04)
UNSEEN = 1_000_000  # drawn people from this number on are never trained on


@dataclass(frozen=True, kw_only=True)
class Config:
    data: str  # folder with faces_ukparl and faces_lab
    steps: int = 900  # optimizer steps; may be changed on resuming
    minutes: float | None = None
    people: int = 32  # people a step
    drawn: float = 0.7  # share of drawn people
    drawn_people: int = 700
    drawn_views: int = 4
    damaged: float = 0.4  # share of pictures that are damaged
    temperature: float = 0.08
    lr: float = 1.5e-3
    warmup: int = 50
    decay: float = 0.4
    weight_decay: float = 0.02
    clip: float | None = None
    average: float = 0.99
    save_every: int = 200
    seed: int = 0


def train(cfg: Config, out: Path) -> None:
    """Train until `cfg.steps` (or `cfg.minutes`), resuming from out/checkpoint.pt; then write the lab folder out/identity."""
    pools = read_pools(RestorerConfig(data=cfg.data))
    drawn = functools.lru_cache(maxsize=None)(lambda number: drawn_person(number, cfg.drawn_views))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        net = IdentityNet()

    def loss(step: int) -> tuple[Tensor, Mapping[str, float]]:
        first, second = draw_batch(cfg, pools.everybody, drawn, step)
        return contrast(net(first), net(second), cfg.temperature), {}

    step = fit(net, loss, cfg, out, betas=(0.9, 0.999))
    measured = measure(net.eval())
    logger.info("measured %s", measured)
    data = "drawn portraits; faces_ukparl and faces_lab without the people held out"
    card = {"recipe": "identity", "seed": cfg.seed, "steps": step, "data": data, "attribution": ATTRIBUTION, "metrics": measured}
    net.save(out / "identity", card)


def contrast(one_BD: Tensor, other_BD: Tensor, temperature: float) -> Tensor:
    """Each person's first picture must find its second among all second ones, and the other way round."""
    logits_BB = one_BD @ other_BD.T / temperature
    at = torch.arange(len(logits_BB))
    return (F.cross_entropy(logits_BB, at) + F.cross_entropy(logits_BB.T, at)) / 2


def draw_batch(cfg: Config, people: list[Person], drawn: Callable[[int], Person], step: int) -> tuple[Tensor, Tensor]:
    """Two pictures of each of `cfg.people` different people; it depends on nothing but the configuration and the step."""
    generator = keyed(cfg.seed, step, "batch")
    from_drawn = round(cfg.drawn * cfg.people)
    numbers = torch.randperm(cfg.drawn_people, generator=generator)[:from_drawn].tolist()
    chosen = torch.randperm(len(people), generator=generator)[: cfg.people - from_drawn].tolist()
    views = [_two_views(cfg, person, generator) for person in (*map(drawn, numbers), *(people[i] for i in chosen))]
    return torch.stack([one for one, _ in views]), torch.stack([other for _, other in views])


def measure(net: IdentityNet, people: int = 200) -> dict[str, float]:
    """Rank-1 and equal error rate on drawn people never trained on, two pictures each."""
    unseen = [drawn_person(UNSEEN + i, 2) for i in range(people)]
    placement = torch.eye(2, 3)
    one, other = (net.embed(torch.stack([crop(person.images[view], placement, SIDE) for person in unseen])) for view in (0, 1))
    similarity = one @ other.T
    same, different = similarity.diag(), similarity[~torch.eye(people, dtype=torch.bool)]
    thresholds = torch.linspace(-1, 1, 2001)
    misses = (same[None] < thresholds[:, None]).float().mean(1)
    alarms = (different[None] >= thresholds[:, None]).float().mean(1)
    at = (misses - alarms).abs().argmin()
    return {"rank_1_of_200": rank_1(one, other), "equal_error_rate": float((misses[at] + alarms[at]) / 2)}


def _two_views(cfg: Config, person: Person, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(person.images), generator=generator).tolist()
    flip, grey = (bool(torch.rand((), generator=generator) < chance) for chance in (0.5, 0.1))
    pictures = []
    for photo in (order[0], order[-1]):
        picture = crop(person.images[photo], random_placement(MOVES, flip, generator), SIDE)
        picture = recolour(picture, random_factors(LIGHT, generator))
        if torch.rand((), generator=generator) < cfg.damaged:
            picture = degrade(picture, "anything", generator)
        pictures.append(greyed(picture) if grey else picture)
    return pictures[0], pictures[1]
