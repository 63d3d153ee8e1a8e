"""Masks from attention: hand-made cases on a 4 x 4 grid."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.methods.bounded_refinement import KMeansClusters, Maps, assign, refined_masks, subject_maps


def cells(*rows: str) -> Tensor:
    """(n,) labels from digits."""
    return torch.tensor([int(digit) for row in rows for digit in row])


QUARTERS = cells("0011", "0011", "2233", "2233")
LEFT, RIGHT = cells("1100", "1100", "0000", "0000").bool(), cells("0011", "0011", "0000", "0000").bool()
REGIONS = torch.stack([LEFT, RIGHT])


def maps(first: dict[int, float], second: dict[int, float]) -> Tensor:
    """(16,2): a value a quarter, 0 elsewhere."""
    found = torch.zeros(16, 2)
    for subject, values in enumerate((first, second)):
        for quarter, value in values.items():
            found[quarter == QUARTERS, subject] = value
    return found


def test_each_cluster_goes_to_the_subject_that_it_scores_highest_for() -> None:
    found = assign(QUARTERS, maps({0: 1.0, 2: 0.5}, {1: 0.9, 2: 0.4, 3: 0.8}), REGIONS)
    # quarter 2: min(sum, |c|) = min(6, 4) -> 0.5 for the first, min(8.4, 4) -> 0.4 for the second
    assert found[0].equal((QUARTERS == 0) | (QUARTERS == 2))
    assert found[1].equal((QUARTERS == 1) | (QUARTERS == 3))


def test_a_small_subject_is_measured_by_its_own_sum() -> None:
    found = assign(QUARTERS, maps({2: 0.1}, {1: 1.0, 2: 0.3}), REGIONS)
    # quarter 2: 0.4 / min(0.4, 4) = 1 for the first, 1.2 / min(5.2, 4) = 0.3 for the second
    assert found[0].equal(QUARTERS == 2)
    assert found[1].equal(QUARTERS == 1)


def test_a_cluster_below_the_threshold_is_background() -> None:
    found = assign(QUARTERS, maps({0: 1.0, 2: 0.19}, {1: 1.0, 3: 0.2}), REGIONS)
    assert found[0].equal(QUARTERS == 0)  # quarter 2 scores 0.76 / 4 = 0.19
    assert found[1].equal((QUARTERS == 1) | (QUARTERS == 3))  # quarter 3 scores exactly 0.2


def test_a_subject_without_cells_keeps_its_region() -> None:
    found = assign(QUARTERS, maps({0: 1.0, 1: 1.0}, {}), REGIONS)
    assert found[0].equal((QUARTERS == 0) | (QUARTERS == 1))
    assert found[1].equal(RIGHT)


def test_maps_are_stretched_around_a_fifth_of_their_highest_value() -> None:
    found = subject_maps(torch.tensor([[0.0, 0.3], [0.1, 0.3], [0.5, 0.3]]))
    low, middle, high = (1 / (1 + torch.tensor(-10 * (x - 0.2)).exp()) for x in (0.0, 0.2, 1.0))
    assert torch.allclose(found[:, 0], torch.stack([torch.tensor(0.0), (middle - low) / (high - low), torch.tensor(1.0)]))
    assert found[:, 1].tolist() == [0, 0, 0]  # flat: says nothing
    assert subject_maps(torch.zeros(3, 1)).tolist() == [[0], [0], [0]]


def test_a_subjects_map_counts_inside_its_current_mask_only() -> None:
    kept = Maps()
    kept.add_self(torch.eye(16))
    both = torch.zeros(16, 2)
    both[LEFT, 0], both[RIGHT, 0], both[RIGHT, 1] = 1.0, 0.9, 0.5
    kept.add_leading(both)
    found = refined_masks(kept, REGIONS, REGIONS, lambda _features: QUARTERS)
    assert found.equal(REGIONS)


def test_means_run_over_all_layers_and_calls() -> None:
    kept = Maps()
    for value in (1.0, 2.0, 6.0):
        kept.add_self(torch.full((2, 2), value))
    kept.add_leading(torch.full((2, 1), 4.0))
    assert kept.self_mean().tolist() == [[3, 3], [3, 3]]
    assert kept.leading_mean().tolist() == [[4], [4]]


def test_features_are_rows_over_the_columns_maxima() -> None:
    kept, seen = Maps(), []
    kept.add_self(torch.tensor([[0.5, 0.1], [0.25, 0.4]]))
    kept.add_leading(torch.ones(2, 1))
    masks = torch.ones(1, 2, dtype=torch.bool)
    refined_masks(kept, masks, masks, lambda features: seen.append(features) or torch.zeros(2, dtype=torch.long))
    assert torch.allclose(seen[0], torch.tensor([[1.0, 0.25], [0.5, 1.0]]))


def test_clusters_depend_on_the_seed_alone_and_start_from_the_last_centres() -> None:
    features = torch.rand(16, 16, generator=torch.Generator().manual_seed(0))
    one, other = KMeansClusters(4, seed=3, restarts=2), KMeansClusters(4, seed=3, restarts=2)
    first = one(features)
    assert first.equal(other(features))
    assert first.unique().numel() == 4
    centres = one.centres
    again = one(features)
    assert again.equal(first)  # warm: nothing moves
    assert centres is not None
    assert one.centres == pytest.approx(centres)


def test_more_clusters_than_cells_are_as_many_as_cells() -> None:
    assert KMeansClusters(9, seed=0, restarts=1)(torch.eye(4)).unique().numel() == 4
