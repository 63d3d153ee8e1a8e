from __future__ import annotations

from dataclasses import fields, replace
from math import nan

import pytest
import torch
from torch import Tensor

from models.catalog import lab_path
from models.lab.edit_scores import FIRST_SOURCE, Edit, EditScores, portrait_edits, scene_edits, score
from models.lab.generation_scores import pixels
from models.lab.scenes import Scene
from models.lab.world import Portrait, draw
from models.nets.reader import Reader


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader.load(lab_path("reader"))


def drawn(edits: list[Edit], *, edited: bool) -> Tensor:
    return torch.stack([pixels(draw(edit.edited if edited else edit.source, edit.number).image) for edit in edits])


def test_an_edit_changes_one_attribute_of_one_object_and_its_caption_says_so() -> None:
    for edit in scene_edits(20):
        assert isinstance(edit.source, Scene)
        assert isinstance(edit.edited, Scene)
        assert edit.source.background == edit.edited.background
        changed = [(before, after) for before, after in zip(edit.source.things, edit.edited.things, strict=True) if before != after]
        ((before, after),) = changed
        assert replace(before, **{edit.attribute: edit.value}) == after
        request = edit.request()
        assert edit.value in request.edit_prompt.split()
        assert edit.value not in request.source_prompt.split()
    assert [edit.attribute for edit in scene_edits(2)] == ["colour", "shape"] * 2


def test_a_portraits_edit_changes_one_attribute_of_the_same_person() -> None:
    edits = portrait_edits(20)
    for edit in edits:
        assert isinstance(edit.source, Portrait)
        assert isinstance(edit.edited, Portrait)
        different = [f.name for f in fields(Portrait) if getattr(edit.source, f.name) != getattr(edit.edited, f.name)]
        assert different == [edit.attribute]
    assert len({(edit.number, edit.attribute) for edit in edits}) == 40


def test_a_perfect_edit_keeps_everything_outside_and_is_seen_to_succeed(reader: Reader) -> None:
    edits = scene_edits(12)
    perfect = score(reader, edits, drawn(edits, edited=True), drawn(edits, edited=False))
    assert perfect.preserved.min() > 40
    assert perfect.succeeded.mean() > 0.9
    idle = score(reader, edits, drawn(edits, edited=False), drawn(edits, edited=False))
    assert idle.succeeded.mean() < 0.1
    other = score(reader, edits, drawn(edits, edited=True).flip(0), drawn(edits, edited=False))
    assert other.preserved.mean() < 25


def test_portraits_are_read_as_a_whole(reader: Reader) -> None:
    edits = portrait_edits(5)
    perfect = score(reader, edits, drawn(edits, edited=True), drawn(edits, edited=False))
    idle = score(reader, edits, drawn(edits, edited=False), drawn(edits, edited=False))
    assert perfect.succeeded.mean() > idle.succeeded.mean() + 0.6
    assert perfect.preserved.mean() < idle.preserved.mean()


def test_scores_are_averaged_over_the_edits_of_a_source() -> None:
    edits = scene_edits(2)
    scores = EditScores(torch.tensor([1.0, 3.0, 10.0, 20.0]), torch.tensor([0.0, 1.0, 1.0, 1.0])).by_source(edits)
    assert (scores.preserved.tolist(), scores.succeeded.tolist()) == ([2, 15], [0.5, 1])
    assert edits[0].number == FIRST_SOURCE
    some = EditScores(torch.tensor([nan, 3.0, nan, nan]), torch.tensor([nan, 1.0, nan, nan])).by_source(edits)
    assert (some.preserved[0], some.succeeded[0]) == (3, 1)
    assert some.preserved[1].isnan()


def test_an_object_is_found_wherever_it_is_and_an_edit_of_what_is_not_there_is_left_out(reader: Reader) -> None:
    (edit, _other) = scene_edits(1)
    assert isinstance(edit.source, Scene)
    places = [thing.place for thing in edit.source.things]
    moved = Scene(tuple(replace(t, place=p) for t, p in zip(edit.source.things, places[::-1], strict=True)), edit.source.background)
    assert edit.before is not None
    colour, shape = edit.before.colour, edit.before.shape
    changed = Scene(tuple(replace(t, colour=edit.value) if t.shape == shape else t for t in moved.things), moved.background)
    before, after = (pixels(draw(scene, edit.number).image)[None] for scene in (moved, changed))
    found = score(reader, [edit], after, before)
    assert found.succeeded.tolist() == [1]
    assert found.preserved.item() > 40
    without = Scene(tuple(t for t in edit.source.things if t.colour != colour), edit.source.background)
    assert score(reader, [edit], after, pixels(draw(without, edit.number).image)[None]).preserved.isnan().all()
