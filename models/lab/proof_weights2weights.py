"""The lab proof of weights2weights (`calotype prove weights2weights --data JOB`): are people's adapters a space of models?

JOB is the finished weights job (mode identity) over drawn people on which lab/identity-space was fitted; its last people by name took no part in
the fit. Judged by the lab's reader and identity network, which took no part in training the base or any adapter.
Letters: m models, n weights, k components, B pictures, D dimensions of a face.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.bases import UNetBase
from models.catalog import lab_path, model_revision
from models.lab.contact_sheet import write_contact_sheet
from models.lab.crowd import attributes as attributes_of
from models.lab.crowd import person, person_id, pictures
from models.lab.generation_scores import picture, pixels
from models.methods.weights2weights import Request, Settings, Weights2Weights
from models.methods.weights2weights_directions import Debias, Edit
from models.methods.weights2weights_files import Start
from models.methods.weights2weights_inversion import Inversion
from models.methods.weights2weights_inversion import Request as Photograph
from models.methods.weights2weights_inversion import Settings as InversionSettings
from models.methods.weights2weights_layout import Layout
from models.methods.weights2weights_space import Space, fit_space
from models.metrics import bootstrap
from models.nets.identity import IdentityNet
from models.nets.reader import HEADS, Reader
from models.recipes.identity_space import ATTRIBUTES, accuracy, explained_each
from models.training.adapter_collection import labels_of, read_people
from models.training.loop import keyed

PROMPT = "a portrait of a person"
HELD_OUT = 60
COMPONENTS = 50  # at which variance is compared
SAMPLES = 100
EDITED = 24  # held-out people whose adapters are edited
STRENGTHS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
READ = {
    "beard": ("beard", "beard"),
    "glasses": ("glasses", "glasses"),
    "sunglasses": ("glasses", "sunglasses"),
    "long hair": ("hair", "long"),
    "bald": ("hair", "bald"),
}
"""Attributes that are edited -> what the reader looks for: attribute and value."""
INVERTED = 20  # held-out people, one picture each
ROWS_A_CALL = 64
ABOVE_MAJORITY, MONOTONE = 0.15, 0.9


@dataclass(frozen=True)
class Gate:
    """A statement that must hold, and what was measured."""

    claim: str
    measured: str
    holds: bool


class Studio:
    """Draws people from weights, and looks at what came out."""

    def __init__(self, base: UNetBase, space: Space) -> None:
        self.space = space
        self.method = Weights2Weights(base, space, Settings(num_inference_steps=20, guidance_scale=3.0, negative_prompt=""))
        self.reader, self.faces = Reader.load(lab_path("reader")), IdentityNet.load(lab_path("identity"))

    def draw(self, weights_Bn: Tensor, seeds: Sequence[int]) -> Tensor:
        """(B,3,H,W): a picture of each model from its seed."""
        wanted = [Request(prompt=PROMPT, seed=seed, start=Start(weights_n=w)) for w, seed in zip(weights_Bn, seeds, strict=True)]
        made = [result.image for at in range(0, len(wanted), ROWS_A_CALL) for result in self.method(wanted[at : at + ROWS_A_CALL])]
        return torch.stack(made)

    def edit(self, weights_Bn: Tensor, attribute: str, strength: float, debias: Debias) -> Tensor:
        """(B,3,H,W): each model edited, from one seed a model."""
        method = Weights2Weights(self.method.base, self.space, self.method.settings.with_options({"debias": debias}))
        edits = [Edit(attribute, strength)] if strength else []
        wanted = [Request(prompt=PROMPT, seed=at, start=Start(weights_n=w), edits=edits) for at, w in enumerate(weights_Bn)]
        return torch.stack([result.image for result in method(wanted)])

    def confidence(self, images_B3HW: Tensor) -> Tensor:
        """(B,): how sure the reader is of a portrait's attributes, the mean of their largest probabilities."""
        names = [name for name in HEADS["portrait"] if name not in ("shirt", "background")]
        return torch.stack([self.reader.probabilities(images_B3HW, "portrait", name).amax(1) for name in names]).mean(0)

    def read(self, images_B3HW: Tensor) -> dict[str, Tensor]:
        """(B,) probability of each edited attribute."""
        found = {}
        for name, (head, value) in READ.items():
            found[name] = self.reader.probabilities(images_B3HW, "portrait", head)[:, HEADS["portrait"][head].index(value)]
        return found


