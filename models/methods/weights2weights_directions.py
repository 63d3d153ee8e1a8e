"""Linear attributes in the space of adapters: fitted on labelled models, freed of one another, scaled to standard deviations (spec section 2).

Ours: ridge regression on standardised coefficients x = (p - mean) / std, so that a component counts by how much people differ in it; a direction
of strength 1 raises its attribute's score by one standard deviation over the training models; directions are freed of all others at once. The
authors' ways (compat): the least squares direction as it comes, and projections subtracted one after another, whose result depends on their order.
Letters: m models, k components, q other attributes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from models.methods.weights2weights_space import Attribute, Space

Debias = Literal["joint", "sequential", "none"]
RIDGE = 1.0
VANISHED = 1e-3
"""Share of a direction's length: what is left of it without the others must be more."""


class UnknownAttribute(ValueError):
    """A space has no direction of this name."""


class DirectionVanished(ValueError):
    """Freed of the other attributes nothing is left of a direction."""


@dataclass(frozen=True)
class Edit:
    """An attribute and how far to move along it, in standard deviations of its score."""

    attribute: str
    strength: float


def with_attributes(space: Space, p_mk: Tensor, labels: Mapping[str, Tensor], *, ridge: float = RIDGE, authors: bool = False) -> Space:
    """The space with a direction for each label, fitted on m models' coefficients; p_mk may have fewer components, the others stay 0.

    `labels`: (m,) each, usually -1 and 1, NaN where unknown. `authors`: also their raw directions. Raises ValueError for a label that is
    the same for all models, or known for fewer than two.
    """
    attributes = {name: fit_attribute(space, p_mk, y_m, name=name, ridge=ridge) for name, y_m in labels.items()}
    raw = {name: _padded(least_squares(p_mk, y_m), space.components) for name, y_m in labels.items()} if authors else {}
    return replace(space, attributes={**space.attributes, **attributes}, raw_directions={**space.raw_directions, **raw})


def fit_attribute(space: Space, p_mk: Tensor, y_m: Tensor, *, name: str = "label", ridge: float = RIDGE) -> Attribute:
    """The direction of one label: b, beta minimise sum (y - b - x beta)^2 + ridge |beta|^2; along it the score grows by its own std."""
    known = ~y_m.isnan()
    y = y_m[known].double()
    if len(y) < 2 or bool((y == y[0]).all()):
        raise ValueError(f"{name} does not differ among the {len(y)} models whose label is known; it has no direction.")
    k = p_mk.shape[1]
    x_mk = space.standardised(p_mk[known]).double()
    centre_k = x_mk.mean(0)
    centred_mk = x_mk - centre_k
    beta_k = torch.linalg.solve(centred_mk.T @ centred_mk + ridge * torch.eye(k, dtype=torch.float64), centred_mk.T @ (y - y.mean()))
    score_std = float((centred_mk @ beta_k).std())
    step_k = beta_k * score_std / beta_k.square().sum()  # the shortest x whose score is score_std
    direction_k = step_k * space.proj_std_k[:k].double()
    return Attribute(_padded(direction_k.float(), space.components), float(y.mean() - centre_k @ beta_k), score_std)


def least_squares(p_mk: Tensor, y_m: Tensor) -> Tensor:
    """The authors' direction d = pinv(P) y (k,): no intercept, not scaled, so that strengths run into the hundred thousands."""
    known = ~y_m.isnan()
    return (torch.linalg.pinv(p_mk[known].double()) @ y_m[known].double()).float()


def score(space: Space, attribute: str, p_Bk: Tensor) -> Tensor:
    """The attribute's score (B,) of models; labels of -1 and 1 are told apart at 0. Raises UnknownAttribute."""
    known = _attribute(space, attribute)
    x_Bk, step_k = space.standardised(p_Bk), _steps(space, known.direction_k)
    return known.intercept + known.score_std * (x_Bk @ step_k) / step_k.square().sum()


def edit_direction(space: Space, attribute: str, *, debias: Debias = "joint", raw: bool = False) -> Tensor:
    """The direction (k,) to add to p for strength 1, freed of all other attributes of the space as `debias` says.

    `raw`: the authors' unscaled one. Raises UnknownAttribute, and DirectionVanished where the others leave nothing of it.
    """
    if raw:
        if attribute not in space.raw_directions:
            raise UnknownAttribute(f"{attribute!r} has no raw direction in this space; it has {_named(space.raw_directions)}.")
        own, others = space.raw_directions[attribute], [d for name, d in space.raw_directions.items() if name != attribute]
        return {"joint": freed_jointly, "sequential": freed_in_turn}[debias](own, others) if debias != "none" and others else own
    step_k = _steps(space, _attribute(space, attribute).direction_k)
    others = [_steps(space, known.direction_k) for name, known in space.attributes.items() if name != attribute]
    if debias == "none" or not others:
        return _attribute(space, attribute).direction_k
    freed_k = (freed_jointly if debias == "joint" else freed_in_turn)(step_k, others)
    along = float(step_k @ freed_k)
    if along < VANISHED * float(step_k.square().sum()):
        raise DirectionVanished(f"nothing of {attribute!r} is left without {_named(space.attributes, attribute)}; set debias: none.")
    return freed_k * (step_k.square().sum() / along) * space.proj_std_k  # strength 1 is still one standard deviation of its score


def shift_of(space: Space, edits: Sequence[Edit], *, debias: Debias = "joint", raw: bool = False) -> Tensor:
    """What a row's edits add to its coefficients, (k,); zero for none. Raises UnknownAttribute, DirectionVanished, ValueError."""
    shift_k = torch.zeros_like(space.proj_mean_k)
    for edit in edits:
        if not torch.isfinite(torch.tensor(edit.strength)):
            raise ValueError(f"the strength of {edit.attribute!r} is {edit.strength}; give a finite number.")
        shift_k = shift_k + edit.strength * edit_direction(space, edit.attribute, debias=debias, raw=raw)
    return shift_k


def freed_jointly(own_k: Tensor, others: Sequence[Tensor]) -> Tensor:
    """The part of a direction that is orthogonal to all others together."""
    span_kq = torch.linalg.qr(torch.stack(list(others), dim=1).double()).Q
    own = own_k.double()
    for _ in range(2):  # once more for what rounding has left
        own = own - span_kq @ (span_kq.T @ own)
    return own.to(own_k.dtype)


def freed_in_turn(own_k: Tensor, others: Sequence[Tensor]) -> Tensor:
    """The authors' way: the projection on each other direction subtracted in turn; orthogonal to the last one only."""
    for other_k in others:
        own_k = own_k - (own_k @ other_k) / other_k.square().sum() * other_k
    return own_k


def _attribute(space: Space, name: str) -> Attribute:
    if name not in space.attributes:
        raise UnknownAttribute(f"{name!r} is no attribute of this space; it has {_named(space.attributes)}.")
    return space.attributes[name]


def _steps(space: Space, direction_k: Tensor) -> Tensor:
    """A direction in standard deviations of the coefficients."""
    return space.standardised(direction_k + space.proj_mean_k)


def _named(names: Mapping[str, object], but: str | None = None) -> str:
    return ", ".join(sorted(name for name in names if name != but)) or "none"


def _padded(direction_k: Tensor, components: int) -> Tensor:
    return torch.nn.functional.pad(direction_k, (0, components - len(direction_k)))
