"""The drawn world: the same number is the same picture, and captions, boxes and masks tell the truth about it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.lab.captions import MAX_TOKENS, caption, of_thing, tokenizer, words
from models.lab.scenes import COLOURS, PAIRS, PLACES, SHAPES, TRIPLES, Scene, Thing
from models.lab.world import Portrait, attributes, draw, random_scene, subject
from models.lab.world_sheet import world_sheet

NUMBERS = range(40)


def test_a_number_is_always_the_same_picture() -> None:
    for number in (0, 3, 17):
        assert subject(number) == subject(number)
        assert np.array_equal(draw(subject(number), number).image, draw(subject(number), number).image)
    assert subject(1) != subject(2)


def test_the_kind_asked_for_is_drawn() -> None:
    assert all(isinstance(subject(number, "portrait"), Portrait) for number in NUMBERS)
    assert all(isinstance(subject(number, "scene"), Scene) for number in NUMBERS)
    assert {type(subject(number)) for number in NUMBERS} == {Portrait, Scene}


def test_objects_have_their_colour_inside_their_mask_and_lie_in_their_box() -> None:
    for number in NUMBERS:
        scene = subject(number, "scene")
        assert isinstance(scene, Scene)
        drawing = draw(scene, number, size=64)
        pixels = np.asarray(drawing.image).astype(int)
        for thing, box, mask in zip(scene.things, drawing.boxes, drawing.masks, strict=True):
            assert np.abs(np.median(pixels[mask], axis=0) - COLOURS[thing.colour]).max() < 4
            ys, xs = np.nonzero(mask)
            x0, y0, x1, y1 = (64 * side for side in box)
            assert x0 - 1 <= xs.min() <= xs.max() <= x1
            assert y0 - 1 <= ys.min() <= ys.max() <= y1
            assert (x0 + x1) / 128 == pytest.approx(PLACES[thing.place][0], abs=0.05)


def test_objects_of_one_scene_do_not_overlap() -> None:
    assert len(PAIRS) >= 8
    assert len(TRIPLES) >= 4
    for number in NUMBERS:
        masks = draw(subject(number, "scene"), number).masks
        assert masks.sum(axis=0).max() == 1


def test_scenes_of_one_shape_differ_in_colour() -> None:
    scene = random_scene(3, torch.Generator().manual_seed(0), same_shape=True)
    assert len({thing.shape for thing in scene.things}) == 1
    assert len({thing.colour for thing in scene.things}) == 3


def test_a_whole_caption_names_every_attribute() -> None:
    portrait = subject(3, "portrait")
    assert isinstance(portrait, Portrait)
    for value in attributes(portrait).values():
        assert value in caption(portrait)
    scene = Scene((Thing("star", "orange", "top left"), Thing("circle", "red", "middle")), "snow")
    assert caption(scene) == "an orange star on the top left and a red circle in the middle in the snow"
    assert of_thing(scene.things[1], place=False) == "a red circle"


def test_captions_drop_attributes_at_random_but_never_shapes() -> None:
    generator = torch.Generator().manual_seed(0)
    scene = subject(1, "scene")
    assert isinstance(scene, Scene)
    said = {caption(scene, generator) for _ in range(40)}
    assert len(said) > 4
    assert all(thing.shape in text for text in said for thing in scene.things)


def test_every_caption_is_made_of_known_words_and_fits() -> None:
    tokens = tokenizer()
    assert tokens.pad_token_id == tokens.eos_token_id
    for number in range(300):
        ids = tokens(caption(subject(number))).input_ids
        assert tokens.unk_token_id not in ids
        assert len(ids) <= MAX_TOKENS
    assert tokens("a zebra").input_ids[2] == tokens.unk_token_id
    assert set(SHAPES) < set(words())


def test_a_contact_sheet_shows_the_pictures_whose_captions_it_returns(tmp_path: Path) -> None:
    told = world_sheet(tmp_path / "sheet.png", rows=2, columns=3, first=5, kind="scene")
    assert told == [caption(subject(number, "scene")) for number in range(5, 11)]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width / sheet.height == pytest.approx(3 / 2)
        corner = np.asarray(sheet.convert("RGB").resize((96, 64), Image.Resampling.BOX))[:32, :32].astype(int)
    drawn = np.asarray(draw(subject(5, "scene"), 5).image).astype(int)
    assert np.abs(corner - drawn).mean() < 12
