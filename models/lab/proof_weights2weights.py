"""The lab proof of weights2weights (`calotype prove weights2weights --data JOB`): are people's adapters a space of models?

JOB is the finished weights job (mode identity) over drawn people on which lab/identity-space was fitted; its last people by name took no part in
the fit. Judged by the lab's reader and identity network, which took no part in training the base or any adapter. Its parts stand in files of
their own, proof_weights2weights_*.py. Letters: m models, n weights, k components.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from models.bases import UNetBase
from models.catalog import lab_path, model_revision
from models.lab.gates import Gate, gate_table
from models.lab.proof_weights2weights_arms import arms
from models.lab.proof_weights2weights_attributes import directions
from models.lab.proof_weights2weights_inversion import inversion
from models.lab.proof_weights2weights_samples import sampling, shuffled
from models.lab.weights2weights_studio import Studio
from models.methods.weights2weights_layout import Layout
from models.methods.weights2weights_space import Space, fit_space
from models.metrics import bootstrap
from models.recipes.identity_space import explained_each
from models.training.adapter_collection import read_people

HELD_OUT = 60
COMPONENTS = 50  # at which variance is compared


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
    seen, unseen = people.names[:-HELD_OUT], people.names[-HELD_OUT:]
    known_BD = studio.faces.embed(studio.draw(seen_mn, list(range(len(seen_mn)))))
    output.mkdir(parents=True, exist_ok=True)
    gates, sections = list[Gate](), list[str]()
    parts = (
        lambda: variance(space, seen_mn, unseen_mn),
        lambda: sampling(studio, seen_mn, known_BD, output),
        lambda: directions(studio, unseen, unseen_mn, output),
        lambda: inversion(studio, unseen, unseen_mn, seen_mn, known_BD, output),
        lambda: arms(studio, seen, seen_mn, unseen, unseen_mn),
    )
    for part in parts:
        found, text = part()
        gates += found
        sections.append(text)
        for gate in found:
            say(str(gate))
    (output / "report.md").write_text("\n\n".join([gate_table(gates), *sections]) + "\n")
    (output / "scores.json").write_text(json.dumps({gate.claim: [gate.measured, gate.holds] for gate in gates}, indent=1) + "\n")
    return all(gate.holds for gate in gates)


def variance(space: Space, seen_mn: Tensor, unseen_mn: Tensor) -> tuple[list[Gate], str]:
    """Spec 7a: do few components hold what people's weights have in common, and those of people who were not fitted?"""
    shuffled_mn = shuffled(seen_mn)
    other = fit_space(shuffled_mn, space.layout, n_components=COMPONENTS)
    more = bootstrap(explained_each(space, unseen_mn, COMPONENTS) - explained_each(other, unseen_mn, COMPONENTS))
    lines = ["| components | people fitted | people held out | held out, space of shuffled weights |", "|---|---|---|---|"]
    whole = fit_space(shuffled_mn, space.layout, n_components=min(space.components, 200))
    for k in (k for k in (10, 50, 100, 200) if k <= space.components):
        shares = [explained_each(space, seen_mn, k), explained_each(space, unseen_mn, k), explained_each(whole, unseen_mn, k)]
        lines.append(f"| {k} | {' | '.join(f'{float(share.mean()):.3f}' for share in shares)} |")
    claim = f"a. {COMPONENTS} components hold more of held-out people's variance than those of column-shuffled weights"
    return [Gate(claim, f"by {more}", more.low > 0)], "### Variance\n\n" + "\n".join(lines)
