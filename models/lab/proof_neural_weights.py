"""The lab proof of neural weights (`calotype prove neural_weights --data JOB`): how much training do generated weights save?

Held-out concepts whose parts all occur in training, on drawn portraits; the error is L1 over the pixels that the edit changes, 0 to 1.
T(Q): seconds of training to the first check with an error of at most Q, preparation included (models/lab/translation_races.py).
JOB: the folder of the translate job that the denoiser was trained on; the plain regressor and the arm without index are made of it.
Curves are kept in the output folder as they come, so that the same command goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from models.catalog import lab_path
from models.lab.concepts import held_out_concepts
from models.lab.contact_sheet import write_contact_sheet
from models.lab.curve_plot import write_curves
from models.lab.gates import Gate, gate_table
from models.lab.generation_scores import picture
from models.lab.races import Curve, Reached, Run, mean_curve, misses, ratio, reach
from models.lab.translation_races import LORA, PREDICTED, SCRATCH, Checks, Timing, Track, measure, race_loras, race_scratch
from models.lab.weight_starts import ARMS, Starts, trained_on
from models.methods.weight_diffusion import Denoiser
from models.metrics import bootstrap
from models.nets.translator import Translator
from models.recipes import weight_denoiser
from models.training.weight_denoising import read_collection

CALIBRATION = 100  # seed of the runs that Q is fixed by, before any timed run
MARGIN = 1.05
MIDDLING = (
    0.40,
    0.35,
    0.30,
)  # of the error of the pictures as they are: the levels that the pilot was measured at, fixed before this proof was written


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    raced: int = 8  # of the held-out concepts; all of them at step 0
    seeds: int = 3
    seen: int = 64  # portraits to train on
    held: int = 48
    scratch_steps: int = 240
    lora_steps: int = 80
    scratch_every: int = 5
    lora_every: int = 5
    no_index_steps: int = 150  # of the denoiser without index
    timed: Sequence[str] = ("random", "mean", "regression", "ours")  # with all seeds; the other arms with one
    shown: int = 6


def prove(output: Path, data: Path | None, say: Callable[[str], None], folder: Path | None = None, sizes: Sizes | None = None) -> bool:
    """Measure, write report.md, scores.json, curves.png and starts.jpg to `output`, and tell `say` each gate; whether all hold.

    Raises ValueError without `data`, or where it is not what the denoiser was trained on.
    """
    if data is None:
        raise ValueError("--data JOB is missing: the folder of the translate job that lab/weight-denoiser was trained on")
    sizes, folder = sizes or Sizes(), folder or lab_path("weight-denoiser")
    base = Translator.load(_base_of(folder))
    denoiser = Denoiser.load(folder)
    collection = read_collection(data, base.base_hash)
    saw = trained_on(folder, collection)
    held_out = held_out_concepts()
    if both := set(saw.concepts) & {concept.text for concept in held_out}:
        raise ValueError(f"the denoiser was trained on held-out concepts, such as {sorted(both)[0]!r}; train it on lab:N only")
    output.mkdir(parents=True, exist_ok=True)
    unseen = len(collection.concepts) - len(saw.concepts)
    starts = Starts(base, denoiser, saw, _without_index(folder, data, output, sizes, unseen))
    track = Track.of(base, held_out, seen=sizes.seen, held=sizes.held)
    race = track.first(sizes.raced)
    kept = Kept(output / "curves.json")
    timing = kept.timing(lambda: measure(race, starts.generate_one(race.texts[0])))
    at_start = _errors_at_start(track, starts)
    gates = _gates_at_start(at_start)
    curves = _curves(race, starts, kept, timing, sizes, say)
    raced, sections = _raced(race, curves, sizes)
    gates = [*raced, *gates]
    for gate in gates:
        say(str(gate))
    _draw(output, track, race, starts, curves, sizes)
    parts = [gate_table(gates), _about(timing, sizes, saw.concepts), _start_table(at_start), *sections]
    (output / "report.md").write_text("\n\n".join(parts) + "\n")
    scores = {"timing": asdict(timing), "errors at step 0": {arm: [float(e) for e in errors] for arm, errors in at_start.items()}}
    (output / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    return all(gate.holds for gate in gates)


class Kept:
    """Curves and timing of a proof, written as they come."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.facts: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}

    def timing(self, measured: Callable[[], Timing]) -> Timing:
        if "timing" not in self.facts:
            self._write("timing", asdict(measured()))
        return Timing(**self.facts["timing"])

    def checks(self, key: str, run: Callable[[], Sequence[Checks]]) -> list[Checks]:
        if key not in self.facts:
            self._write(key, [asdict(checks) for checks in run()])
        return [Checks(tuple(each["steps"]), tuple(each["errors"])) for each in self.facts[key]]

    def _write(self, key: str, value: Any) -> None:
        self.facts[key] = value
        self.file.write_text(json.dumps(self.facts))


def _base_of(folder: Path) -> Path:
    named = str(json.loads((folder / "card.json").read_text()).get("base", "lab/translator"))
    beside = folder.parent / named.removeprefix("lab/")
    return beside if (beside / "card.json").is_file() else lab_path(named)


