"""Edits of the drawn world whose outcome can be read: one attribute of a source changed in its caption, the rest to be kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.bases import FlowBase
from models.lab.captions import caption
from models.lab.generation_scores import pixels
from models.lab.scenes import COLOURS, PLACES, SHAPES, Scene
from models.lab.world import PORTRAIT_VALUES, UNSEEN, Subject, draw, random_portrait, random_scene
from models.methods.flow_rows import Prompts, Row, velocity_field
from models.methods.flow_schedule import denoise, shift_of, sigmas
from models.methods.stable_flow import Request, Result, StableFlow
from models.nets.reader import Reader, crops
from models.sampling import noise, pack, unpack

REACH = 0.27  # half a side of where an object may lie around its named place, as a fraction of the picture
SOURCES_A_CALL = 16
EDITABLE = ("hair_colour", "glasses", "shirt", "background")  # of portraits
FIRST_SOURCE = UNSEEN + 10_000  # no prompt that layers were scored on


@dataclass(frozen=True)
class Edit:
    """One attribute of picture `number` changed. `region` (x0, y0, x1, y1 as fractions): where the change may show; None: anywhere."""

    number: int
    source: Subject
    edited: Subject
    attribute: str
    value: str
    region: tuple[float, float, float, float] | None

    def request(self, *, real: bool = False) -> Request:
        """The edit of the generated picture, or of the drawn one."""
        picture = {"image": pixels(draw(self.source, self.number).image), "image_key": f"drawing {self.number}"} if real else {}
        return Request(source_prompt=caption(self.source), edit_prompt=caption(self.edited), source_seed=self.number, **picture)


@dataclass(frozen=True)
class EditScores:
    """A value an edit: `preserved`, PSNR in dB outside its region against the source; `succeeded`, 1 where the reader finds the new value."""

    preserved: Tensor
    succeeded: Tensor

    def by_source(self, edits: Sequence[Edit]) -> EditScores:
        """Means over the edits of each source: what a bootstrap may draw from."""
        _numbers, of = torch.unique_consecutive(torch.tensor([edit.number for edit in edits]), return_inverse=True)
        count = torch.bincount(of)
        return EditScores(*(torch.zeros(len(count)).index_add(0, of, x) / count for x in (self.preserved, self.succeeded)))


def scene_edits(sources: int, first: int = FIRST_SOURCE) -> list[Edit]:
    """Two edits of each two-object scene: another colour for its first object, another shape for its second."""
    edits = []
    for number in range(first, first + sources):
        generator = torch.Generator().manual_seed(number)
        scene = random_scene(2, generator)
        for at, attribute, values in ((0, "colour", tuple(COLOURS)), (1, "shape", SHAPES)):
            taken = {getattr(thing, attribute) for thing in scene.things}
            value = _other(values, taken, generator)
            things = tuple(replace(thing, **{attribute: value}) if i == at else thing for i, thing in enumerate(scene.things))
            x, y = PLACES[scene.things[at].place]
            region = (max(0.0, x - REACH), max(0.0, y - REACH), min(1.0, x + REACH), min(1.0, y + REACH))
            edits.append(Edit(number, scene, Scene(things, scene.background), attribute, value, region))
    return edits


def portrait_edits(sources: int, first: int = FIRST_SOURCE) -> list[Edit]:
    """Two edits of each portrait, of two different attributes."""
    edits = []
    for number in range(first, first + sources):
        generator = torch.Generator().manual_seed(number)
        portrait = random_portrait(generator)
        names = [name for name in EDITABLE if portrait.hair != "bald" or name != "hair_colour"]
        for at in torch.randperm(len(names), generator=generator)[:2].tolist():
            value = _other(tuple(PORTRAIT_VALUES[names[at]]), {getattr(portrait, names[at])}, generator)
            edits.append(Edit(number, portrait, replace(portrait, **{names[at]: value}), names[at], value, None))
    return edits


def run(method: StableFlow, edits: Sequence[Edit], *, real: bool = False) -> list[Result]:
    """The results of all edits, so many sources a call that it stays in memory."""
    numbers = list(dict.fromkeys(edit.number for edit in edits))
    results = []
    for start in range(0, len(numbers), SOURCES_A_CALL):
        chosen = set(numbers[start : start + SOURCES_A_CALL])
        results += method([edit.request(real=real) for edit in edits if edit.number in chosen])
    return results


def score(reader: Reader, edits: Sequence[Edit], edited_E3HW: Tensor, sources_E3HW: Tensor) -> EditScores:
    """Compare edited pictures with their sources and read what was to change."""
    preserved, succeeded = [], []
    for edit, edited, source in zip(edits, edited_E3HW, sources_E3HW, strict=True):
        outside = _outside(edit.region, edited.shape[-1])
        error = (edited - source).square().mean(0)[outside].mean() / 4
        preserved.append(-10 * error.clamp(min=1e-10).log10())
        if edit.region is None:
            read = reader.read(edited[None], "portrait")[0]
        else:
            at = [thing.place for thing in _scene(edit).things].index(_place(edit))
            read = reader.read(crops(edited[None], [draw(edit.source, edit.number).boxes[at]]), "thing")[0]
        succeeded.append(float(read[edit.attribute] == edit.value))
    return EditScores(torch.stack(preserved), torch.tensor(succeeded))


@torch.inference_mode()
def noised_and_denoised(
    base: FlowBase, edits: Sequence[Edit], sources_E3HW: Tensor, strength: float, steps: int, guidance: float
) -> Tensor:
    """SDEdit (Meng et al. 2022) on the same base, (E,3,H,W): the source noised to sigma = `strength`, then denoised by the edit prompt."""
    cells = (sources_E3HW.shape[-2] // base.factor, sources_E3HW.shape[-1] // base.factor)
    schedule = sigmas(steps, shift_of(base.scheduler.config, cells[0] * cells[1] // 4))
    begin = min(range(steps), key=lambda i: abs(schedule[i] - strength))
    found = []
    for start in range(0, len(edits), 2 * SOURCES_A_CALL):
        chunk = edits[start : start + 2 * SOURCES_A_CALL]
        prompts, numbers = Prompts.encode(base, [caption(edit.edited) for edit in chunk])
        rows = [Row(numbers[caption(edit.edited)], guidance, i) for i, edit in enumerate(chunk)]
        z_END = pack(base.encode(sources_E3HW[start : start + len(chunk)])).float()
        noise_END = pack(torch.stack([noise((base.latent_channels, *cells), edit.number + 2**41) for edit in chunk]))
        with velocity_field(base, prompts, rows, cells, true_cfg=True) as (velocity, _rows):
            x_END = denoise(velocity, z_END + schedule[begin] * (noise_END - z_END), schedule[begin:])
        found.append(base.decode(unpack(x_END.to(base.dtype), *cells)).float())
    return torch.cat(found)


def _scene(edit: Edit) -> Scene:
    assert isinstance(edit.source, Scene)
    return edit.source


def _place(edit: Edit) -> str:
    """The place of the object that changes."""
    assert isinstance(edit.edited, Scene)
    pairs = zip(_scene(edit).things, edit.edited.things, strict=True)
    return next(before.place for before, after in pairs if before != after)


def _outside(region: tuple[float, float, float, float] | None, side: int) -> Tensor:
    """(side, side) bool: pixels that are to be kept."""
    kept = torch.ones(side, side, dtype=torch.bool)
    if region is not None:
        x0, y0, x1, y1 = (round(edge * side) for edge in region)
        kept[y0:y1, x0:x1] = False
    return kept


def _other(values: Sequence[str], taken: set[str], generator: torch.Generator) -> str:
    free = [value for value in values if value not in taken]
    return free[int(torch.randint(len(free), (), generator=generator))]
