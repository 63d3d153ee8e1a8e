"""The lab proof of Bounded Attention (`calotype prove bounded_attention`): do subjects keep to their boxes and to their own colours?

On drawn scenes of two or three objects of one shape in different colours, whose prompts name no places: the layout alone says where each goes.
Every arm starts from the same noise. Judged by the lab's reader in the boxes; it took no part in training the base.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from models.bases import UNetBase
from models.catalog import lab_path, read_card
from models.lab.contact_sheet import write_contact_sheet
from models.lab.gates import Gate, gate_table
from models.lab.generation_scores import picture
from models.lab.layout_scores import Arm, Asked, asked, attributes, mask_agreement, measure
from models.methods.bounded_attention import BoundedAttention
from models.methods.bounded_settings import Settings
from models.metrics import Interval, bootstrap
from models.nets.reader import Reader

PROMPTS, SEEDS = 200, 2
REPORTED = 60  # prompts of the arms that are reported and not gated, of one seed
SINGLE = 100
ROOM = 0.05  # leakage of the base below which there is nothing to compare
MOST_LOST = 0.02  # of single subjects' attributes
SWEEP = range(500_000, 500_030)  # numbers of the prompts on which step sizes were compared; the proof's begin at 0 and 100,000
UNMASKED: Mapping[str, Any] = {"self_mask": False, "cross_mask": False, "mask_refinement": False}
SHOWN = {
    "leakage": "leakage (lower is better)",
    "object": "right object in its box",
    "scene": "all boxes right",
    "colour": "right colour",
    "shape": "right shape",
    "present": "any object",
}


def prove(output: Path, data: Path | None, say: Callable[[str], None], weights: Path | None = None) -> bool:
    """Measure, write report.md, scores.json and pictures to `output`, and tell `say` each gate; whether all hold. `data` is not needed."""
    folder = weights or lab_path("unet")
    base, reader = UNetBase.load(folder, device="cpu", dtype=torch.float32), Reader.load(lab_path("reader"))
    own = Settings().with_options(read_card(folder).facts.get("settings", {}))
    output.mkdir(parents=True, exist_ok=True)

    def arm(name: str, prompts: Sequence[Asked], seeds: int, **options: Any) -> Arm:
        layout = options.pop("layout", True)
        made = measure(BoundedAttention(base, own.with_options(options)), reader, prompts, seeds, layout=layout)
        say(f"{name}: {', '.join(f'{score} {made.mean(score).mean:.3f}' for score in SHOWN)}, {made.seconds:.2f} CPU s a picture")
        return made

    prompts = asked(0, PROMPTS)
    arms = {
        "plain sampling": arm("plain sampling", prompts, SEEDS, layout=False),
        "guidance only": arm("guidance only", prompts, SEEDS, **UNMASKED),
        "bounded": arm("bounded", prompts, SEEDS),
    }
    single = asked(100_000, SINGLE, single=True)
    alone = {
        "plain sampling": attributes(reader, arm("one subject, plain", single, 1, layout=False).pictures, single),
        "bounded": attributes(reader, arm("one subject, bounded", single, 1).pictures, single),
    }
    fewer, placed = prompts[:REPORTED], asked(0, REPORTED, places=True)
    reported = {
        "plain sampling": arm("plain sampling, fewer", fewer, 1, layout=False),
        "bounded": arm("bounded, fewer", fewer, 1),
        "no guidance": arm("no guidance", fewer, 1, guidance_steps=0),
        "no refinement": arm("no refinement", fewer, 1, mask_refinement=False),
        "cross mask only": arm("cross mask only", fewer, 1, self_mask=False),
        "self mask only": arm("self mask only", fewer, 1, cross_mask=False),
        "plain sampling, prompts name places": arm("plain sampling, places named", placed, 1, layout=False),
        "bounded, prompts name places": arm("bounded, places named", placed, 1),
    }
    gates = [*leakage_gates(arms), single_gate(alone)]
    refined, boxes = (bootstrap(values) for values in mask_agreement(arms["bounded"].results, prompts, SEEDS))
    sections = [
        f"### {PROMPTS} prompts, {SEEDS} seeds\n\n{_table(arms)}",
        f"### The first {REPORTED} of them, one seed: what each part does\n\n{_table(reported)}",
        f"### Masks\n\nIntersection over union with the drawn objects: refined masks {refined}, the boxes themselves {boxes}.",
        f"### One subject\n\n{SINGLE} prompts: shape and colour right, plain sampling {bootstrap(alone['plain sampling'])}, "
        f"bounded {bootstrap(alone['bounded'])}.",
    ]
    for gate in gates:
        say(str(gate))
    (output / "report.md").write_text("\n\n".join([gate_table(gates), *sections]) + "\n")
    scores = {f"{name}: {score}": made.mean(score).mean for name, made in arms.items() for score in SHOWN}
    (output / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    _sheet(output / "scenes.png", prompts, arms)
    return all(gate.holds for gate in gates)


def leakage_gates(arms: Mapping[str, Arm]) -> list[Gate]:
    """The spec's claims on scenes, paired over prompts, and whether there is room for them."""
    leakage = arms["plain sampling"].mean("leakage")
    gates = [Gate(f"plain sampling leaks at least {ROOM:.2f}, so that there is something to compare", str(leakage), leakage.mean >= ROOM)]
    for other in ("plain sampling", "guidance only"):
        less = gain(arms, "leakage", other, "bounded")
        gates.append(Gate(f"bounded leaks less than {other}", f"by {less}", less.low > 0))
    more = gain(arms, "object", "bounded", "plain sampling")
    return [*gates, Gate("bounded puts the right object into more boxes than plain sampling", f"by {more}", more.low > 0)]


def single_gate(alone: Mapping[str, torch.Tensor]) -> Gate:
    """The spec's claim on scenes of one subject: little is lost."""
    lost = bootstrap(alone["plain sampling"] - alone["bounded"])
    return Gate(
        f"one subject: at most {MOST_LOST:.2f} of its attributes are lost against plain sampling", f"lost {lost}", lost.mean <= MOST_LOST
    )


def gain(arms: Mapping[str, Arm], score: str, higher: str, lower: str) -> Interval:
    """By how much a score is higher in one arm than in another, paired over prompts."""
    return bootstrap(arms[higher].scores[score] - arms[lower].scores[score])


def _table(arms: Mapping[str, Arm]) -> str:
    heads = ["", *SHOWN.values(), "CPU s a picture"]
    rows = [[name, *(str(arm.mean(score)) for score in SHOWN), f"{arm.seconds:.2f}"] for name, arm in arms.items()]
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _sheet(file: Path, prompts: Sequence[Asked], arms: Mapping[str, Arm], count: int = 12) -> None:
    """Rows: the drawn layout, then every arm from the same noise; columns: prompts."""
    drawn = [one.drawing.image for one in prompts[:count]]
    made = [[picture(arm.pictures[SEEDS * at]) for at in range(len(drawn))] for arm in arms.values()]
    write_contact_sheet(file, [drawn, *made])
