"""What every method promises, whatever it does: order, one result a request, independence of the batch, the same answer twice.

A method joins with a line in `SUBJECTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from models.methods import METHODS, method_class
from tests.models.methods import tiny_bounded_attention, tiny_instant_restore, tiny_neural_weights, tiny_stable_flow, tiny_weights2weights


@dataclass(frozen=True)
class Subject:
    """A small method and four different requests to it; `values` are a result's numbers, `tolerance` what a batch may change in them."""

    method: Callable[[], Callable[[Sequence[Any]], list[Any]]]
    requests: Callable[[], list[Any]]
    values: Callable[[Any], Tensor]
    tolerance: float


SUBJECTS = {
    "instant_restore": Subject(
        method=tiny_instant_restore.tiny_method,
        requests=lambda: [tiny_instant_restore.tiny_request(seed, seed, person=seed % 2) for seed in range(4)],
        values=lambda result: result.restored,
        tolerance=1e-5,
    ),
    "bounded_attention": Subject(
        method=tiny_bounded_attention.tiny_method,
        requests=tiny_bounded_attention.tiny_requests,
        values=lambda result: result.image[:, :16],
        tolerance=1e-4,
    ),
    "stable_flow": Subject(
        method=tiny_stable_flow.tiny_method,
        requests=tiny_stable_flow.tiny_requests,
        values=lambda result: result.edited,
        tolerance=1e-5,
    ),
    "weights2weights": Subject(
        method=tiny_weights2weights.tiny_method,
        requests=tiny_weights2weights.tiny_requests,
        values=lambda result: result.image[:, :16],
        tolerance=1e-5,
    ),
    "neural_weights": Subject(
        method=tiny_neural_weights.tiny_method,
        requests=tiny_neural_weights.tiny_requests,
        values=lambda result: torch.cat([tensor.flatten() for tensor in result.lora.values()]),
        tolerance=1e-5,
    ),
}


@pytest.fixture(params=sorted(METHODS))
def subject(request: pytest.FixtureRequest) -> Subject:
    return SUBJECTS[request.param]


def largest_difference(subject: Subject, one: list[Any], other: list[Any]) -> float:
    assert len(one) == len(other)
    return max((subject.values(a) - subject.values(b)).abs().max().item() for a, b in zip(one, other, strict=True))


def test_every_method_is_tested_here_and_loads_by_name() -> None:
    assert SUBJECTS.keys() == METHODS.keys()
    for name in METHODS:
        assert callable(method_class(name).load)
        assert method_class(name.replace("_", "-")) is method_class(name)
    with pytest.raises(ValueError, match="There is no method 'instant_restroe'"):
        method_class("instant_restroe")


def test_every_request_has_its_result_in_order(subject: Subject) -> None:
    requests = subject.requests()
    forward, backward = subject.method()(requests), subject.method()(requests[::-1])
    assert largest_difference(subject, forward, backward[::-1]) < subject.tolerance
    a, b = (subject.values(result) for result in forward[:2])
    assert (a - b).abs().max() > subject.tolerance  # else order could not be seen


def test_a_result_does_not_depend_on_its_batch(subject: Subject) -> None:
    requests = subject.requests()
    together = subject.method()(requests)
    alone = [subject.method()([request])[0] for request in requests]
    assert largest_difference(subject, together, alone) < subject.tolerance


def test_the_same_request_gets_the_same_result(subject: Subject) -> None:
    requests, method = subject.requests(), subject.method()
    first = method(requests)
    torch.manual_seed(12345)  # the global generator has no say
    assert largest_difference(subject, first, method(requests)) == 0
    assert largest_difference(subject, first, subject.method()(requests)) == 0


def test_no_requests_have_no_results(subject: Subject) -> None:
    assert subject.method()([]) == []
