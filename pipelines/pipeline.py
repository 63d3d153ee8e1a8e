"""What a pipeline is: the columns a row may hold, the stages it goes through, what comes back, what a reviewer sees."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from workers.guard import CONTRACT
from workers.stage import Stage
from workers.storage import Reader


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
    X (list<binary>) or the singular's uris (`reference_images` / `reference_image_uris`). `before` None: there is only the picture that was
    made. `others`: a list of all pictures that were made of a row, named like `references`. `group` names the column to filter by, `text`
    columns to read under a picture, `layout` a list<struct<phrase, box>> of fractions of the picture to draw over it. `strip`: media columns of
    the outputs, shown side by side under a row in this order; `curve`: two list columns of the outputs, steps and the values at them.
    """

    before: str | None
    after: str
    references: str | None = None
    scores: Sequence[Score] = ()
    group: str | None = None
    text: Sequence[str] = ()
    layout: str | None = None
    others: str | None = None
    strip: Sequence[str] = ()
    curve: tuple[str, str] | None = None


@dataclass(frozen=True)
class Pipeline:
    """One kind of job. `rows`: the manifest's columns, required ones not nullable; `outputs`: what each row adds besides the contract columns.

    `one_of`: groups of columns of which each row needs exactly one. `sort_by`: columns that bring rows which share work together.
    `finish`: called on the driver once all rows have ended, before the folder is sealed, with every `ok` row, its inputs and outputs together;
    it must be idempotent, and returns facts for MLflow.
    """

    name: str
    rows: pa.Schema
    outputs: pa.Schema
    stages: Sequence[Stage]
    shown: Shown
    one_of: Sequence[Sequence[str]] = ()
    sort_by: Sequence[str] = ()
    finish: Callable[[Iterable[Mapping[str, Any]]], Mapping[str, Any]] | None = None
    family: str | None = None  # of the weights that it makes: the registered model in MLflow of which a finished job is a version
    facts: Mapping[str, str] = field(default_factory=dict)  # what is logged with the job: model revision, attention backend

    @property
    def committed(self) -> pa.Schema:
        """Schema of data/ files: row_id, outputs, contract columns."""
        return pa.schema([pa.field("row_id", pa.string()), *self.outputs, *CONTRACT])


class Params(BaseModel):
    """Base of a kind's job parameters: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def settled(self, known: Mapping[str, Any], **decided: Any) -> Self:
        """These parameters with every None taken from `known` where it has that key, and with `decided` on top."""
        left_open = {key: known[key] for key in type(self).model_fields if key in known and getattr(self, key) is None}
        return self.model_validate({**self.model_dump(), **left_open, **decided})


@dataclass(frozen=True)
class Model:
    """A resolved model: its method, what `load` needs (local paths or URIs), and the digest of its weights.

    `settings` are what the model was made with (a lab model's card); a job's parameters come on top where they are given.
    """

    name: str
    method: str
    tier: str  # "lab" | "full"
    sources: Mapping[str, str]
    revision: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What a pipeline is built for: the model, where outputs go, and limits. Nothing here but `model`, `seed` and `media` decides results."""

    model: Model
    job: str = ""  # name of the job, written into what it makes
    folder: str = ""  # the job folder's URI
    seed: int = 0
    media: str = "files"  # "files" | "columns"
    reader: Reader = field(default_factory=Reader)
    max_pixels: int = 100_000_000
    micro_batch: int | None = None
    cache_bytes: int = 2**30


@dataclass(frozen=True)
class Accept:
    """Restrictive or unstated licences that the user has accepted in the job file."""

    unlicensed: bool = False
    noncommercial: bool = False


@dataclass(frozen=True)
class Kind:
    """A kind of job, or one mode of a kind: its parameters, and how a pipeline is built from them.

    `resolve(model, accept)` finds the model that a job file names; `settle(params, model)` replaces every "auto" and every None that the model
    decides, so that what ran is written down. Both raise ValueError with what to write instead.
    """

    name: str
    params: type[Params]
    resolve: Callable[[str | Mapping[str, str], Accept], Model]
    build: Callable[[Any, Context], Pipeline]
    template: str  # a commented job file
    settle: Callable[[Any, Model], Any] = lambda params, model: params  # nothing is left open
    mode: str | None = None  # None: a kind without modes

    @property
    def key(self) -> str:
        """Under which it is registered: restore, compose/layout."""
        return self.name if self.mode is None else f"{self.name}/{self.mode}"
