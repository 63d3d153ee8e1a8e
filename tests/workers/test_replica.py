"""The stage that holds a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from workers.replica import Replica
from workers.rows import Failure

ROWS = pa.table({"row_id": ["a", "b", "c", "d"], "number": [1, 2, 3, 4]})


class Squares:
    """A model that can't do 3."""

    attention_backend = "sdpa"

    def __init__(self) -> None:
        self.calls = list[list[int]]()

    def __call__(self, requests: Sequence[int]) -> list[int]:
        self.calls.append(list(requests))
        if 3 in requests:
            raise ValueError("not three")
        return [r * r for r in requests]


def replica(model: Squares, **how: Any) -> Replica:
    options: dict[str, Any] = {"request": lambda row: row["number"], "columns": lambda result: {"square": result}, **how}
    return Replica("model", lambda: model, adds=pa.schema([("square", pa.int64())]), **options)


def test_the_model_is_loaded_once_in_setup_and_never_before() -> None:
    loads = list[int]()
    stage = Replica(
        "model",
        lambda: loads.append(1) or Squares(),
        request=lambda row: row["number"],
        columns=lambda r: {"square": r},
        adds=pa.schema([]),
    )
    assert (loads, stage.facts()) == ([], {})
    stage.setup()
    stage.run(ROWS)
    stage.run(ROWS)
    assert loads == [1]
    assert stage.facts() == {"attention_backend": "sdpa"}


def test_one_row_that_the_model_refuses_costs_itself() -> None:
    stage = replica(Squares())
    stage.setup()
    out = stage.run(ROWS)
    assert [outcome.columns.get("square") for outcome in out] == [1, 4, None, 16]
    assert out[2].failure == Failure("ValueError", "not three")
    assert all(outcome.model_ms >= 0 for outcome in out)


def test_a_row_without_a_sound_request_never_reaches_the_model() -> None:
    def request(row: dict[str, Any]) -> int:
        if row["row_id"] in ("b", "c"):
            raise KeyError(f"no request for {row['row_id']}")
        return row["number"]

    model = Squares()
    stage = replica(model, request=request)
    stage.setup()
    out = stage.run(ROWS)
    assert model.calls == [[1, 4]]
    assert [outcome.failure.error_type if outcome.failure else None for outcome in out] == [None, "KeyError", "KeyError", None]
    assert out[3].columns == {"square": 16}


def test_a_result_that_gives_no_columns_fails_its_row() -> None:
    def columns(result: int) -> dict[str, Any]:
        if result == 4:
            raise OverflowError("too much")
        return {"square": result}

    stage = replica(Squares(), columns=columns, micro_batch=1)
    stage.setup()
    out = stage.run(ROWS)
    assert [outcome.failure.error_type if outcome.failure else None for outcome in out] == [None, "OverflowError", "ValueError", None]


def test_where_no_row_has_a_sound_request_the_model_is_left_alone() -> None:
    def request(row: dict[str, Any]) -> int:
        raise KeyError("none")

    model = Squares()
    stage = replica(model, request=request)
    stage.setup()
    assert [outcome.failure.error_type for outcome in stage.run(ROWS) if outcome.failure] == ["KeyError"] * 4
    assert model.calls == []
