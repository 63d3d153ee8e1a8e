"""The lab proof of weights2weights, spec 7b and 7c: are models drawn from the space people, and new ones?

Random weights of the samples' length hardly move the base, so that their pictures are the base's own people. Two harder controls stand beside
them: weights of which each comes from another person, and random ones so long that they move the base as far as samples do.
Letters: m models, n weights, B pictures, D dimensions of a face.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from models.lab.contact_sheet import write_contact_sheet
from models.lab.gates import Gate
from models.lab.generation_scores import picture
from models.lab.weights2weights_studio import Studio
from models.metrics import bootstrap
from models.training.loop import keyed

SAMPLES = 100
MEASURED = 32  # models whose effect on the base decides how long random weights must be
HALVINGS = 12
LONGEST = 64.0  # times as long as samples
SAME_LENGTH, SHUFFLED, AS_FAR = (
    "random weights of the same length",
    "weights of which each is another person's",
    "random weights that move the base as far",
)


def sampling(studio: Studio, seen_mn: Tensor, known_BD: Tensor, output: Path) -> tuple[list[Gate], str]:
    """`known_BD`: the faces of pictures of the fitted people. Writes samples.png."""
    space = studio.space
    drawn_mn = space.unproject(space.sample([keyed(0, at, "sample") for at in range(SAMPLES)]))
    real_mn = seen_mn[torch.randperm(len(seen_mn), generator=keyed(0, 0, "real"))[:SAMPLES]]
    random_mn = random_weights(studio, drawn_mn)
    longer = length_of_effect(studio, random_mn, float(studio.moved(drawn_mn[:MEASURED]).mean()))
    models = {
        "people": real_mn,
        "samples": drawn_mn,
        SAME_LENGTH: random_mn,
        SHUFFLED: shuffled(seen_mn)[:SAMPLES],
        AS_FAR: space.mean_n + longer * (random_mn - space.mean_n),
    }
    seeds, again = list(range(SAMPLES)), list(range(1000, 1000 + SAMPLES))
    images = {name: studio.draw(w, seeds) for name, w in models.items()}
    sure = {name: studio.confidence(made) for name, made in images.items()}
    faces = {name: studio.faces.embed(made) for name, made in images.items()}
    near = {name: torch.cdist(found, known_BD).amin(1) for name, found in faces.items() if name != "people"}
    twice = {name: (faces[name] - studio.faces.embed(studio.draw(w, again))).norm(dim=1) for name, w in models.items()}
    moved = {name: studio.moved(w[:MEASURED]) for name, w in models.items()}
    write_contact_sheet(output / "samples.png", [[picture(made[at]) for at in range(16)] for made in images.values()])
    gates = list[Gate]()
    for other in (SAME_LENGTH, SHUFFLED, AS_FAR):
        surer, nearer = bootstrap(sure["samples"] - sure[other]), bootstrap(near[other] - near["samples"])
        gates.append(Gate(f"b. the reader is surer of samples than of {other}", f"by {surer}", surer.low > 0))
        gates.append(Gate(f"b. samples' faces are nearer to people's than those of {other}", f"by {nearer}", nearer.low > 0))
    newer = bootstrap(near["samples"] - twice["samples"])
    gates.append(Gate("c. a sample is farther from every fitted person than from itself under another seed", f"by {newer}", newer.low > 0))
    lines = [
        "| models | moves the base's prediction by | the reader's certainty | to the nearest fitted face | two pictures of one model apart |"
    ]
    lines.append("|---|---|---|---|---|")
    for name in models:
        nearest = str(bootstrap(near[name])) if name in near else "one of them"
        lines.append(f"| {name} | {float(moved[name].mean()):.4f} | {bootstrap(sure[name])} | {nearest} | {bootstrap(twice[name])} |")
    return gates, "### Samples\n\n" + "\n".join(
        lines
    ) + f"\n\nRandom weights move the base as far as samples do when they are {longer:.1f} times as long."


def random_weights(studio: Studio, like_mn: Tensor) -> Tensor:
    """Random directions in standardised weights, each as long as the model of `like_mn` in its place."""
    space = studio.space
    noise_mn = torch.stack([torch.randn(space.layout.size, generator=keyed(0, at, "noise")) for at in range(len(like_mn))])
    length_m1 = ((like_mn - space.mean_n) / space.std_n).norm(dim=1, keepdim=True)
    return space.mean_n + space.std_n * noise_mn * length_m1 / noise_mn.norm(dim=1, keepdim=True)


def shuffled(weights_mn: Tensor) -> Tensor:
    """Every weight's values dealt anew among the models: as spread as they are, but none goes with another."""
    generator = keyed(0, 0, "shuffled")
    return torch.stack([column_m[torch.randperm(len(column_m), generator=generator)] for column_m in weights_mn.T], dim=1)


def length_of_effect(studio: Studio, weights_mn: Tensor, wanted: float) -> float:
    """By which factor models must be moved away from the mean model to change the base's prediction by `wanted`, by halving an interval."""
    mean_n, away_mn = studio.space.mean_n, weights_mn[:MEASURED] - studio.space.mean_n
    low, high = 1 / LONGEST, LONGEST
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        if float(studio.moved(mean_n + middle * away_mn).mean()) < wanted:
            low = middle
        else:
            high = middle
    return (low * high) ** 0.5
