"""Drawn people: known attributes, steady eyes, the same picture every time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from models.lab.contact_sheet import contact_sheet, write_contact_sheet
from models.lab.people import CONTINUOUS, EYE_COLOURS, GLASSES, HAIR_COLOURS, HAIR_STYLES, Identity, View, random_identity, random_view
from models.lab.portraits import draw_portrait


def somebody(seed: int = 0) -> Identity:
    return random_identity(torch.Generator().manual_seed(seed))


def difference(one: Identity, other: Identity, view: View | None = None) -> float:
    a, b = (np.asarray(draw_portrait(person, view or View(), 64).image, dtype=float) for person in (one, other))
    return float(np.abs(a - b).mean())


def test_a_person_has_seventeen_continuous_factors_and_two_marks() -> None:
    person = somebody()
    assert len(CONTINUOUS) == len(person.continuous()) == 17
    assert all(0 <= value <= 1 for value in person.continuous())
    assert len(person.marks) == 2


def test_the_same_arguments_draw_the_same_picture() -> None:
    view = random_view(torch.Generator().manual_seed(1))
    assert draw_portrait(somebody(), view, 64).image.tobytes() == draw_portrait(somebody(), view, 64).image.tobytes()
    assert somebody(3) == somebody(3) != somebody(4)


@pytest.mark.parametrize("side", [64, 128])
def test_eyes_stand_where_aligned_photographs_have_them(side: int) -> None:
    portrait = draw_portrait(somebody(), random_view(torch.Generator().manual_seed(2)), side)
    assert portrait.image.size == (side, side)
    assert_close(portrait.landmarks[:2], torch.tensor([[0.365, 0.45], [0.635, 0.45]]) * side)
    x0, y0, x1, y1 = portrait.box
    assert 0 <= x0 < x1 <= side
    assert 0 <= y0 < y1 <= side
    assert (portrait.landmarks >= torch.tensor([x0, y0])).all()
    assert (portrait.landmarks <= torch.tensor([x1, y1])).all()


@pytest.mark.parametrize("factor", CONTINUOUS)
def test_every_continuous_factor_changes_the_picture(factor: str) -> None:
    bald_free = replace(somebody(), hair_style="parted", glasses="none", beard="none")
    assert difference(replace(bald_free, **{factor: 0.0}), replace(bald_free, **{factor: 1.0})) > 0.03


@pytest.mark.parametrize(
    ("attribute", "values"),
    [
        ("hair_style", HAIR_STYLES),
        ("hair_colour", tuple(HAIR_COLOURS)),
        ("eye_colour", tuple(EYE_COLOURS)),
        ("glasses", tuple(dict.fromkeys(GLASSES))),
        ("beard", ("none", "stubble", "moustache", "goatee", "full")),
    ],
)
def test_every_value_of_a_discrete_factor_looks_different(attribute: str, values: tuple[str, ...]) -> None:
    base = replace(somebody(), hair_style="parted", glasses="none", beard="none")
    pictures = [draw_portrait(replace(base, **{attribute: value}), View(), 64).image.tobytes() for value in values]
    assert len(set(pictures)) == len(values)


def test_hair_has_the_colour_that_its_name_says() -> None:
    red = draw_portrait(replace(somebody(), hair_style="fringe", hair_colour="red"), View(light_contrast=0.1), 64).image
    r, g, b = np.asarray(red, dtype=float)[12:16, 28:36].mean(axis=(0, 1))
    assert r > 1.5 * g > 1.5 * b


def test_a_person_looks_more_like_themselves_in_another_view_than_like_others() -> None:
    views = [View(), View(yaw=0.3, smile=0.4)]
    people = [somebody(seed) for seed in range(8)]
    first, second = (torch.stack([torch.tensor(np.asarray(draw_portrait(p, view, 64).image)).float() for p in people]) for view in views)
    nearest = torch.cdist(first.flatten(1), second.flatten(1)).argmin(1)
    assert nearest.tolist() == list(range(8))


def test_a_contact_sheet_has_a_cell_for_every_picture(tmp_path: Path) -> None:
    picture = draw_portrait(somebody(), View(), 64).image
    write_contact_sheet(tmp_path / "sub" / "sheet.png", [[picture, None], [picture, picture]], titles=["before", "after"], cell=32)
    with Image.open(tmp_path / "sub" / "sheet.png") as sheet:
        assert sheet.size == (64, 16 + 64)
        assert sheet.getpixel((40, 20)) == (255, 255, 255)
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([])
