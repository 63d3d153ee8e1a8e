"""Crops know where their pixels came from, and the attention losses look at the right cells."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from models.training.losses import LandmarkLoss, MatchLoss, landmark_cells, landmark_target, pixel_loss, structure_loss
from models.training.views import Colours, Moves, cell_centres, corresponding, crop, face_weight, random_factors, random_placement, recolour

UNMOVED = torch.eye(2, 3)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spot(x: int, y: int, side: int = 64) -> torch.Tensor:
    image = torch.zeros(3, side, side, dtype=torch.uint8)
    image[:, y - 2 : y + 3, x - 2 : x + 3] = 255
    return image


def brightest(image: torch.Tensor) -> torch.Tensor:
    weights = (image[0] + 1).flatten()
    return (cell_centres(image.shape[-1]) * weights[:, None]).sum(0) / weights.sum()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("flip", [False, True])
def test_a_spot_is_found_again_in_another_crop(seed: int, flip: bool) -> None:
    generator, moves = seeded(seed), Moves(rotation=0.2, scale=0.1, shift=0.1)
    one, other = (random_placement(moves, flip, generator) for _ in range(2))
    image = spot(30, 40)
    in_one, in_other = (brightest(crop(image, placement, 64)) for placement in (one, other))
    assert_close(corresponding(in_one[None], one, other)[0], in_other, atol=0.01, rtol=0)


def test_an_unmoved_crop_is_the_picture_and_recolouring_by_ones_changes_nothing() -> None:
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=seeded())
    same = crop(image, UNMOVED, 32)
    assert_close(same, image.float() / 127.5 - 1, atol=1e-5, rtol=0)
    assert_close(recolour(same, torch.ones(6)), same, atol=1e-5, rtol=0)
    factors = random_factors(Colours(brightness=0.2, contrast=0.2, saturation=0.2, gain=0.1), seeded())
    assert ((factors - 1).abs() <= 0.2).all()


def test_the_face_weighs_more_than_the_background() -> None:
    weight = face_weight(UNMOVED, 32, background=0.3)[0]
    assert weight[16, 16] > 0.99
    assert weight[0, 0] < 0.31


def test_cells_are_counted_row_by_row() -> None:
    assert landmark_cells(torch.tensor([[-0.625 + 2 * 0.5 / 16 - 0.0625, 0.4375]]), 16).tolist() == [11 * 16 + 3]
    target = landmark_target(torch.tensor([[2 * 3.5 / 16 - 1, 2 * 11.5 / 16 - 1]]), 16)
    assert int(target.argmax()) == 179  # y * size + x, not 59


def test_match_loss_falls_when_queries_look_at_their_own_cell() -> None:
    cells = 4
    keys = 20 * torch.eye(cells * cells)[None, :, None]  # (1, N, H=1, D=N)
    looking, elsewhere = (MatchLoss([UNMOVED], [[UNMOVED]], seeded(), queries=8, radius=0.5) for _ in range(2))
    looking(0, keys, keys, [16])
    elsewhere(0, keys.roll(5, dims=1), keys, [16])
    assert looking.loss() < 0.01 < 1 < elsewhere.loss()
    assert looking.mass() > 0.99


def test_uniform_attention_has_the_mass_of_the_cells_in_reach() -> None:
    probe = MatchLoss([UNMOVED], [[UNMOVED, UNMOVED]], seeded(), queries=16, radius=0.5)
    probe(0, torch.zeros(1, 16, 2, 4), torch.zeros(1, 32, 2, 4), [32])
    assert_close(probe.loss(), torch.tensor(-math.log(1 / 16 + 1e-6)))


def test_rows_without_references_ask_nothing_of_attention() -> None:
    for probe in (MatchLoss([UNMOVED], [[]], seeded()), LandmarkLoss(0, [torch.zeros(5, 2)], [[]])):
        probe(0, torch.zeros(1, 16, 1, 4), torch.zeros(1, 16, 1, 4), [16])
        assert float(probe.loss()) == 0


def test_landmark_loss_prefers_attention_on_the_landmark_and_takes_one_layer() -> None:
    centre = torch.tensor([[0.125, 0.125]])
    keys = 40 * torch.eye(64)[None, :, None]
    right, wrong = (LandmarkLoss(2, [centre], [[centre]]) for _ in range(2))
    right(1, keys, keys, [64])
    assert not right.losses
    right(2, keys, keys, [64])
    wrong(2, keys.roll(9, dims=1), keys, [64])
    assert right.loss() < 0.01 < wrong.loss()


def test_pixel_and_structure_losses_are_zero_for_equal_pictures_only() -> None:
    original = torch.rand(2, 3, 64, 64, generator=seeded()) * 2 - 1
    weight = torch.ones(2, 1, 64, 64)
    assert float(pixel_loss(original, original, weight, 0.5)) == 0
    assert float(structure_loss(original, original)) < 1e-4
    shifted = original.roll(3, dims=-1)
    assert float(pixel_loss(shifted, original, weight, 0.5)) > float(pixel_loss(shifted, original, weight, 0.0)) > 0.1
    assert float(structure_loss(shifted, original)) > 0.2
