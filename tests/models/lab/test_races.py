"""Races to a quality: who got there when, and what counts when nobody did."""

from __future__ import annotations

import pytest

from models.lab.races import Curve, Reached, mean_curve, median_of, misses, ratio, reach

SLOW = Curve((0, 5, 10, 15), (0.0, 1.0, 2.0, 3.0), (0.9, 0.5, 0.3, 0.3))


def test_the_first_check_at_or_below_the_error_counts() -> None:
    assert reach(SLOW, 0.5) == Reached(1.0, 5, missed=False)
    assert reach(SLOW, 0.95) == Reached(0.0, 0, missed=False)


def test_a_run_that_never_gets_there_counts_as_its_whole_budget_and_is_listed() -> None:
    found = {("noir", 0): reach(SLOW, 0.1), ("noir", 1): reach(SLOW, 0.4)}
    assert found["noir", 0] == Reached(3.0, 15, missed=True)
    assert misses(found) == [("noir", 0)]


def test_a_ratio_is_the_median_over_concepts_of_the_median_over_seeds() -> None:
    slow = {(concept, seed): Reached(seconds, 10, missed=False) for concept, seed, seconds in RUNS}
    fast = {run: Reached(0.5, 2, missed=False) for run in slow}
    found = ratio(slow, fast)
    assert found.median == pytest.approx(8.0)  # a: 4, b: 8, c: 20
    assert found.low <= 8 <= found.high
    assert ratio(slow, fast, steps=True).median == pytest.approx(5.0)
    assert ratio(slow, {run: Reached(0.5, 0, missed=False) for run in slow}, steps=True).median == pytest.approx(10.0)


RUNS = [
    ("a", 0, 2.0),
    ("a", 1, 1.0),
    ("a", 2, 900.0),
    ("b", 0, 4.0),
    ("b", 1, 4.0),
    ("b", 2, 4.0),
    ("c", 0, 10.0),
    ("c", 1, 10.0),
    ("c", 2, 1.0),
]


def test_an_interval_needs_two_concepts() -> None:
    with pytest.raises(ValueError, match="two values or more"):
        median_of([1.0])


def test_a_mean_curve_holds_runs_that_ended_sooner_where_they_ended() -> None:
    found = mean_curve([SLOW, Curve((0, 5), (1.0, 2.0), (0.1, 0.1))])
    assert found.steps == SLOW.steps
    assert found.errors == pytest.approx((0.5, 0.3, 0.2, 0.2))
    assert found.seconds == pytest.approx((0.5, 1.5, 2.0, 2.5))