def prove(output: Path, data: Path | None, say: Callable[[str], None], weights: Path | None = None) -> bool:
    """Measure, write report.md, scores.json and grids to `output`, tell `say` each gate; whether all hold.

    `data`: the job's folder. `weights`: a space's folder, the lab's where None. Raises ValueError without `data`.
    """
    if data is None:
        raise ValueError("--data JOB is missing: the folder of the weights job (mode identity) that lab/identity-space was fitted on")
    folder = lab_path("unet")
    base = UNetBase.load(folder, device="cpu", dtype=torch.float32)
    space = Space.load(weights or lab_path("identity-space"))
    people = read_people(data, Layout.of(base.unet, base_hash=model_revision(folder / "unet")))
    studio = Studio(base, space)
    seen_mn, unseen_mn = people.weights_mn[:-HELD_OUT], people.weights_mn[-HELD_OUT:]
    unseen = people.names[-HELD_OUT:]
    output.mkdir(parents=True, exist_ok=True)
    gates, sections = list[Gate](), list[str]()
    parts = (
        lambda: variance(space, seen_mn, unseen_mn),
        lambda: sampling(studio, seen_mn, output),
        lambda: directions(studio, unseen, unseen_mn, output),
        lambda: inversion(studio, unseen, unseen_mn, output),
    )
    for part in parts:
        found, text = part()
        gates += found
        sections.append(text)
        for gate in found:
            say(f"{'holds' if gate.holds else 'DOES NOT HOLD'}: {gate.claim}: {gate.measured}")
    rows = [f"| {gate.claim} | {gate.measured} | {'holds' if gate.holds else '**does not hold**'} |" for gate in gates]
    (output / "report.md").write_text("\n\n".join(["\n".join(["| gate | measured | |", "|---|---|---|", *rows]), *sections]) + "\n")
    (output / "scores.json").write_text(json.dumps({gate.claim: [gate.measured, gate.holds] for gate in gates}, indent=1) + "\n")
    return all(gate.holds for gate in gates)


def variance(space: Space, seen_mn: Tensor, unseen_mn: Tensor) -> tuple[list[Gate], str]:
    """Spec 7a: do few components hold what people's weights have in common, and those of people who were not fitted?"""
    generator = keyed(0, 0, "shuffled")
    shuffled_mn = torch.stack([column[torch.randperm(len(column), generator=generator)] for column in seen_mn.T], dim=1)
    other = fit_space(shuffled_mn, space.layout, n_components=COMPONENTS)
    more = bootstrap(explained_each(space, unseen_mn, COMPONENTS) - explained_each(other, unseen_mn, COMPONENTS))
    lines = ["| components | people fitted | people held out | held out, space of shuffled weights |", "|---|---|---|---|"]
    whole = fit_space(shuffled_mn, space.layout, n_components=min(space.components, 200))
    for k in (k for k in (10, 50, 100, 200) if k <= space.components):
        shares = [explained_each(space, seen_mn, k), explained_each(space, unseen_mn, k), explained_each(whole, unseen_mn, k)]
        lines.append(f"| {k} | {' | '.join(f'{float(share.mean()):.3f}' for share in shares)} |")
    claim = f"a. {COMPONENTS} components hold more of held-out people's variance than those of column-shuffled weights"
    return [Gate(claim, f"by {more}", more.low > 0)], "### Variance\n\n" + "\n".join(lines)


