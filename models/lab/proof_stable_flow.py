"""The lab proof of Stable Flow (`calotype prove stable_flow`): do edits keep what their prompt leaves alone, and are some layers vital for it?

On generated two-object scenes that no layer was scored on: one object's colour or shape is changed. Gates are paired bootstraps over the sources.
Portraits, real (drawn) pictures, other numbers of layers, nudges and SDEdit are reported beside them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.regression import spearman_corrcoef

from models.catalog import lab_path
from models.lab.contact_sheet import write_contact_sheet
from models.lab.edit_scores import Edit, EditScores, noised_and_denoised, portrait_edits, run, scene_edits, score
from models.lab.gates import Gate, gate_table
from models.lab.generation_scores import picture, pixels
from models.lab.world import UNSEEN, draw
from models.methods.stable_flow import Result, StableFlow
from models.methods.vital_layers import FILE, VitalLayers, most_vital
from models.metrics import Interval, bootstrap
from models.nets.patch_features import PatchFeatures
from models.nets.reader import Reader
from models.recipes.vital_layers import Config, layer_scores, world_prompts

GUIDANCE = 3.0
COUNTS = (1, 2, 3, 4, 6, 8)  # of vital layers
NUDGES = (1.0, 1.05, 1.15, 1.3)
INVERSION_STEPS = (10, 20, 50)
STRENGTHS = (0.6, 0.75, 0.9)  # sigmas that SDEdit begins at
SHOWN = 8  # sources a picture


@dataclass(frozen=True)
class Sizes:
    """How much is measured, and in how many steps."""

    prompts: int = 64  # of the second set that layers are scored on; the first is the shipped measurement's
    sources: int = 200  # generated scenes, two edits each
    swept: int = 30  # of them, for what is reported only
    portraits: int = 40
    real: int = 30  # drawn scenes
    steps: int = 10  # of generated sources and their edits
    real_steps: int = 20  # of inversions, where they are not what is measured


@dataclass(frozen=True)
class Arm:
    """A way of editing, its results and their scores, a value a source."""

    results: list[Result]
    scores: EditScores

    def cells(self) -> str:
        """Its means, as cells of a table."""
        return f"{_interval(self.scores.preserved)} | {_interval(self.scores.succeeded)}"


Part = tuple[list[Gate], list[str], dict[str, Any]]


def prove(output: Path, data: Path | None, say: Callable[[str], None], weights: Path | None = None, sizes: Sizes | None = None) -> bool:
    """Measure, write report.md, scores.json and pictures to `output`, and tell `say` each gate; whether all hold.

    `data` is not used: everything is drawn. Raises ValueError where weights are missing or their vital layers were not measured.
    """
    sizes, folder = sizes or Sizes(), weights or lab_path("mmdit")
    measured = VitalLayers.read(folder / FILE)
    asked = {"guidance_scale": GUIDANCE, "return_reference": True, "num_inference_steps": sizes.steps, "inversion_steps": sizes.real_steps}
    method = StableFlow.load({"folder": folder}, settings=asked, device="cpu")
    reader = Reader.load(lab_path("reader"))
    output.mkdir(parents=True, exist_ok=True)
    gates: list[Gate] = []
    sections: list[str] = []
    scores: dict[str, Any] = {}
    edits = scene_edits(sizes.sources)
    for part in (
        lambda: _ranks(method, measured, sizes),
        lambda: _generated(method, measured, reader, edits, sizes, output),
        lambda: _portraits(method, measured, reader, sizes, output),
        lambda: _real(method, measured, reader, sizes, output),
    ):
        found = part()
        for gate in found[0]:
            say(str(gate))
        gates, sections, scores = gates + found[0], sections + found[1], scores | found[2]
    (output / "report.md").write_text("\n\n".join([gate_table(gates), *sections]) + "\n")
    (output / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    return all(gate.holds for gate in gates)


def _ranks(method: StableFlow, measured: VitalLayers, sizes: Sizes) -> Part:
    """Layers scored again on prompts that the shipped measurement did not see."""
    features = PatchFeatures.load(lab_path("towers"))
    cfg = Config(base="", k=sizes.prompts, seed=1000)
    again = layer_scores(method.base, cfg, world_prompts(sizes.prompts, UNSEEN + 1000), features, lab=True)
    rho = spearman_corrcoef(torch.tensor(measured.scores), torch.tensor(again)).item()
    gate = Gate(f"a. vitality of two disjoint sets of {sizes.prompts} prompts: Spearman at least 0.8", f"{rho:.2f}", rho >= 0.8)
    double = len(method.base.transformer.transformer_blocks)
    lines = ["| layer | first set | second set | |", "|---|---:|---:|---|"]
    for layer, (one, other) in enumerate(zip(measured.scores, again, strict=True)):
        kind = f"double {layer}" if layer < double else f"single {layer - double}"
        lines.append(f"| {layer} ({kind}) | {one:.4f} | {other:.4f} | {'vital' if layer in measured.chosen else ''} |")
    section = "Vitality (1 - mean cosine of patch tokens of lab/towers) of each layer.\n\n" + "\n".join(lines)
    return [gate], [section], {"vitality first": list(measured.scores), "vitality second": again, "spearman": rho}


def _generated(method: StableFlow, measured: VitalLayers, reader: Reader, edits: Sequence[Edit], sizes: Sizes, output: Path) -> Part:
    """Scenes as the base generates them: which layers are shared, against none, all, and SDEdit."""
    n, layers = len(measured.chosen), _layers(measured)
    arms = {"vital": _arm(method, reader, edits)}
    sources = torch.stack(_references(arms["vital"].results))
    arms = {name: arms.get(name) or _arm(_with(method, vital_layers=chosen), reader, edits, sources) for name, chosen in layers.items()}
    gates = [
        _gate(arms, f"b. PSNR outside the edited object: {n} vital layers over no injection", "vital", "no injection", "preserved"),
        _gate(arms, f"c. the same over the {n} least vital layers", "vital", "least vital", "preserved"),
        _gate(arms, "d. the edit succeeds: vital layers over all layers", "vital", "all layers", "succeeded"),
    ]
    lines = [f"| {name} ({', '.join(map(str, layers[name])) or '-'}) | {arm.cells()} |" for name, arm in arms.items()]
    usable = int((~score(reader, edits, sources, sources).preserved.isnan()).sum())
    section = (
        f"Generated scenes: {sizes.sources} sources of {sizes.steps} steps, guidance {GUIDANCE}; {usable} of {len(edits)} edits are of an object that "
        "the source shows, the others are left out.\n\n"
    ) + _table("layers shared", lines)
    price = _interval(arms["vital"].scores.succeeded - arms["no injection"].scores.succeeded)
    section += f"\n\nThe price of preservation, success with vital layers less success without injection: {price}."
    _sheet(output / "generated.png", edits, arms["vital"].results, {name: arm.results for name, arm in arms.items()})

    few, lines = edits[: 2 * sizes.swept], []
    for number in COUNTS:
        chosen = most_vital(measured.scores, number)
        lines.append(
            f"| {number}: {', '.join(map(str, chosen))} | {_arm(_with(method, vital_layers=chosen), reader, few, sources[: len(few)]).cells()} |"
        )
    for share in (0.25, 0.5, 0.75):
        arm = _arm(_with(method, injection_steps=share), reader, few, sources[: len(few)])
        lines.append(f"| {n}, in the first {share:.0%} of the steps | {arm.cells()} |")
    for strength in STRENGTHS:
        made = noised_and_denoised(method.base, few, sources[: len(few)], strength, sizes.steps, GUIDANCE)
        lines.append(f"| SDEdit from sigma {strength} | {Arm([], score(reader, few, made, sources[: len(few)]).by_source(few)).cells()} |")
    swept = f"The most vital layers by number, fewer steps, and SDEdit on the same base: the first {sizes.swept} sources.\n\n"
    return gates, [section, swept + _table("layers shared", lines)], {name: _means(arm) for name, arm in arms.items()}


def _layers(measured: VitalLayers) -> dict[str, tuple[int, ...]]:
    """Which layers each arm shares."""
    least = most_vital([-value for value in measured.scores], len(measured.chosen))
    return {"no injection": (), "vital": measured.chosen, "least vital": least, "all layers": tuple(range(len(measured.scores)))}


def _portraits(method: StableFlow, measured: VitalLayers, reader: Reader, sizes: Sizes, output: Path) -> Part:
    """Portraits, where no box says what may change: PSNR over the whole picture."""
    edits = portrait_edits(sizes.portraits)
    arms = {name: _arm(_with(method, vital_layers=layers), reader, edits) for name, layers in _layers(measured).items()}
    _sheet(output / "portraits.png", edits, arms["vital"].results, {name: arm.results for name, arm in arms.items()})
    section = f"Generated portraits: {sizes.portraits} sources, {len(edits)} edits of hair colour, glasses, shirt or background; "
    section += "PSNR of the whole picture.\n\n"
    table = _table("layers shared", [f"| {name} | {arm.cells()} |" for name, arm in arms.items()])
    return [], [section + table], {f"portraits {name}": _means(arm) for name, arm in arms.items()}


def _real(method: StableFlow, measured: VitalLayers, reader: Reader, sizes: Sizes, output: Path) -> Part:
    """Drawn scenes, inverted."""
    edits = scene_edits(sizes.real)
    drawn = torch.stack([pixels(draw(edit.source, edit.number).image) for edit in edits])
    inverted: dict[int, Tensor] = {}
    for steps in INVERSION_STEPS:
        results = run(_with(method, inversion_steps=steps), edits[::2], real=True)
        inverted[steps] = torch.tensor([_psnr(result) for result in results])
    few, many = INVERSION_STEPS[0], INVERSION_STEPS[-1]
    gain = bootstrap(inverted[many] - inverted[few])
    lines = [f"| {steps} | {_interval(values)} |" for steps, values in inverted.items()]
    section = f"Real sources: {sizes.real} drawn scenes. PSNR of what the inverted noise leads back to, in dB.\n\n"
    section += "\n".join(["| steps | PSNR |", "|---|---|", *lines])

    ways: dict[str, dict[str, Any]] = {f"nudge {nudge}": {"nudge": nudge} for nudge in NUDGES} | {
        "authors_index": {"realignment": "authors_index"}
    }
    ways |= {f"nudge 1.0, {name}": {"nudge": 1.0, "vital_layers": layers} for name, layers in _layers(measured).items() if name != "vital"}
    arms = {name: _arm(_with(method, **how), reader, edits, drawn, real=True) for name, how in ways.items()}
    with torch.inference_mode():
        nudged = method.base.decode(method.settings.nudge * method.base.encode(drawn))
    largest = (torch.stack(_references(arms[f"nudge {method.settings.nudge}"].results)) - nudged).abs().max().item()
    gates = [
        Gate(f"e. inversion error falls from {few} to {many} steps (PSNR)", f"by {gain} dB", gain.low > 0),
        Gate(
            "e. the aligned reference ends as the (nudged) source latent: largest difference of pixels below 1e-5",
            f"{largest:.0e}",
            largest < 1e-5,
        ),
    ]
    table = _table("real sources", [f"| {name} | {arm.cells()} |" for name, arm in arms.items()])
    section += f"\n\nEdits of them, {sizes.real_steps} steps, against the drawn picture; authors_index has nudge {method.settings.nudge}.\n\n{table}"
    _sheet(output / "real.png", edits, arms["nudge 1.0"].results, {name: arm.results for name, arm in arms.items()}, drawn)
    facts = {f"real {name}": _means(arm) for name, arm in arms.items()}
    return gates, [section], facts | {f"inversion {steps}": float(values.mean()) for steps, values in inverted.items()}


def _arm(method: StableFlow, reader: Reader, edits: Sequence[Edit], sources: Tensor | None = None, *, real: bool = False) -> Arm:
    """Edit and score, against `sources`, else against the arm's own references."""
    results = run(method, edits, real=real)
    against = torch.stack(_references(results)) if sources is None else sources
    return Arm(results, score(reader, edits, torch.stack([result.edited for result in results]), against).by_source(edits))