def _without_index(folder: Path, data: Path, output: Path, sizes: Sizes, validation: int) -> Denoiser:
    """A denoiser that is not told which block it works on; trained here, on the same concepts, for fewer steps, since it has little to learn."""
    translator = str(_base_of(folder))
    cfg = weight_denoiser.Config(data=data, translator=translator, validation=validation, use_index=False, steps=sizes.no_index_steps)
    made = output / "no-index" / "weight-denoiser"
    if not (made / "card.json").is_file():
        weight_denoiser.train(cfg, output / "no-index")
    return Denoiser.load(made)


def _errors_at_start(track: Track, starts: Starts) -> dict[str, torch.Tensor]:
    """(G,) errors of all held-out concepts before any step, arm by arm."""
    errors = {"pictures as they are": track.untouched()}
    return errors | {arm: track.errors(starts.lora(arm, track.texts, 0)) for arm in ARMS}


def _gates_at_start(errors: Mapping[str, torch.Tensor]) -> list[Gate]:
    """c, d, e: paired bootstraps over concepts."""
    claims = {
        "random": "c. error at step 0: generated weights below the base alone",
        "mean": "c. error at step 0: generated weights below the mean of the training concepts'",
        "wrong text": "d. the right text below another held-out concept's",
        "no index": "e. with the block's index below without",
    }
    gains = {arm: bootstrap(errors[arm] - errors["ours"]) for arm in claims}
    return [Gate(claim, f"by {gains[arm]}", gains[arm].low > 0) for arm, claim in claims.items()]


def scratch_checks(race: Track, kept: Kept, sizes: Sizes, say: Callable[[str], None]) -> dict[Run, Checks]:
    """Every run from random weights, the calibration's first."""
    found: dict[Run, Checks] = {}
    for seed in (CALIBRATION, *range(sizes.seeds)):
        for at, text in enumerate(race.texts):
            say(f"scratch, seed {seed}, {text}")

            def run(at: int = at, seed: int = seed) -> list[Checks]:
                return [race_scratch(race.only(at), seed=seed, steps=sizes.scratch_steps, every=sizes.scratch_every)]

            found[text, seed] = kept.checks(f"scratch {seed} {text}", run)[0]
    return found


def _curves(
    race: Track, starts: Starts, kept: Kept, timing: Timing, sizes: Sizes, say: Callable[[str], None]
) -> dict[str, dict[Run, Curve]]:
    """Every arm's curves, the calibration's among them."""
    scratch = scratch_checks(race, kept, sizes, say)
    found = {"scratch": {run: checks.timed(timing.scratch_step_s) for run, checks in scratch.items()}}
    for arm in ARMS:
        found[arm] = {}
        ready = timing.generate_s if arm in ("ours", "wrong text", "no index") else 0.0
        seeds = range(sizes.seeds if arm in sizes.timed else 1)
        for seed in (*((CALIBRATION,) if arm == "random" else ()), *seeds):
            say(f"{arm}, seed {seed}")

            def run(arm: str = arm, seed: int = seed) -> list[Checks]:
                start = starts.lora(arm, race.texts, seed)
                settings = LORA if arm in ("random", "mean") else PREDICTED
                return race_loras(race, start, seed=seed, steps=sizes.lora_steps, every=sizes.lora_every, settings=settings)

            made = kept.checks(f"{arm} {seed}", run)
            found[arm] |= {(text, seed): checks.timed(timing.lora_step_s, ready) for text, checks in zip(race.texts, made, strict=True)}
    return found


def _raced(race: Track, curves: Mapping[str, Mapping[Run, Curve]], sizes: Sizes) -> tuple[list[Gate], list[str]]:
    """a, b, and the tables of times at three qualities."""
    ends = {arm: {text: curves[arm][text, CALIBRATION].errors[-1] for text in race.texts} for arm in ("scratch", "random")}
    both = {text: MARGIN * max(ends["scratch"][text], ends["random"][text]) for text in race.texts}
    runs = [(text, seed) for text in race.texts for seed in range(sizes.seeds)]
    levels: dict[str, Mapping[Run, float]] = {
        "Q: 1.05 times the worse of what scratch and base + trained LoRA end at": {run: both[run[0]] for run in runs},
        "Q = what the scratch run itself ends at": {run: curves["scratch"][run].errors[-1] for run in runs},
        "Q = 1.05 times what base + trained LoRA ends at": {run: MARGIN * ends["random"][run[0]] for run in runs},
    }
    untouched = dict(zip(race.texts, race.untouched().tolist(), strict=True))
    levels |= {
        f"Q = {share:.2f} of the error of the pictures as they are": {run: share * untouched[run[0]] for run in runs} for share in MIDDLING
    }
    sections, gates = list[str](), list[Gate]()
    for number, (what, level) in enumerate(levels.items()):
        reached = {arm: {run: reach(curve, level[run]) for run, curve in of_arm.items() if run in level} for arm, of_arm in curves.items()}
        sections.append(_time_table(what, mean(level.values()), reached))
        if number in (0, len(levels) - len(MIDDLING)):
            gates += _race_gates("Q" if number == 0 else f"{MIDDLING[0]:.2f} of the untouched error", reached, len(runs))
    return gates, sections


