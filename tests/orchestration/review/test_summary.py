from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.review import summary


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=200))
def test_a_histogram_counts_every_known_value_once(values: list[float]) -> None:
    found = summary.distribution(np.array([*values, np.nan], np.float32))
    assert sum(found.counts) == len(values) == found.rows
    assert found.missing == 1
    assert len(found.edges) == len(found.counts) + 1


def test_a_value_on_an_edge_counts_where_the_page_filters_it() -> None:
    found = summary.distribution(np.array([0.1, 0.45, 0.45, 0.45, 0.8], np.float32))
    bin_of_45 = found.edges.index(0.45)
    assert found.counts[bin_of_45] == 3


def test_a_histogram_has_round_edges_and_few_bins() -> None:
    found = summary.distribution(np.linspace(0.213, 0.871, 1000, dtype=np.float32))
    assert found.edges[:3] == [0.2, 0.25, 0.3]
    assert 8 <= len(found.counts) <= 24


def test_one_row_far_out_does_not_squeeze_the_others_into_one_bar() -> None:
    values = np.append(np.linspace(10, 20, 1000), 90_000).astype(np.float32)
    found = summary.distribution(values)
    assert found.open_end
    assert max(found.counts) < 200


def test_a_column_without_values_has_no_histogram() -> None:
    found = summary.distribution(np.full(5, np.nan, np.float32))
    assert (found.rows, found.missing, found.median, found.counts) == (0, 5, None, [])


def test_rows_that_stand_out_are_those_on_the_bad_side_only() -> None:
    values = np.concatenate([np.linspace(0.5, 0.7, 500), [0.1, 1.4]]).astype(np.float32)
    low = summary.outlier_limit(values, higher_is_better=True)
    high = summary.outlier_limit(values, higher_is_better=False)
    assert low is not None
    assert high is not None
    assert np.flatnonzero(values < low).tolist() == [500]
    assert np.flatnonzero(values > high).tolist() == [501]
    assert summary.outlier_limit(values[:10], higher_is_better=True) is None


def test_running_time_adds_up_over_drivers_and_leaves_out_the_pause_between() -> None:
    first = [{"t": 10.0 + s, "seconds": s, "done": 2 * s, "rows_per_s": 2.0, "generation": 0, "first_block_s": 3.0} for s in (5, 10)]
    second = [{"t": 900.0 + s, "seconds": s, "done": 20 + 4 * s, "rows_per_s": 4.0, "generation": 0} for s in (5, 10)]
    found = summary.timing([*first, *second])
    assert found.wall_s == 20
    assert found.rows == 60
    assert found.rows_per_s == 3
    assert found.first_block_s == 3
    assert found.starts == [10]
    assert [rate for _, rate, _ in found.series] == [2, 2, 4, 4]


def test_a_long_series_is_thinned_without_changing_its_mean_rate() -> None:
    series = [(float(i), float(i % 5), i) for i in range(2000)]
    found = summary.thinned(series, points=100)
    assert len(found) == 100
    assert np.mean([r for _, r, _ in found]) == pytest.approx(2.0)


def test_money_is_named_only_with_a_price() -> None:
    time = summary.Timing(1800.0, 900, 0.5, None, [], [])
    model_ms = np.array([1000.0, np.nan, 800_000.0], np.float32)
    assert summary.cost(time, model_ms, 2, None).money is None
    found = summary.cost(time, model_ms, 2, 3.0)
    assert (found.replica_hours, found.money, found.seconds_per_1000) == (1.0, 3.0, 2000.0)
    assert found.money_per_1000 == pytest.approx(3000 / 900)
    assert found.model_share == pytest.approx(801 / 3600)


@pytest.mark.parametrize(
    ("planned", "ok", "failed", "finished", "tone"),
    [(10, 10, 0, True, "good"), (100, 95, 5, True, "look"), (10, 8, 2, True, "bad"), (3, 0, 3, True, "bad"), (10, 4, 0, False, "open")],
)
def test_the_headline_says_how_it_went(planned: int, ok: int, failed: int, finished: bool, tone: str) -> None:
    sentence, found = summary.verdict(planned, ok, failed, finished=finished)
    assert found == tone
    assert str(planned) in sentence


def test_every_failure_comes_with_a_next_step() -> None:
    assert "source" in summary.what_to_do("ImageBroken")
    assert "retry" in summary.what_to_do("SomethingNew")
