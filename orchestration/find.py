"""Rows of a job by what they hold: which file belongs to a concept, a person, a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from orchestration.folder import JobFolder
from orchestration.job import JobFileError


def find_rows(folder: JobFolder, where: Mapping[str, str], columns: Sequence[str] = (), limit: int | None = None) -> list[dict[str, Any]]:
    """Ended rows whose columns have these values (as text), each with `row_id`, `status`, the columns of `where`, its files' URIs and `columns`.

    Inputs and outputs are looked through alike, reused rows where they are. URIs of artifacts are absolute. Raises JobFileError for a column
    that the job does not have.
    """
    found: list[dict[str, Any]] = []
    for part, row_ids in _parts(folder):
        for row in _rows(part, where, columns, row_ids):
            if limit is not None and len(found) >= limit:
                return found
            found.append(row)
    return found


def _parts(folder: JobFolder) -> Iterator[tuple[JobFolder, list[str] | None]]:
    """The folder, and the ones of which it reuses rows, with their ids."""
    yield folder, None
    for uri, row_ids in folder.reused().items():
        yield JobFolder(uri), row_ids


def _rows(folder: JobFolder, where: Mapping[str, str], columns: Sequence[str], row_ids: list[str] | None) -> Iterator[dict[str, Any]]:
    outputs, inputs = folder.results(), folder.planned()
    names = {*outputs.column_names, *inputs.column_names}
    if unknown := sorted({*where, *columns} - names):
        raise JobFileError(f"{folder.name} has no column {unknown[0]}; it has {', '.join(sorted(names))}")
    if row_ids is not None:
        outputs = outputs.filter(_among(outputs["row_id"], row_ids))
    made = [name for name in outputs.column_names if name.endswith("_uri")]
    wanted = list(dict.fromkeys(["row_id", "status", *where, *made, *columns]))
    at = pc.index_in(outputs["row_id"], value_set=inputs["row_id"].combine_chunks())  # pyright: ignore[reportAttributeAccessIssue]
    table = pa.table({name: outputs[name] if name in outputs.column_names else inputs[name].take(at) for name in wanted})
    for name, value in where.items():
        table = table.filter(_among(pc.cast(table[name], pa.string()), [value]))
    for row in table.to_pylist():
        yield {name: folder.join_uri(value) if name in made and value is not None else value for name, value in row.items()}


def _among(column: pa.ChunkedArray, values: list[str]) -> pa.ChunkedArray:
    return pc.is_in(column, value_set=pa.array(values, pa.string()))  # pyright: ignore[reportAttributeAccessIssue]
