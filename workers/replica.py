"""The stage that holds a method: rows to requests, requests to the model, results to columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from workers.rows import Failure, Outcome, SafeBatches
from workers.stage import Stage


class Replica(Stage):
    """One loaded copy of a model.

    `load() -> method` runs once in setup(), in the replica's process. `method(requests) -> results` keeps the order. `request(row)` makes a
    row's request and `columns(result)` the values of `adds`; what either raises fails that row alone.
    """

    pooled = True

    def __init__(
        self,
        name: str,
        load: Callable[[], Callable[[Sequence[Any]], Sequence[Any]]],
        *,
        request: Callable[[dict[str, Any]], Any],
        columns: Callable[[Any], Mapping[str, Any]],
        adds: pa.Schema,
        drops: tuple[str, ...] = (),
        micro_batch: int = 16,
        cpus: float = 1.0,
        gpus: float = 0.0,
    ) -> None:
        self.name, self.load, self.request, self.columns = name, load, request, columns
        self.adds, self.drops, self.micro_batch, self.cpus, self.gpus = adds, drops, micro_batch, cpus, gpus
        self._batches: SafeBatches[Any, Any] | None = None
        self._facts: dict[str, str] = {}

    def setup(self) -> None:
        method = self.load()
        self._batches = SafeBatches(method, self.micro_batch)
        self._facts = {"attention_backend": str(backend)} if (backend := getattr(method, "attention_backend", None)) else {}

    def facts(self) -> dict[str, str]:
        return self._facts

    def run(self, table: pa.Table) -> list[Outcome]:
        assert self._batches is not None, "setup() comes first"
        outcomes: list[Outcome | None] = []
        requests = []
        for row in table.to_pylist():
            try:
                requests.append(self.request(row))
                outcomes.append(None)
            except Exception as error:
                outcomes.append(Outcome(failure=Failure.of(error)))
        results = iter(self._batches.run(requests))
        return [outcome or self._outcome(*next(results)) for outcome in outcomes]

    def _outcome(self, result: Any, failure: Failure | None, attempts: int, model_ms: float) -> Outcome:
        if failure is None:
            try:
                return Outcome(self.columns(result), attempts=attempts, model_ms=model_ms)
            except Exception as error:
                failure = Failure.of(error)
        return Outcome(failure=failure, attempts=attempts, model_ms=model_ms)
