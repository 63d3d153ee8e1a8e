"""The lab proof of InstantRestore (`calotype prove instant_restore`): does it restore, and do the right references bring the person back?

On drawn people, where references are exact, always; on photographs of people held out from training where a data folder is given. Identity of
real people is judged by an embedder that took no part in training, of drawn people by the lab's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image

from models.catalog import lab_path
from models.keys_values import References
from models.lab.contact_sheet import write_contact_sheet
from models.lab.damage import to_pil
from models.lab.gates import Gate, gate_table
from models.lab.judge import FaceJudge
from models.lab.restoration_scores import Comparison, compare, restored
from models.methods.instant_restore import InstantRestore, noisy_latents, reference_keys_values, restore_latents
from models.metrics import rank_1
from models.nets.identity import IdentityNet
from models.recipes.identity import UNSEEN
from models.recipes.instant_restore import read_split
from models.training.losses import MatchLoss
from models.training.photographs import drawn_person, read_people
from models.training.views import crop

MEASURES = {"psnr": "PSNR, dB", "ssim": "SSIM", "gmsd": "GMSD (lower is better)", "identity": "face distance (lower is better)"}
DRAWN_PEOPLE = 200


def prove(output: Path, data: Path | None, say: Callable[[str], None], weights: Path | None = None) -> bool:
    """Measure, write report.md, scores.json and pictures to `output`, and tell `say` each gate; whether all hold.

    Raises ValueError where the data folder or the weights don't fit, ImportError where photographs are given but the judge is missing.
    """
    folder = weights or lab_path("instant-restore")
    method = InstantRestore.load({"folder": folder}, device="cpu")
    output.mkdir(parents=True, exist_ok=True)
    gates, sections, scores = _drawn(method, output)
    if data is None:
        say("no data folder: real photographs are not measured; pass --data DIR or set CALOTYPE_DATA")
    else:
        for part in (_real(method, data), _two_references(method, data, output), _old_faces(method, data, output)):
            gates, sections, scores = gates + part[0], sections + part[1], scores | part[2]
    for gate in gates:
        say(str(gate))
    (output / "report.md").write_text("\n\n".join([gate_table(gates), *sections]) + "\n")
    (output / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    return all(gate.holds for gate in gates)


Part = tuple[list[Gate], list[str], dict[str, float]]


def _drawn(method: InstantRestore, output: Path) -> Part:
    """The spec's gates on drawn people never trained on, strongly damaged."""
    people = [drawn_person(UNSEEN + i, 5) for i in range(DRAWN_PEOPLE)]
    identity = IdentityNet.load(lab_path("identity"))
    result = compare(method, people, "strong", identity.embed, counts=(0, 1, 2, 4))
    gates = [
        _gate(result, "drawn: identity with 4 references better than with 1", "4 references", "1 references", "identity"),
        _gate(result, "drawn: identity with 1 reference better than with none", "1 references", "0 references", "identity"),
        _gate(result, "drawn: identity with 4 right references better than with another's 4", "4 references", "another's 4", "identity"),
        _gate(result, "drawn: PSNR with 4 references not below none", "4 references", "0 references", "psnr"),
        _batch_gate(method, result),
    ]
    names = ["input", "classical", "0 references", "1 references", "4 references", "another's 4"]
    _grid(output / "drawn.jpg", result, names, range(6))
    ranks = _ranks(result)
    section = f"Drawn people: {DRAWN_PEOPLE} never trained on, strong damage, judged by the lab's embedder.\n\n{_table(result, ranks)}"
    mass = attention_mass(method, result)
    section += f"\n\nAttention mass within one cell of the true match, mean over layers: {mass:.2f}."
    return gates, [section], {**_scores("drawn strong", result, ranks), "drawn attention mass": mass}


def _real(method: InstantRestore, data: Path) -> Part:
    """Held-out people with two photographs: the first damaged, the second as reference."""
    judge, people = FaceJudge(), read_split(str(data), "faces_ukparl").test
    gates: list[Gate] = []
    sections, scores = [], {}
    for level in ("mild", "medium", "strong"):
        result = compare(method, people, level, judge.embed, counts=(0, 1))
        ranks = _ranks(result)
        scores |= _scores(f"real {level}", result, ranks)
        sections.append(f"Real people, {level} damage: {len(people)} never trained on.\n\n{_table(result, ranks)}")
        if level == "mild":
            continue
        gain = result.gain("1 references", "input", "psnr")
        gates.append(Gate(f"real, {level}: PSNR at least 2.5 dB above the input", f"{gain} dB", gain.mean >= 2.5))
        for worse, name in (("input", "the input"), ("0 references", "none"), ("another's 1", "another's")):
            claim = f"real, {level}: identity with the right reference better than {name}"
            gates.append(_gate(result, claim, "1 references", worse, "identity"))
        if level == "strong":
            rank = ranks["1 references"]
            gates.append(Gate("real, strong: rank-1 of 50 at least .38 (goal .6)", f"{rank[0]:.2f}", rank[0] >= 0.38))
    return gates, sections, scores


