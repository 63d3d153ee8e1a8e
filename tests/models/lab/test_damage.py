"""Damage takes what its level says, from a generator."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from models.lab.damage import LEVELS, Damage, blur, degrade, from_pil, to_pil
from models.lab.people import View, random_identity
from models.lab.portraits import draw_portrait
from models.metrics import psnr


def portrait(side: int = 64) -> torch.Tensor:
    return from_pil(draw_portrait(random_identity(torch.Generator().manual_seed(5)), View(), side).image)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_stronger_levels_leave_less_of_a_face() -> None:
    face = portrait()
    left = [torch.stack([psnr(degrade(face, level, seeded(i))[None], face[None])[0] for i in range(5)]).mean() for level in LEVELS]
    mild, medium, strong, _anything = left
    assert mild > medium + 1
    assert medium > strong + 1


@pytest.mark.parametrize("level", list(LEVELS))
def test_the_same_generator_gives_the_same_damage_and_another_gives_other_damage(level: str) -> None:
    face = portrait()
    assert_close(degrade(face, level, seeded(1)), degrade(face, level, seeded(1)), atol=0, rtol=0)
    assert not torch.equal(degrade(face, level, seeded(1)), degrade(face, level, seeded(2)))


@pytest.mark.parametrize("side", [32, 64, 96])
def test_a_damaged_picture_keeps_its_size_and_range(side: int) -> None:
    damaged = degrade(portrait(side), "strong", seeded())
    assert damaged.shape == (3, side, side)
    assert damaged.abs().max() <= 1


def test_a_level_takes_the_same_detail_at_twice_the_size() -> None:
    gentle = Damage(shrink=(8, 8), jpeg=None, blur=(0.1, 0.1), noise=(0, 0))
    small, large = (degrade(portrait(side), gentle, seeded()) for side in (64, 128))
    halved = torch.nn.functional.avg_pool2d(large, 2)
    assert psnr(halved[None], small[None]) > 28


def test_blur_keeps_the_mean_and_spreads_more_along_its_angle() -> None:
    point = torch.zeros(1, 33, 33)
    point[0, 16, 16] = 1
    spread = blur(point, 4.0, 1.0, angle=0.0)[0]
    assert_close(spread.sum(), torch.tensor(1.0), atol=1e-4, rtol=0)
    assert spread[16, 20] > 5 * spread[20, 16]


def test_an_unknown_level_or_an_uncropped_picture_is_refused_with_advice() -> None:
    with pytest.raises(ValueError, match="choose one of mild, medium, strong"):
        degrade(portrait(), "severe", seeded())
    with pytest.raises(ValueError, match="crop the face first"):
        degrade(torch.zeros(3, 40, 64), "mild", seeded())


def test_pictures_survive_the_way_through_eight_bits() -> None:
    face = portrait()
    assert_close(from_pil(to_pil(face)), face, atol=1e-6, rtol=0)
