"""What decides a job's results, as one number."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration import fingerprint
from orchestration.job import parse

JOB = {"kind": "restore", "name": "n", "manifest": "/m.parquet", "output": "/o", "model": "lab/x"}


def parts(params: dict[str, Any] | None = None, revision: str = "r", digest: str = "d", **keys: Any) -> dict[str, Any]:
    return fingerprint.parts(parse({**JOB, **keys}), params or {"side": 64}, revision, digest)


def number(**changes: Any) -> str:
    return fingerprint.digest(parts(**changes))


@pytest.mark.parametrize(
    "change",
    [
        {"engine": "inline"},
        {"resources": {"replicas": 3, "block_rows": 7, "micro_batch": 2, "lease_ttl_s": 9, "row_timeout_s": 3, "price_per_hour": 2}},
        {"tracking": {"enabled": False}},
        {"name": "another", "output": "/elsewhere"},
        {"manifest": "/the/same/rows/elsewhere.parquet"},
        {"accept_unlicensed_weights": True},
    ],
)
def test_engine_replicas_blocks_and_places_do_not_change_it(change: dict[str, Any]) -> None:
    assert number(**change) == number()


@pytest.mark.parametrize(
    "change",
    [
        {"params": {"side": 65}},
        {"params": {"side": 64, "more": None}},
        {"revision": "other weights"},
        {"digest": "other rows"},
        {"seed": 1},
        {"model": "lab/y"},
        {"media": "columns"},
        {"where": {"subject": "a"}},
        {"limit": 10},
        {"sample": 0.5},
        {"on_bad_source": "skip"},
        {"kind": "another"},
        {"mode": "m"},
    ],
)
def test_whatever_decides_a_result_changes_it(change: dict[str, Any]) -> None:
    assert number(**change) != number()


def test_the_code_is_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = number()
    monkeypatch.setattr(fingerprint, "code_version", lambda: "another version")
    assert number() != before


def test_the_code_version_names_the_package_and_its_source() -> None:
    version, _, source = fingerprint.code_version().partition("+")
    assert version[0].isdigit()
    assert len(source) == 10


def test_dates_that_yaml_reads_from_a_filter_are_compared_as_they_come_back_from_the_folder() -> None:
    import yaml

    where = yaml.safe_load("{taken: 1911-05-03, people: [a, b]}")
    found = parts(where=where)
    assert json.loads(json.dumps(found)) == found
    assert fingerprint.difference(found, json.loads(json.dumps(found))) == []


values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, width=32) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
things = st.dictionaries(st.text(max_size=4), values, max_size=4)


@given(one=things)
def test_it_survives_the_way_through_a_file_and_any_order_of_keys(one: dict[str, Any]) -> None:
    again = json.loads(json.dumps(dict(reversed(one.items()))))
    assert fingerprint.digest(again) == fingerprint.digest(one)
    assert fingerprint.difference(one, again) == []


@given(one=things, other=things)
def test_jobs_that_differ_have_different_numbers(one: dict[str, Any], other: dict[str, Any]) -> None:
    if fingerprint.difference(one, other):
        assert fingerprint.digest(one) != fingerprint.digest(other)


def test_a_difference_names_the_key_and_both_values_shortly() -> None:
    lines = fingerprint.difference({"params": {"a": 1, "b": 2}, "seed": 0}, {"params": {"a": 1, "b": "x" * 200}, "seed": 0})
    assert lines == [f'params.b: 2 -> "{"x" * 56}…']