def _two_references(method: InstantRestore, data: Path, output: Path) -> Part:
    """Studio photographs of people held out: pictures for the report, and two references where somebody has three photographs."""
    judge, people = FaceJudge(), read_split(str(data), "faces_lab").test
    pairs = [person for person in people if len(person.images) == 2]
    rows, names = [], ["input", "classical", "0 references", "1 references", "another's 1"]
    for level in ("medium", "strong"):
        result = compare(method, pairs, level, judge.embed, counts=(0, 1))
        _grid(output / f"faces_lab_{level}.jpg", result, names, range(min(6, len(pairs))))
    many = [person for person in people if len(person.images) > 2]
    result = compare(method, many, "strong", judge.embed, counts=(0, 1, 2), classical=False)
    rows = [
        f"| {name} | {float(arm.scores['psnr'].mean()):.2f} | {float(arm.scores['identity'].mean()):.3f} |"
        for name, arm in result.arms.items()
    ]
    head = f"Two references, strong damage: the {len(many)} people of faces_lab with three photographs or more; too few for an interval."
    return [], ["\n".join([head, "", "| | PSNR, dB | face distance |", "|---|---|---|", *rows])], {}


def _old_faces(method: InstantRestore, data: Path, output: Path) -> Part:
    """Faces from old photographs: real damage, no original, no reference. Looked at, not scored."""
    if not (data / "old_faces" / "index.csv").is_file():
        return [], [], {}
    side = method.settings.image_size
    faces = torch.stack([crop(person.images[0], torch.eye(2, 3), side) for person in read_people(data / "old_faces")])
    after = restored(method, faces, [[] for _ in faces])
    pictures = [to_pil(picture) for pair in zip(faces, after, strict=True) for picture in pair]
    rows: list[Sequence[Image.Image | None]] = [pictures[i : i + 12] for i in range(0, len(pictures), 12)]
    write_contact_sheet(output / "old_faces.jpg", rows, ["before", "after"] * 6)
    return [], [], {}


def attention_mass(method: InstantRestore, result: Comparison, people: int = 50) -> float:
    """Mean attention mass, 0 to 1, within one cell of where the same spot of the face lies in the first reference; unmoved crops."""
    networks, settings = method.networks, method.settings
    damaged = result.arms["input"].pictures[:people]
    references = torch.stack([row[0] for row in result.references[:people]])
    unmoved = torch.eye(2, 3)
    probe = MatchLoss([unmoved] * len(damaged), [[unmoved]] * len(damaged), torch.Generator().manual_seed(0), queries=64, radius=1.0)
    with torch.inference_mode():
        layers = reference_keys_values(networks, references, _generators(len(damaged)), settings)
        x_t = noisy_latents(networks, damaged, _generators(len(damaged)), settings)
        restore_latents(networks, x_t, References(layers, [[i] for i in range(len(damaged))]), settings, probe=probe)
    return probe.mass()


def _generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(count)]


def _batch_gate(method: InstantRestore, result: Comparison) -> Gate:
    """A row with one reference, alone and beside rows with four: missing references must not be seen."""
    damaged = result.arms["input"].pictures[:3]
    mixed = restored(method, damaged, [result.references[0][:1], result.references[1], result.references[2][:2]])
    alone = restored(method, damaged[:1], [result.references[0][:1]])
    largest = float((mixed[:1] - alone).abs().max())
    return Gate("trained net: a row with fewer references in a mixed batch equals the row alone, < 1e-5", f"{largest:.1e}", largest < 1e-5)


def _gate(result: Comparison, claim: str, better: str, worse: str, measure: str) -> Gate:
    gain = result.gain(better, worse, measure)
    return Gate(claim, f"by {gain}", gain.low > 0)


def _ranks(result: Comparison) -> dict[str, tuple[float, float]]:
    """Rank-1 among galleries of 50 originals (mean over them) and among all, by arm."""
    count = len(result.originals)
    parts = [slice(start, start + 50) for start in range(0, count - 49, 50)] or [slice(0, count)]
    truth = result.original_embeddings
    ranks = {}
    for name, arm in result.arms.items():
        of_50 = sum(rank_1(arm.embeddings[part], truth[part]) for part in parts) / len(parts)
        ranks[name] = (of_50, rank_1(arm.embeddings, truth))
    return ranks


def _table(result: Comparison, ranks: Mapping[str, tuple[float, float]]) -> str:
    head = ["", *MEASURES.values(), "rank-1 of 50", f"of {len(result.originals)}"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, arm in result.arms.items():
        cells = [str(arm.mean(measure)) for measure in MEASURES]
        lines.append(f"| {name} | {' | '.join(cells)} | {ranks[name][0]:.2f} | {ranks[name][1]:.2f} |")
    return "\n".join(lines)


def _scores(prefix: str, result: Comparison, ranks: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    scores = {f"{prefix} {name} {measure}": arm.mean(measure).mean for name, arm in result.arms.items() for measure in MEASURES}
    return scores | {f"{prefix} {name} rank_1_of_50": rank[0] for name, rank in ranks.items()}


def _grid(path: Path, result: Comparison, names: Sequence[str], people: Sequence[int]) -> None:
    rows: list[Sequence[Image.Image | None]] = []
    for i in people:
        pictures = [*(result.arms[name].pictures[i] for name in names), result.originals[i], result.references[i][0]]
        rows.append([to_pil(picture) for picture in pictures])
    write_contact_sheet(path, rows, [*names, "original", "reference"])
