"""The lab proof of weights2weights, spec 7d: do attributes lie on lines, and do edits along them change their own attribute and leave the others?

Letters: m models, k components, P people, S strengths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from models.lab.contact_sheet import write_contact_sheet
from models.lab.crowd import attributes as attributes_of
from models.lab.crowd import person, person_id
from models.lab.gates import Gate
from models.lab.generation_scores import picture
from models.lab.weights2weights_studio import READ, Studio, numbers_of
from models.methods.weights2weights_directions import Debias
from models.metrics import bootstrap
from models.recipes.identity_space import ATTRIBUTES, accuracy
from models.training.adapter_collection import labels_of

EDITED = 24  # held-out people whose adapters are edited
STRENGTHS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
ABOVE_MAJORITY, MONOTONE = 0.15, 0.9


def attribute_labels(names: Sequence[str]) -> dict[str, Tensor]:
    """(m,) labels of drawn people by attribute, 1, -1 or NaN."""
    table = {person_id(number): {key: str(value) for key, value in attributes_of(person(number)).items()} for number in numbers_of(names)}
    return labels_of(names, table, ATTRIBUTES)


def directions(studio: Studio, names: Sequence[str], weights_mn: Tensor, output: Path) -> tuple[list[Gate], str]:
    """Spec 7d: do attributes lie on lines, and do edits along them change their own attribute and leave the others?"""
    space = studio.space
    labels = attribute_labels(names)
    p_mk = space.project(weights_mn)
    read = {name: accuracy(space, name, p_mk, y_m) for name, y_m in labels.items()}
    good = [name for name, one in read.items() if one["accuracy"] >= one["majority"] + ABOVE_MAJORITY]
    lines = ["| attribute | accuracy, held-out people | more frequent label |", "|---|---|---|"]
    lines += [f"| {name} | {one['accuracy']:.3f} | {one['majority']:.3f} |" for name, one in read.items()]
    chosen = weights_mn[:EDITED]
    effects: dict[str, dict[Debias, dict[str, Tensor]]] = {}
    grid = []
    for name in READ:
        effects[name] = {}
        for debias in ("none", "joint"):
            made = [studio.edit(chosen, name, strength, debias) for strength in STRENGTHS]
            told = [studio.read(images) for images in made]
            effects[name][debias] = {other: torch.stack([one[other] for one in told]) for other in READ}  # (strengths, people)
            if debias == "joint":
                grid += [[picture(images[at]) for images in made] for at in range(2)]
    write_contact_sheet(output / "edits.png", grid)
    rows, gates = list[str](), list[Gate]()
    leaks: dict[Debias, list[float]] = {"none": [], "joint": []}
    trends = []
    for name, ways in effects.items():
        own = {debias: change(found[name]) for debias, found in ways.items()}
        other = {debias: leak(found, name) for debias, found in ways.items()}
        trend = spearman(torch.tensor(STRENGTHS), ways["joint"][name].mean(1))
        trends.append(trend)
        for debias in leaks:
            leaks[debias] += (other[debias] / max(float(own[debias].mean()), 1e-6)).tolist()
        cells = [bootstrap(one[debias]) for debias in leaks for one in (own, other)]
        rows.append(f"| {name} | {trend:.3f} | {' | '.join(map(str, cells))} |")
    heads = ["attribute", "Spearman", "own change, plain", "others' change, plain", "own change, debiased", "others' change, debiased"]
    table_of_edits = "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *rows])
    plain, joint = bootstrap(leaks["none"]), bootstrap(leaks["joint"])
    less = bootstrap(torch.tensor(leaks["none"]) - torch.tensor(leaks["joint"]))
    told_apart = f"d. two attributes or more are told by a line on held-out people, at least {ABOVE_MAJORITY} above the more frequent label"
    grows = f"d. edits grow with their strength: Spearman over {len(STRENGTHS)} strengths at least {MONOTONE} for every attribute"
    gates = [
        Gate(told_apart, f"{len(good)}: {', '.join(good)}", len(good) >= 2),
        Gate(grows, f"{min(trends):.3f} at the least", min(trends) >= MONOTONE),
        Gate("d. other attributes change less than half as much, debiased", f"{joint} of the own change", joint.high < 0.5),
        Gate("d. debiasing lowers that share", f"from {plain}, by {less}", less.low > 0),
    ]
    return gates, "### Attributes\n\n" + "\n".join(lines) + f"\n\nEdits of {EDITED} held-out people's adapters.\n\n" + table_of_edits


def change(read_SP: Tensor) -> Tensor:
    """(P,): how far an attribute's probability goes from the lowest to the highest strength."""
    return (read_SP[-1] - read_SP[0]).abs()


def leak(found: Mapping[str, Tensor], own: str) -> Tensor:
    """(P,): how far the other attributes' probabilities go, in the mean over those that the reader tells apart from `own` itself."""
    others = [name for name in found if name != own and READ[name][0] != READ[own][0]]
    return torch.stack([change(found[name]) for name in others]).mean(0)


def spearman(x: Tensor, y: Tensor) -> float:
    """Rank correlation."""
    ranks = [one.argsort().argsort().double() for one in (x, y)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])
