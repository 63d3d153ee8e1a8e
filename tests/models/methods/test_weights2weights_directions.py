"""Attributes as directions: found where they were planted, scaled to standard deviations, free of one another."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

from models.methods.weights2weights_directions import (
    DirectionVanished,
    Edit,
    UnknownAttribute,
    edit_direction,
    freed_in_turn,
    freed_jointly,
    least_squares,
    score,
    shift_of,
    with_attributes,
)
from models.methods.weights2weights_space import Space, fit_space
from tests.models.methods.tiny_space import tiny_layout, tiny_space, tiny_weights
from tests.models.tiny_bases import tiny_unet_base


@pytest.fixture(scope="module")
def trained() -> tuple[Space, Tensor]:
    """A space without attributes and the coefficients of its 60 models."""
    layout = tiny_layout(tiny_unet_base())
    weights = tiny_weights(layout, models=60)
    space = fit_space(weights, layout, n_components=8)
    return space, space.project(weights)


@pytest.fixture(scope="module")
def space() -> Space:
    return tiny_space(tiny_unet_base())


def steps(space: Space, direction_k: Tensor) -> Tensor:
    return direction_k / space.proj_std_k


def test_a_planted_linear_label_is_found_by_both_ways(trained: tuple[Space, Tensor]) -> None:
    space, p_mk = trained
    planted_k = torch.linspace(-1, 1, 8)
    x_mk = (p_mk - space.proj_mean_k) / space.proj_std_k
    fitted = with_attributes(space, p_mk, {"planted": x_mk @ planted_k + 3})
    assert cosine_similarity(steps(space, fitted.attributes["planted"].direction_k), planted_k, dim=0) > 0.999
    assert cosine_similarity(least_squares(p_mk, p_mk @ planted_k), planted_k, dim=0) > 0.999


def test_strength_1_is_one_standard_deviation_of_the_score_over_the_training_models(trained: tuple[Space, Tensor]) -> None:
    space, p_mk = trained
    fitted = with_attributes(space, p_mk, {"tall": p_mk[:, 0].sign(), "round": (p_mk[:, 1] + p_mk[:, 0]).sign()})
    for name in fitted.attributes:
        scores = score(fitted, name, p_mk)
        for debias in ("none", "joint", "sequential"):
            moved = score(fitted, name, p_mk + edit_direction(fitted, name, debias=debias))
            assert_close(moved - scores, scores.std().expand(60), atol=1e-4, rtol=1e-3)


def test_scores_tell_the_labels_apart_at_zero(trained: tuple[Space, Tensor]) -> None:
    space, p_mk = trained
    labels = p_mk[:, 0].sign()
    labels[::7] = torch.nan  # unknown ones have no say
    fitted = with_attributes(space, p_mk, {"tall": labels})
    assert (score(fitted, "tall", p_mk).sign() == p_mk[:, 0].sign()).float().mean() > 0.9


def test_a_direction_freed_of_all_others_at_once_changes_none_of_their_scores(space: Space) -> None:
    for name, other in (("tall", "round"), ("round", "tall")):
        own, raw = (steps(space, edit_direction(space, name, debias=d)) for d in ("joint", "none"))
        disturbed = steps(space, space.attributes[other].direction_k)
        assert abs(float(own @ disturbed)) < 1e-6
        assert abs(float(raw @ disturbed)) > 1e-2
        moved = score(space, other, edit_direction(space, name)[None]) - score(space, other, torch.zeros(1, space.components))
        assert abs(float(moved)) < 1e-5


def test_projections_subtracted_in_turn_depend_on_their_order_and_joint_ones_do_not() -> None:
    own, a, b = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(freed_in_turn(own, [a, b]), freed_in_turn(own, [b, a]), atol=1e-3)
    assert abs(float(freed_in_turn(own, [a, b]) @ b)) < 1e-5
    assert abs(float(freed_in_turn(own, [a, b]) @ a)) > 1e-2
    assert_close(freed_jointly(own, [a, b]), freed_jointly(own, [b, a]))
    assert max(abs(float(freed_jointly(own, [a, b]) @ other)) for other in (a, b)) < 1e-6


def test_raw_directions_are_the_authors_and_are_not_scaled(space: Space) -> None:
    raw = edit_direction(space, "tall", raw=True, debias="none")
    assert torch.equal(raw, space.raw_directions["tall"])
    freed = edit_direction(space, "tall", raw=True, debias="sequential")
    assert_close(freed, freed_in_turn(raw, [space.raw_directions["round"]]))
    with pytest.raises(UnknownAttribute, match="no raw direction in this space; it has none"):
        edit_direction(replace(space, raw_directions={}), "tall", raw=True)


def test_edits_add_up_and_none_change_nothing(space: Space) -> None:
    both = shift_of(space, [Edit("tall", 2.0), Edit("round", -1.0)])
    assert_close(both, 2 * edit_direction(space, "tall") - edit_direction(space, "round"))
    assert torch.equal(shift_of(space, []), torch.zeros(space.components))
    assert torch.equal(shift_of(space, [Edit("tall", 0.0)]), torch.zeros(space.components))


def test_an_unknown_attribute_is_told_the_known_ones_and_a_strength_must_be_finite(space: Space) -> None:
    with pytest.raises(UnknownAttribute, match="'small' is no attribute of this space; it has round, tall"):
        shift_of(space, [Edit("small", 1.0)])
    with pytest.raises(ValueError, match="the strength of 'tall' is nan"):
        shift_of(space, [Edit("tall", float("nan"))])


def test_a_direction_of_which_the_others_leave_nothing_is_refused(space: Space) -> None:
    twice = replace(space, attributes={**space.attributes, "high": space.attributes["tall"]})
    with pytest.raises(DirectionVanished, match="nothing of 'tall' is left without high, round"):
        edit_direction(twice, "tall")
    assert torch.equal(edit_direction(twice, "tall", debias="none"), space.attributes["tall"].direction_k)


def test_a_label_that_all_models_share_has_no_direction(trained: tuple[Space, Tensor]) -> None:
    space, p_mk = trained
    with pytest.raises(ValueError, match="human does not differ among the 60 models"):
        with_attributes(space, p_mk, {"human": torch.ones(60)})