def _race_gates(level: str, reached: Mapping[str, Mapping[Run, Reached]], runs: int) -> list[Gate]:
    """a and b at one quality, with how many runs never get there."""
    scratch, usual = (ratio(reached[arm], reached["ours"]) for arm in ("scratch", "random"))
    missed = {arm: f"{arm} {len(misses(reached[arm]))}" for arm in ("scratch", "random", "ours")}
    told = f"{scratch}; of {runs} runs never there: {missed['scratch']}, {missed['ours']}"
    gates = [Gate(f"a. time to {level}, from scratch over from generated weights, at least 15", told, scratch.median >= 15)]
    told = f"{usual}; of {runs} runs never there: {missed['random']}, {missed['ours']}"
    claim = f"b. time to {level}, base + LoRA from its usual start over from generated weights"
    return [*gates, Gate(f"{claim}, above 1", told, usual.median > 1), Gate(f"{claim}, at least 5 (the goal)", told, usual.median >= 5)]


def _time_table(what: str, level: float, reached: Mapping[str, Mapping[Run, Reached]]) -> str:
    """T(Q) of every arm, its ratio to ours, and which runs missed it."""
    lines = [
        f"**{what}** (mean {level:.4f})",
        "",
        "| start | seconds | steps | ours is sooner by, seconds | steps | runs that miss it |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for arm, of_arm in reached.items():
        common = {run: reached["ours"][run] for run in of_arm}
        missed = misses(of_arm)
        named = ", ".join(sorted({text for text, _seed in missed}))
        seconds, steps = (sorted(getattr(one, name) for one in of_arm.values())[len(of_arm) // 2] for name in ("seconds", "steps"))
        cells = [arm, f"{seconds:.2f}", str(steps)]
        cells += ["-", "-"] if arm == "ours" else [str(ratio(of_arm, common)), str(ratio(of_arm, common, steps=True))]
        lines.append("| " + " | ".join([*cells, f"{len(missed)} of {len(of_arm)}{': ' + named if named else ''}"]) + " |")
    return "\n".join(lines)


def _start_table(errors: Mapping[str, torch.Tensor]) -> str:
    said = {"pictures as they are": "no translation", **ARMS}
    lines = ["| at step 0 | error, 20 held-out concepts | less ours |", "|---|---|---|"]
    for arm, values in errors.items():
        less = "-" if arm == "ours" else str(bootstrap(values - errors["ours"]))
        lines.append(f"| {arm}: {said[arm]} | {bootstrap(values)} | {less} |")
    return "\n".join(lines)


def _about(timing: Timing, sizes: Sizes, concepts: Sequence[str]) -> str:
    return (
        f"{sizes.raced} of the 20 held-out concepts are raced, {sizes.seeds} seeds ({', '.join(sizes.timed)}; the other arms one); the denoiser saw "
        f"{len(concepts)} concepts. Batches of {LORA.batch}, {sizes.seen} portraits, {sizes.held} held out, checks every {sizes.lora_every} steps, "
        f"{sizes.scratch_steps} steps from scratch (Adam {SCRATCH.lr}), {sizes.lora_steps} of a LoRA ({LORA.lr}, "
        f"from predicted weights {PREDICTED.lr}).\n\n"
        f"Median CPU seconds of one thread, by turns: a step of one LoRA {timing.lora_step_s:.3f}, a step from scratch {timing.scratch_step_s:.3f}, "
        f"generating, writing and loading one concept's weights {timing.generate_s:.3f}."
    )


def _draw(output: Path, track: Track, race: Track, starts: Starts, curves: Mapping[str, Mapping[Run, Curve]], sizes: Sizes) -> None:
    """Mean curves of all raced concepts and those of the first; and pictures of what each arm begins with."""
    arms = ["scratch", *ARMS]
    whole = {arm: mean_curve([curve for run, curve in curves[arm].items() if run[1] < sizes.seeds]) for arm in arms}
    first = {arm: curves[arm][race.texts[0], 0] for arm in arms}
    panels = {f"mean of {sizes.raced} held-out concepts": whole, race.texts[0]: first}
    write_curves(output / "curves.png", panels, error="L1 over changed pixels")
    few = track.first(sizes.shown)
    columns = [few.translated({name: value[: sizes.shown] for name, value in starts.lora(arm, track.texts, 0).items()}, 1) for arm in ARMS]
    source, target = (pairs.float() / 127.5 - 1 for pairs in (few.held.sources[:, 0], few.held.targets[:, 0]))
    rows = [[picture(source[0]), *(picture(column[at, 0]) for column in columns), picture(target[at])] for at in range(sizes.shown)]
    write_contact_sheet(output / "starts.jpg", rows, ["source", *ARMS, "target"])
