"""Parts of the lab proof of weights2weights that can be checked by hand."""

from __future__ import annotations

import pytest
import torch

from models.lab.proof_weights2weights import change, leak, numbers_of, spearman


def test_rank_correlation_asks_for_order_alone() -> None:
    x = torch.tensor([-3.0, -1.0, 0.0, 2.0])
    assert spearman(x, x.exp()) == pytest.approx(1)
    assert spearman(x, -(x**3)) == pytest.approx(-1)


def test_a_leak_counts_the_attributes_that_the_reader_tells_apart_from_the_edited_one() -> None:
    still, moved = torch.tensor([[0.5, 0.5], [0.5, 0.5]]), torch.tensor([[0.0, 0.1], [1.0, 0.6]])
    found = {"beard": moved, "glasses": moved, "sunglasses": still, "long hair": still, "bald": still}
    assert change(moved).tolist() == pytest.approx([1.0, 0.5])
    assert leak(found, "sunglasses").tolist() == pytest.approx([1 / 3, 1 / 6])  # glasses are read by the same head, and do not count


def test_only_drawn_people_can_be_proved_on() -> None:
    assert numbers_of(["person-00007"]) == [7]
    with pytest.raises(ValueError, match="'anna' is no drawn person"):
        numbers_of(["anna"])
