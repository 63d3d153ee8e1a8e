"""How the engine ray shares the machine's cores; whole jobs on it are in tests/faults."""

from __future__ import annotations

import pytest

from orchestration.engines.ray import cpus_reserved


@pytest.mark.parametrize(("cpus", "replicas"), [(1, 1), (2, 2), (2, 1), (4, 16), (16, 2)])
def test_a_core_is_left_for_reading_however_many_replicas_are_asked_for(cpus: float, replicas: int) -> None:
    assert cpus - replicas * cpus_reserved(1, cpus, replicas) >= 1


def test_a_replica_reserves_what_its_stage_wants_where_there_are_cores() -> None:
    assert cpus_reserved(1, 16, 2) == 1
