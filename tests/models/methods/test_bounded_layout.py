"""Regions on grids, and who may attend to whom."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.methods.bounded_layout import (
    BadRegion,
    Bounds,
    Box,
    Layout,
    cells_of,
    check_region,
    cross_allowed,
    disjoint,
    masks_of,
    packing,
    self_allowed,
)


def picture(cells_n: Tensor, columns: int = 4) -> list[str]:
    return ["".join("#" if cell else "." for cell in row) for row in cells_n.reshape(-1, columns).tolist()]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0.0, 0.0, 0.5, 0.5), ["##..", "##..", "....", "...."]),
        ((0.3, 0.1, 0.9, 0.7), [".###", ".###", ".###", "...."]),
        ((0.0, 0.0, 1.0, 1.0), ["####"] * 4),
        ((0.55, 0.0, 0.6, 1.0), ["..#."] * 4),  # no cell by rounding: the one that holds its middle
        ((0.98, 0.98, 1.0, 1.0), ["....", "....", "....", "...#"]),
    ],
)
def test_a_box_is_the_cells_between_its_rounded_edges_and_at_least_one(box: Box, expected: list[str]) -> None:
    assert picture(cells_of(box, (4, 4), 1)) == expected


def test_raw_rounding_leaves_a_thin_box_without_cells() -> None:
    assert not cells_of((0.55, 0.0, 0.6, 1.0), (4, 4), 0).any()
    assert cells_of((0.0, 0.0, 0.5, 0.5), (4, 4), 0).sum() == 4


def test_grids_need_not_be_square() -> None:
    assert picture(cells_of((0.0, 0.5, 0.5, 1.0), (2, 6), 1), 6) == ["......", "###..."]


def test_a_mask_is_the_cells_that_it_mostly_covers_and_at_least_one() -> None:
    mask = torch.zeros(16, 16)
    mask[:7, :8] = 1.0
    assert picture(cells_of(mask, (4, 4), 1)) == ["##..", "##..", "....", "...."]
    speck = torch.zeros(16, 16, dtype=torch.bool)
    speck[9, 14] = True
    assert picture(cells_of(speck, (4, 4), 1)) == ["....", "....", "...#", "...."]
    assert not cells_of(speck, (4, 4), 0).any()


@pytest.mark.parametrize(
    "box", [(0.5, 0.0, 0.5, 1.0), (0.6, 0.0, 0.5, 1.0), (-0.1, 0.0, 0.5, 1.0), (0.0, 0.0, 1.1, 1.0), (0.0, float("nan"), 1.0, 1.0)]
)
def test_a_box_without_area_or_outside_the_picture_is_refused(box: Box) -> None:
    with pytest.raises(BadRegion, match="of 'red star' is none"):
        check_region(box, 16, 16, "red star")


def test_an_empty_mask_and_one_of_another_aspect_ratio_are_refused() -> None:
    check_region(torch.ones(200, 199), 16, 16, "dog")
    with pytest.raises(BadRegion, match="empty"):
        check_region(torch.zeros(16, 16), 16, 16, "dog")
    with pytest.raises(BadRegion, match="32 x 16 px; give it the aspect ratio of the picture, 16 x 16"):
        check_region(torch.ones(16, 32), 16, 16, "dog")


LAYOUT = Layout(
    regions=[(0.0, 0.0, 0.5, 0.5), (0.5, 0.0, 1.0, 0.5)],
    subject_tokens=[[2, 3], [6, 7]],
    leading_tokens=[3, 7],
    filter_tokens=[1, 4, 5],
    end_token=8,
)
MASKS = masks_of(LAYOUT, (2, 2), 1)  # cell 0: first subject, 1: second, 2 and 3: background


def test_cells_see_their_own_subject_and_the_background_sees_and_is_seen_by_all() -> None:
    assert picture(self_allowed(MASKS).flatten()) == ["#.##", ".###", "####", "####"]


def test_overlapping_regions_join_in_their_shared_cells() -> None:
    masks = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0]], dtype=torch.bool)
    assert picture(self_allowed(masks).flatten()) == ["##.#", "####", ".###", "####"]
    assert not disjoint(masks)
    assert disjoint(MASKS)


def test_tokens_are_seen_by_their_subjects_cells_and_function_words_by_none() -> None:
    assert picture(cross_allowed(MASKS, LAYOUT, 10, guidance=False).flatten(), 10) == [
        "#.##....##",
        "#.....####",
        "#........#",
        "#........#",
    ]


def test_during_guidance_the_background_sees_every_subjects_tokens_and_the_end() -> None:
    assert picture(cross_allowed(MASKS, LAYOUT, 10, guidance=True).flatten(), 10) == [
        "#.##....##",
        "#.....####",
        "#.##..####",
        "#.##..####",
    ]


def test_packing_gives_every_region_its_own_keys_and_the_background_all() -> None:
    packed = packing([MASKS, torch.zeros(0, 4, dtype=torch.bool)])
    assert packed.queries.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert packed.keys.tolist() == [0, 2, 3, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7]
    assert (packed.query_lens, packed.key_lens) == ([1, 1, 2, 4], [3, 3, 4, 4])


def test_refined_masks_hold_on_every_grid_while_regions_stay() -> None:
    bounds = Bounds(LAYOUT)
    before = bounds.self_allowed((4, 4))
    assert bounds.masks((4, 4)).equal(bounds.regions((4, 4)))
    bounds.refine(torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0]], dtype=torch.bool), (2, 2))
    assert picture(bounds.masks((4, 4))[0]) == ["##..", "##..", "##..", "##.."]
    assert picture(bounds.regions((4, 4))[0]) == ["##..", "##..", "....", "...."]
    assert not before.equal(bounds.self_allowed((4, 4)))
