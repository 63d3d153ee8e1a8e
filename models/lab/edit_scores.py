"""Edits of the drawn world whose outcome can be read: one attribute of a source changed in its caption, the rest to be kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.bases import FlowBase
from models.lab.captions import caption
from models.lab.generation_scores import pixels
from models.lab.scenes import COLOURS, PLACES, RADIUS, SHAPES, Scene, Thing
from models.lab.world import PORTRAIT_VALUES, UNSEEN, Subject, draw, random_portrait, random_scene
from models.methods.flow_rows import Prompts, Row, velocity_field
from models.methods.flow_schedule import denoise, shift_of, sigmas
from models.methods.stable_flow import Request, Result, StableFlow
from models.nets.reader import THING_VALUES, Reader, crops
from models.sampling import noise, pack, unpack

REACH = 0.27  # half a side of where an object may lie around a place, as a fraction of the picture
OBJECT = sum(RADIUS) / 2  # half an object's extent
SOURCES_A_CALL = 16
EDITABLE = ("hair_colour", "glasses", "shirt", "background")  # of portraits
FIRST_SOURCE = UNSEEN + 10_000  # no prompt that layers were scored on


@dataclass(frozen=True)
class Edit:
    """One attribute of picture `number` changed; of a scene, one of its objects, `before` the change."""

    number: int
    source: Subject
    edited: Subject
    attribute: str
    value: str
    before: Thing | None = None

    def request(self, *, real: bool = False) -> Request:
        """The edit of the generated picture, or of the drawn one."""
        picture = {"image": pixels(draw(self.source, self.number).image), "image_key": f"drawing {self.number}"} if real else {}
        return Request(source_prompt=caption(self.source), edit_prompt=caption(self.edited), source_seed=self.number, **picture)


@dataclass(frozen=True)
class EditScores:
    """A value an edit: `preserved`, PSNR in dB against the source outside the place of the object that changes; `succeeded`, 1 where the reader
    finds what was asked for. NaN where the source does not show what is to be changed."""

    preserved: Tensor
    succeeded: Tensor

    def by_source(self, edits: Sequence[Edit]) -> EditScores:
        """Means over the edits of each source: what a bootstrap may draw from. NaN where no edit of a source has a value."""
        _numbers, of = torch.unique_consecutive(torch.tensor([edit.number for edit in edits]), return_inverse=True)
        known = (~self.preserved.isnan()).float()
        count = torch.zeros(int(of.max()) + 1).index_add(0, of, known)
        return EditScores(
            *(torch.zeros(len(count)).index_add(0, of, x.nan_to_num() * known) / count for x in (self.preserved, self.succeeded))
        )


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
            edits.append(Edit(number, scene, Scene(things, scene.background), attribute, value, scene.things[at]))
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
            edits.append(Edit(number, portrait, replace(portrait, **{names[at]: value}), names[at], value))
    return edits


def run(method: StableFlow, edits: Sequence[Edit], *, real: bool = False) -> list[Result]:
    """The results of all edits, so many sources a call that it stays in memory."""
    numbers = list(dict.fromkeys(edit.number for edit in edits))
    results = []
    for start in range(0, len(numbers), SOURCES_A_CALL):
        chosen = set(numbers[start : start + SOURCES_A_CALL])
        results += method([edit.request(real=real) for edit in edits if edit.number in chosen])
    return results


@torch.inference_mode()
def score(reader: Reader, edits: Sequence[Edit], edited_E3HW: Tensor, sources_E3HW: Tensor) -> EditScores:
    """Compare edited pictures with their sources and read what was to change.

    The source's object is looked for in all nine places, since a base may put it elsewhere than its caption says. The edit has succeeded where the
    new value is read in that place: an object that moves has not been edited. Preservation leaves the place out.
    """
    preserved, succeeded = [], []
    for edit, edited, source in zip(edits, edited_E3HW, sources_E3HW, strict=True):
        kept = torch.ones(source.shape[-2:], dtype=torch.bool)
        if edit.before is None:
            succeeded.append(float(reader.read(edited[None], "portrait")[0][edit.attribute] == edit.value))
        else:
            place = _place(reader, source, edit.before)
            if place is None:
                preserved.append(torch.tensor(torch.nan))
                succeeded.append(torch.nan)
                continue
            x0, y0, x1, y1 = (min(max(round(edge * len(kept)), 0), len(kept)) for edge in _box(place, REACH))
            kept[y0:y1, x0:x1] = False
            read = reader.read(crops(edited[None], [_box(place, OBJECT)]), "thing")[0]
            succeeded.append(float(read[edit.attribute] == edit.value))
        error = (edited - source).square().mean(0)[kept].mean() / 4
        preserved.append(-10 * error.clamp(min=1e-10).log10())
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


def _place(reader: Reader, image_3HW: Tensor, thing: Thing) -> str | None:
    """Where a picture shows an object of this shape and colour, most clearly if in several places; None: nowhere."""
    logits = reader(crops(image_3HW.expand(len(PLACES), -1, -1, -1), [_box(place, OBJECT) for place in PLACES]), "thing")
    shown, certain = torch.ones(len(PLACES), dtype=torch.bool), torch.ones(len(PLACES))
    for name, value in (("shape", thing.shape), ("colour", thing.colour)):
        index = THING_VALUES[name].index(value)
        shown &= logits[name].argmax(1) == index
        certain *= logits[name].softmax(1)[:, index]
    return list(PLACES)[int((certain * shown).argmax())] if shown.any() else None


def _box(place: str, reach: float) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 as fractions: a square around a place."""
    x, y = PLACES[place]
    return x - reach, y - reach, x + reach, y + reach


def _other(values: Sequence[str], taken: set[str], generator: torch.Generator) -> str:
    free = [value for value in values if value not in taken]
    return free[int(torch.randint(len(free), (), generator=generator))]