def sampling(studio: Studio, seen_mn: Tensor, output: Path) -> tuple[list[Gate], str]:
    """Spec 7b, c: are models drawn from the space people, and new ones?"""
    space = studio.space
    p_mk = space.sample([keyed(0, at, "sample") for at in range(SAMPLES)])
    drawn_mn = space.unproject(p_mk)
    noise_mn = torch.stack([torch.randn(space.layout.size, generator=keyed(0, at, "noise")) for at in range(SAMPLES)])
    length_m1 = ((drawn_mn - space.mean_n) / space.std_n).norm(dim=1, keepdim=True)
    random_mn = space.mean_n + space.std_n * noise_mn * length_m1 / noise_mn.norm(dim=1, keepdim=True)
    real_mn = seen_mn[torch.randperm(len(seen_mn), generator=keyed(0, 0, "real"))[:SAMPLES]]
    seeds, again = list(range(SAMPLES)), list(range(1000, 1000 + SAMPLES))
    images = {name: studio.draw(w, seeds) for name, w in (("samples", drawn_mn), ("random weights", random_mn), ("people", real_mn))}
    known_BD = studio.faces.embed(torch.cat([studio.draw(seen_mn, list(range(len(seen_mn))))]))
    sure = {name: studio.confidence(made) for name, made in images.items()}
    faces = {name: studio.faces.embed(made) for name, made in images.items()}
    near = {name: torch.cdist(found, known_BD).amin(1) for name, found in faces.items() if name != "people"}
    models = {"samples": drawn_mn, "random weights": random_mn, "people": real_mn}
    twice = {name: (faces[name] - studio.faces.embed(studio.draw(w, again))).norm(dim=1) for name, w in models.items()}
    surer, nearer, newer = (
        bootstrap(sure["samples"] - sure["random weights"]),
        bootstrap(near["random weights"] - near["samples"]),
        bootstrap(near["samples"] - twice["samples"]),
    )
    rows = [[picture(images[name][at]) for at in range(16)] for name in ("people", "samples", "random weights")]
    write_contact_sheet(output / "samples.png", rows)
    text = (
        f"### Samples\n\nThe reader's certainty: people's own adapters {bootstrap(sure['people'])}, samples {bootstrap(sure['samples'])}, "
        f"random weights of the same length {bootstrap(sure['random weights'])}. Distance of faces to the nearest of {len(seen_mn)} fitted people: "
        f"samples {bootstrap(near['samples'])}, random weights {bootstrap(near['random weights'])}. Two pictures of one model apart: "
        f"{', '.join(f'{name} {bootstrap(apart)}' for name, apart in twice.items())}."
    )
    return [
        Gate("b. the reader is surer of samples than of random weights of the same length", f"by {surer}", surer.low > 0),
        Gate("b. samples' faces are nearer to people's than those of random weights", f"by {nearer}", nearer.low > 0),
        Gate("c. a sample is farther from every fitted person than from itself under another seed", f"by {newer}", newer.low > 0),
    ], text


def directions(studio: Studio, names: Sequence[str], weights_mn: Tensor, output: Path) -> tuple[list[Gate], str]:
    """Spec 7d: do attributes lie on lines, and do edits along them change their own attribute and leave the others?"""
    space = studio.space
    table = {person_id(number): {key: str(value) for key, value in attributes_of(person(number)).items()} for number in numbers_of(names)}
    labels = labels_of(names, table, ATTRIBUTES)
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


def inversion(studio: Studio, names: Sequence[str], weights_mn: Tensor, output: Path) -> tuple[list[Gate], str]:
    """Spec 7e: does one picture give a model of its person?"""
    space, people = studio.space, numbers_of(names)[:INVERTED]
    shown = torch.stack([pixels(pictures(number, 1)[0]) for number in people])
    settings = InversionSettings(prompt=PROMPT, num_steps=400, learning_rate=0.1, noises=4)
    found = Inversion(studio.method.base, space, settings)([Photograph(image=image, seed=at) for at, image in enumerate(shown)])
    inverted_mn = space.unproject(torch.stack([one.coefficients_k for one in found]))
    seeds = list(range(len(people)))
    made = {
        "inverted": studio.draw(inverted_mn, seeds),
        "the mean model": studio.draw(space.unproject(torch.zeros(len(people), 1)), seeds),
        "their own adapter, from eight pictures": studio.draw(weights_mn[:INVERTED], seeds),
    }
    made["an inverted stranger"] = made["inverted"].roll(1, 0)
    truth = [studio.faces.embed(torch.stack([pixels(image) for image in pictures(number, 4, first=20)])) for number in people]
    alike: dict[str, Tensor] = {}
    for name, images in made.items():
        alike[name] = torch.stack([(face @ own.T).mean() for face, own in zip(studio.faces.embed(images), truth, strict=True)])
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
    lines = [f"- {name}: {bootstrap(values)}" for name, values in alike.items()]
    text = f"### Inversion\n\nSimilarity of faces with four other pictures of the person, {len(people)} held-out people:\n\n" + "\n".join(
        lines
    )
    return gates, text + f"\n\nHair, glasses and beard of the inverted models as the person has them: {bootstrap(right)}."


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


def numbers_of(names: Sequence[str]) -> list[int]:
    """Numbers of drawn people by their ids. Raises ValueError for a name that is none of a drawn person."""
    found = []
    for name in names:
        number = name.removeprefix("person-")
        if not number.isdigit() or person_id(int(number)) != name:
            raise ValueError(f"{name!r} is no drawn person; the proof needs a job over people of `calotype world --people`")
        found.append(int(number))
    return found
