"""Several pictures a row: made together, scored, and all of them or only the best one kept. One row in, one row out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pyarrow as pa

from pipelines import pictures

Keep = Literal["best", "all"]


class Several:
    """A method that is asked for several pictures a row: rows of requests in, rows of results out; at most `limit` requests in one call."""

    def __init__(self, method: Callable[[Sequence[Any]], Sequence[Any]], limit: int) -> None:
        self.method, self.limit = method, limit
        self.attention_backend = getattr(method, "attention_backend", None)

    def __call__(self, rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
        requests = [request for row in rows for request in row]
        results = iter([result for at in range(0, len(requests), self.limit) for result in self.method(requests[at : at + self.limit])])
        return [[next(results) for _ in row] for row in rows]


def rows_a_call(limit: int, pictures_a_row: int) -> int:
    """Rows whose pictures fit into one call of `limit` requests; at least one."""
    return max(1, limit // pictures_a_row)


def best_of(scores: Sequence[float | None], *, higher_is_better: bool) -> int:
    """The number of the best score, the first one of equals; what has no finite score is never better."""
    known = [(-score if higher_is_better else score, i) for i, score in enumerate(scores) if score is not None and math.isfinite(score)]
    return min(known)[1] if known else 0


def candidate_columns(keep: Keep, media: str) -> pa.Schema:
    """What several pictures add to the best one's columns: every score and which was best, and with `all` every picture."""
    scores = pa.schema([("candidate_scores", pa.list_(pa.float32())), ("best", pa.int32())])
    return pa.schema([*scores, *(pictures.kept_list("images", media) if keep == "all" else ())])
