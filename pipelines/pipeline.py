"""What a pipeline is: the columns a row may hold, the stages it goes through, what comes back, what a reviewer sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from workers.stage import Stage

CONTRACT = pa.schema(
    [
        ("status", pa.string()),  # "ok" | "failed"
        ("error_type", pa.string()),
        ("error", pa.string()),
        ("stage", pa.string()),  # where it failed
        ("attempts", pa.int32()),
        ("model_ms", pa.float32()),  # the row's share of model time
    ]
)


@dataclass(frozen=True)
class Score:
    """A number of each row that a reviewer sorts by and MLflow draws as a distribution."""

    column: str
    label: str
    higher_is_better: bool = True


@dataclass(frozen=True)
class Shown:
    """What the review page shows of a row.

    `before`, `after` and `references` name media columns without the `_uri` suffix: column X holds bytes, X_uri a path or URI, and for lists
    X (list<binary>) or the singular's uris (`reference_images` / `reference_image_uris`). `group` names the column to filter by.
    """

    before: str
    after: str
    references: str | None = None
    scores: Sequence[Score] = ()
    group: str | None = None


@dataclass(frozen=True)
class Pipeline:
    """One kind of job. `rows`: the manifest's columns, required ones not nullable; `outputs`: what each row adds besides the contract columns.

    `one_of`: groups of columns of which each row needs exactly one. `sort_by`: columns that bring rows which share work together.
    `finish`: called on the driver with the job folder's URI once all rows have ended, before the folder is sealed; it must be idempotent.
    """

    name: str
    rows: pa.Schema
    outputs: pa.Schema
    stages: Sequence[Stage]
    shown: Shown
    one_of: Sequence[Sequence[str]] = ()
    sort_by: Sequence[str] = ()
    finish: Callable[[str], Mapping[str, Any]] | None = None
    facts: Mapping[str, str] = field(default_factory=dict)  # what is logged with the job: model revision, attention backend

    @property
    def committed(self) -> pa.Schema:
        """Schema of data/ files: row_id, outputs, contract columns."""
        return pa.schema([pa.field("row_id", pa.string()), *self.outputs, *CONTRACT])