def _with(method: StableFlow, **changes: Any) -> StableFlow:
    return StableFlow(method.base, replace(method.settings, **changes), backend=method.backend)


def _references(results: Sequence[Result]) -> list[Tensor]:
    return [result.reference for result in results if result.reference is not None]


def _psnr(result: Result) -> float:
    assert result.inversion_psnr is not None
    return result.inversion_psnr


def _gate(arms: Mapping[str, Arm], claim: str, better: str, worse: str, measure: str) -> Gate:
    gain = _interval(getattr(arms[better].scores, measure) - getattr(arms[worse].scores, measure))
    return Gate(claim, f"by {gain}{' dB' if measure == 'preserved' else ''}", gain.low > 0)


def _interval(values: Tensor) -> Interval:
    """Over the sources that show what is to be changed; NaN, which passes no gate, where fewer than two do."""
    known = values[~values.isnan()]
    return bootstrap(known) if len(known) > 1 else Interval(*[float("nan")] * 3)


def _means(arm: Arm) -> dict[str, float]:
    return {"preserved": float(arm.scores.preserved.nanmean()), "succeeded": float(arm.scores.succeeded.nanmean())}


def _table(head: str, lines: Sequence[str]) -> str:
    return "\n".join([f"| {head} | PSNR of what is to be kept, dB | edit succeeds |", "|---|---|---|", *lines])


def _sheet(
    path: Path, edits: Sequence[Edit], sources: Sequence[Result], columns: Mapping[str, Sequence[Result]], drawn: Tensor | None = None
) -> None:
    """A row an edit: its source, then each way of editing."""
    rows = []
    for i in range(min(SHOWN, len(edits))):
        source = drawn[i] if drawn is not None else sources[i].reference
        assert source is not None
        rows.append([picture(source), *(picture(results[i].edited) for results in columns.values())])
    write_contact_sheet(path, rows, ["source", *columns])
