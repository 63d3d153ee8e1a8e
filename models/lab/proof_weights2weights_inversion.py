"""The lab proof of weights2weights, spec 7e: does one picture give a model of its person, also where it is drawn in another style?

A drawing in black and white ink is outside of what the space was fitted on. Inverted in the space it should become a person; a free rank-1 LoRA,
which may learn anything, should learn the ink. Letters: m models, n weights, k components, B pictures, D dimensions of a face.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from models.lab.concepts import Concept
from models.lab.contact_sheet import write_contact_sheet
from models.lab.crowd import person, pictures
from models.lab.gates import Gate
from models.lab.generation_scores import picture, pixels
from models.lab.weights2weights_studio import PROMPT, Studio, numbers_of
from models.methods.weights2weights_inversion import Inversion, Request, Settings
from models.metrics import bootstrap
from models.nets.reader import HEADS
from models.recipes.identity_space import explained_each
from models.training.identities import Identities
from models.training.identities import Request as Person
from models.training.identities import Settings as Training

INVERTED = 20  # held-out people, one picture each
STYLED = 12  # of them, also in another style
STYLE = Concept("noir", "ink", "plain", "even")
TRAINING = Training(prompt=PROMPT, num_steps=80, learning_rate=1.5e-3, batch=4, falling=0.3, noisy_share=0.4, num_inference_steps=1)
"""Of free adapters: as the people of the space were trained."""


def inversion(
    studio: Studio, names: Sequence[str], weights_mn: Tensor, seen_mn: Tensor, known_BD: Tensor, output: Path
) -> tuple[list[Gate], str]:
    """`names`, `weights_mn`: held-out people and their own adapters; `known_BD`: faces of the fitted people `seen_mn`. Writes two grids."""
    people = numbers_of(names)[:INVERTED]
    shown = torch.stack([pixels(pictures(number, 1)[0]) for number in people])
    inverted_mn = inverted(studio, shown)
    gates, text = one_photograph(studio, people, shown, inverted_mn, weights_mn[:INVERTED], output)
    first = slice(0, STYLED)
    more, other_style = another_style(studio, people[first], shown[first], inverted_mn[first], weights_mn[first], seen_mn, known_BD, output)
    return gates + more, f"{text}\n\n{other_style}"


def one_photograph(
    studio: Studio, people: Sequence[int], shown: Tensor, inverted_mn: Tensor, own_mn: Tensor, output: Path
) -> tuple[list[Gate], str]:
    """An inverted model against the mean model, an inverted stranger, and the person's own adapter from eight pictures."""
    seeds = list(range(len(people)))
    made = {
        "inverted": studio.draw(inverted_mn, seeds),
        "the mean model": studio.draw(studio.space.unproject(torch.zeros(len(people), 1)), seeds),
        "their own adapter, from eight pictures": studio.draw(own_mn, seeds),
    }
    made["an inverted stranger"] = made["inverted"].roll(1, 0)
    alike = {name: studio.alike(images, people) for name, images in made.items()}
    names_read = [name for name in ("hair", "glasses", "beard") if name in HEADS["portrait"]]
    right = torch.tensor([
        sum(read[name] == getattr(person(number), name) for name in names_read) / len(names_read)
        for number, read in zip(people, studio.reader.read(made["inverted"], "portrait"), strict=True)
    ])  # fmt: skip
    write_contact_sheet(output / "inverted.png", [[picture(image) for image in row[:16]] for row in (shown, *made.values())])
    gates = []
    for other in ("the mean model", "an inverted stranger"):
        more = bootstrap(alike["inverted"] - alike[other])
        gates.append(Gate(f"e. a model inverted from one picture is more like its person than {other}", f"by {more}", more.low > 0))
    lines = "\n".join(f"- {name}: {bootstrap(values)}" for name, values in alike.items())
    return gates, (
        f"### Inversion\n\nSimilarity of faces with four other pictures of the person, {len(people)} held-out people:\n\n{lines}\n\n"
        f"Hair, glasses and beard of the inverted models as the person has them: {bootstrap(right)}."
    )


def another_style(
    studio: Studio,
    people: Sequence[int],
    shown: Tensor,
    inverted_mn: Tensor,
    own_mn: Tensor,
    seen_mn: Tensor,
    known_BD: Tensor,
    output: Path,
) -> tuple[list[Gate], str]:
    """The same picture as it is and in ink, in the space and as a free adapter; which is nearer to people, as weights and as pictures?"""
    space, inked = studio.space, STYLE.apply(shown)
    models = {
        "their own adapter, from eight pictures": own_mn,
        "picture, in the space": inverted_mn,
        "picture, free adapter": free(studio, shown),
        "ink, in the space": inverted(studio, inked),
        "ink, free adapter": free(studio, inked),
    }
    seeds = list(range(len(people)))
    images = {name: studio.draw(w, seeds) for name, w in models.items()}
    known_Mn = (seen_mn - space.mean_n) / space.std_n
    near = {name: torch.cdist((w - space.mean_n) / space.std_n, known_Mn).amin(1) for name, w in models.items()}
    inside = {name: explained_each(space, w, space.components) for name, w in models.items()}
    faces = {name: torch.cdist(studio.faces.embed(made), known_BD).amin(1) for name, made in images.items()}
    alike = {name: studio.alike(made, people) for name, made in images.items()}
    heads = [
        "model",
        "inside the space",
        "weights to the nearest person",
        "face to the nearest person",
        "the reader's certainty",
        "like the person",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, made in images.items():
        cells = [bootstrap(values) for values in (inside[name], near[name], faces[name], studio.confidence(made), alike[name])]
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    write_contact_sheet(output / "another_style.png", [[picture(image) for image in row] for row in (inked, *list(images.values())[1:])])
    nearer = {what: bootstrap(one["ink, free adapter"] - one["ink, in the space"]) for what, one in (("weights", near), ("face", faces))}
    gates = [
        Gate(
            f"f. of a drawing in ink, the {what} of the model in the space is nearer to people than that of a free adapter",
            f"by {by}",
            by.low > 0,
        )
        for what, by in nearer.items()
    ]
    return gates, f"### Another style\n\n{len(people)} held-out people, the same picture as it is and as a drawing in ink.\n\n" + "\n".join(
        lines
    )


def inverted(studio: Studio, images_B3HW: Tensor) -> Tensor:
    """(B,n): each picture as a model of the space."""
    settings = Settings(prompt=PROMPT, num_steps=400, learning_rate=0.1, noises=4)
    found = Inversion(studio.method.base, studio.space, settings)([Request(image=image, seed=at) for at, image in enumerate(images_B3HW)])
    return studio.space.unproject(torch.stack([one.coefficients_k for one in found]))


def free(studio: Studio, images_B3HW: Tensor) -> Tensor:
    """(B,n): an adapter of each picture alone, trained from the people's common start."""
    made = Identities(studio.method.base, TRAINING)([Person(pictures=image[None], seed=0) for image in images_B3HW])
    return torch.stack([studio.space.layout.flatten(one.adapter) for one in made])
