"""Fit the space of people's adapters (`calotype train identity-space --data JOB`): JOB is a finished weights job of mode identity."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from models.bases import UNetBase
from models.catalog import model_revision, named_folder
from models.lab.crowd import read_people as read_table
from models.methods.weights2weights_directions import score, with_attributes
from models.methods.weights2weights_layout import Layout
from models.methods.weights2weights_space import Space, fit_space
from models.training.adapter_collection import labels_of, read_people

logger = logging.getLogger(__name__)

ATTRIBUTES = {
    "beard": "beard=beard",
    "glasses": "glasses=glasses",
    "sunglasses": "glasses=sunglasses",
    "long hair": "hair=long",
    "curly hair": "hair=curly",
    "bald": "hair=bald",
    "black hair": "hair_colour=black",
    "white hair": "hair_colour=white",
    "red hair": "hair_colour=red",
    "dark skin": "skin_depth",
}
"""Of the drawn people (models/lab/crowd.py). One value of each column is left out, or the others would span it."""


@dataclass(frozen=True, kw_only=True)
class Config:
    data: Path  # folder of the job
    table: Path | None = None  # people.csv with what is known of them; None: no attributes
    base: str = "lab/unet"  # that they were trained on: of the lab, or a folder
    held_out: int = 60  # people, the last ones by name, who are measured on and not fitted on
    n_components: int | None = 200
    direction_components: int = 100  # the first so many, on which attributes are fitted
    ridge: float = 30.0
    std_factor: bool = True  # weights divided by their deviations
    attributes: Mapping[str, str] = field(default_factory=lambda: dict(ATTRIBUTES))  # name -> column=value, or a column of numbers
    seed: int = 0


def train(cfg: Config, out: Path) -> None:
    """Fit in one go and write out/identity-space. Raises ValueError where the job or the table does not fit."""
    folder = named_folder(cfg.base)
    base = UNetBase.load(folder, device="cpu", dtype=torch.float32)
    layout = Layout.of(base.unet, base_hash=model_revision(folder / "unet"))
    people = read_people(cfg.data, layout)
    seen = len(people.names) - cfg.held_out
    fitted = people.weights_mn[:seen]
    space = fit_space(
        fitted, layout, n_components=None if cfg.n_components is None else min(cfg.n_components, seen - 1), scaled=cfg.std_factor
    )
    metrics = {"explained variance, held-out people": {k: round(explained(space, people.weights_mn[seen:], k), 3) for k in _steps(space)}}
    accuracies: dict[str, dict[str, float]] = {}
    if cfg.table is not None:
        labels = labels_of(people.names, read_table(cfg.table), cfg.attributes)
        p_mk = space.project(people.weights_mn)
        space = with_attributes(
            space, p_mk[:seen, : cfg.direction_components], {name: y_m[:seen] for name, y_m in labels.items()}, ridge=cfg.ridge
        )
        if cfg.held_out:
            accuracies = {name: accuracy(space, name, p_mk[seen:], y_m[seen:]) for name, y_m in labels.items()}
    target = out / "identity-space"
    space.save(target)
    card = {
        "summary": f"space of {seen} drawn people's rank-{layout.rank} adapters of {cfg.base}, {space.components} components",
        "method": "weights2weights",
        "tier": "lab",
        "base": cfg.base,
        "recipe": "identity_space",
        "data": f"adapters of {seen} drawn people, trained by a weights job",
        "settings": {"identity_token": "person", "negative_prompt": "", "num_inference_steps": 20, "guidance_scale": 3.0, "noises": 4},
        "metrics": {**metrics, "attributes, held-out people": accuracies},
    }
    (target / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    logger.info("people=%d held_out=%d metrics=%s", seen, cfg.held_out, card["metrics"])


def explained(space: Space, weights_mn: Tensor, components: int) -> float:
    """Share of the models' variance about the mean, in standardised weights, that the first components hold."""
    return float(explained_each(space, weights_mn, components).mean())


def explained_each(space: Space, weights_mn: Tensor, components: int) -> Tensor:
    """(m,) the same, a model each."""
    Z_mn = (weights_mn - space.mean_n) / space.std_n
    onto_mk = Z_mn @ torch.linalg.qr(space.V_nk[:, :components]).Q
    return onto_mk.square().sum(1) / Z_mn.square().sum(1)


def accuracy(space: Space, attribute: str, p_mk: Tensor, y_m: Tensor) -> dict[str, float]:
    """How often the sign of an attribute's score is right, and how often the more frequent label would be."""
    known = ~y_m.isnan()
    right = (score(space, attribute, p_mk[known]) > 0) == (y_m[known] > 0)
    above = float((y_m[known] > 0).float().mean())
    return {"accuracy": round(float(right.float().mean()), 3), "majority": round(max(above, 1 - above), 3), "people": int(known.sum())}


def _steps(space: Space) -> list[int]:
    return [k for k in (10, 20, 50, 100, 200, 300) if k <= space.components]
