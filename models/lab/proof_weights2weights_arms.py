"""The lab proof of weights2weights, what is reported and no gate: fewer components, fewer people, weights that are not divided by their deviations.

Letters: m models, n weights, k components.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from models.lab.gates import Gate
from models.lab.proof_weights2weights_attributes import attribute_labels
from models.lab.weights2weights_studio import Studio, numbers_of
from models.methods.weights2weights_directions import with_attributes
from models.methods.weights2weights_space import Space, fit_space
from models.metrics import bootstrap
from models.recipes.identity_space import Config, accuracy

COMPONENTS, PEOPLE = (10, 25, 50, 100, 200), (100, 200, 300, 450)
AT = 50  # components at which numbers of people are compared


def arms(studio: Studio, seen: Sequence[str], seen_mn: Tensor, unseen: Sequence[str], unseen_mn: Tensor) -> tuple[list[Gate], str]:
    """Held-out people as each space has them: how much of their weights, which attributes, and how like themselves they are when drawn."""
    seen_labels, unseen_labels = attribute_labels(seen), attribute_labels(unseen)
    people, seeds = numbers_of(unseen), list(range(len(unseen)))
    heads = ["space", "of standardised weights", "of raw weights", "attributes told", "like the person"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, space, m in spaces(studio.space, seen_mn):
        p_mk, q_mk = space.project(seen_mn[:m])[:, : Config.direction_components], space.project(unseen_mn)
        told = with_attributes(space, p_mk, {one: y_m[:m] for one, y_m in seen_labels.items()}, ridge=Config.ridge)
        right = [accuracy(told, one, q_mk, y_m)["accuracy"] for one, y_m in unseen_labels.items()]
        again_mn = space.unproject(space.project(unseen_mn))
        shares = [held(again_mn, unseen_mn, studio.space.mean_n, by) for by in (studio.space.std_n, torch.ones(()))]
        alike = bootstrap(studio.alike(studio.draw(again_mn, seeds), people))
        lines.append(f"| {name} | {shares[0]:.3f} | {shares[1]:.3f} | {sum(right) / len(right):.3f} | {alike} |")
    own = bootstrap(studio.alike(studio.draw(unseen_mn, seeds), people))
    lines.append(f"| none: their own adapters | 1 | 1 | | {own} |")
    return (
        [],
        f"### Components, people, scaling\n\n{len(people)} held-out people, put into each space and taken out again.\n\n"
        + "\n".join(lines),
    )


def spaces(whole: Space, seen_mn: Tensor) -> Iterator[tuple[str, Space, int]]:
    """Each space that is compared, by name, with the number of people it was fitted on."""
    m, layout = len(seen_mn), whole.layout
    scaled, unscaled = (fit_space(seen_mn, layout, n_components=COMPONENTS[-1], scaled=scaled) for scaled in (True, False))
    for k in COMPONENTS:
        yield f"{m} people, {k} components", scaled.truncated(k), m
    for fewer in PEOPLE:
        yield f"{fewer} people, {AT} components", fit_space(seen_mn[:fewer], layout, n_components=AT), fewer
    for k in (AT, COMPONENTS[-1]):
        yield f"{m} people, {k} components, not scaled", unscaled.truncated(k), m


def held(again_mn: Tensor, weights_mn: Tensor, mean_n: Tensor, by_n: Tensor) -> float:
    """Share of the models' variance about `mean_n`, in weights divided by `by_n`, that `again_mn` has; below 0 where it is worse than the mean."""
    missed_m = ((again_mn - weights_mn) / by_n).square().sum(1)
    return float((1 - missed_m / ((weights_mn - mean_n) / by_n).square().sum(1)).mean())
