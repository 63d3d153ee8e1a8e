"""Parts of the lab proof of weights2weights that can be checked by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch

from models.lab.proof_weights2weights_arms import held
from models.lab.proof_weights2weights_attributes import change, leak, spearman
from models.lab.proof_weights2weights_samples import length_of_effect, shuffled
from models.lab.weights2weights_studio import Studio, numbers_of


def test_rank_correlation_asks_for_order_alone() -> None:
    x = torch.tensor([-3.0, -1.0, 0.0, 2.0])
    assert spearman(x, x.exp()) == pytest.approx(1)
    assert spearman(x, -(x**3)) == pytest.approx(-1)


def test_a_leak_counts_the_attributes_that_the_reader_tells_apart_from_the_edited_one() -> None:
    still, moved = torch.tensor([[0.5, 0.5], [0.5, 0.5]]), torch.tensor([[0.0, 0.1], [1.0, 0.6]])
    found = {"beard": moved, "glasses": moved, "sunglasses": still, "long hair": still, "bald": still}
    assert change(moved).tolist() == pytest.approx([1.0, 0.5])
    assert leak(found, "sunglasses").tolist() == pytest.approx([1 / 3, 1 / 6])  # glasses are read by the same head, and do not count


def test_weights_dealt_anew_keep_every_column_and_no_model() -> None:
    weights_mn = torch.arange(60.0).reshape(20, 3) + torch.tensor([0, 100.0, 200.0])
    dealt_mn = shuffled(weights_mn)
    assert torch.equal(dealt_mn.sort(0).values, weights_mn)
    assert not any(bool((row == weights_mn).all(1).any()) for row in dealt_mn)


def test_random_weights_are_stretched_until_they_move_the_base_as_far() -> None:
    class Moved:  # a base whose prediction moves by the square of the distance from the mean model
        space = SimpleNamespace(mean_n=torch.ones(3))

        def moved(self, weights_mn: torch.Tensor) -> torch.Tensor:
            return (weights_mn - 1).square().sum(1)

    weights_mn = torch.ones(4, 3) + torch.eye(3)[[0, 1, 2, 0]]
    assert length_of_effect(cast(Studio, Moved()), weights_mn, 9.0) == pytest.approx(3, rel=2e-3)
    assert length_of_effect(cast(Studio, Moved()), weights_mn, 0.25) == pytest.approx(0.5, rel=2e-3)


def test_what_a_space_holds_is_counted_about_the_mean_model_in_the_given_unit() -> None:
    weights_mn, mean_n = torch.tensor([[2.0, 4.0], [2.0, -4.0]]), torch.zeros(2)
    flat_mn = weights_mn * torch.tensor([1.0, 0.0])
    assert held(weights_mn, weights_mn, mean_n, torch.ones(2)) == 1
    assert held(flat_mn, weights_mn, mean_n, torch.ones(2)) == pytest.approx(0.2)
    assert held(flat_mn, weights_mn, mean_n, torch.tensor([1.0, 2.0])) == pytest.approx(0.5)
    assert held(-weights_mn, weights_mn, mean_n, torch.ones(2)) == -3


def test_only_drawn_people_can_be_proved_on() -> None:
    assert numbers_of(["person-00007"]) == [7]
    with pytest.raises(ValueError, match="'anna' is no drawn person"):
        numbers_of(["anna"])
