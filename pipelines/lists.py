"""Lists that a catalog is crossed from: CSV, JSON lines or Parquet files of a few columns, read whole."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from workers.storage import filesystem

FORMATS = (".csv", ".jsonl", ".ndjson", ".parquet")


class BadList(ValueError):
    """A list can't be read, or lacks a column; says which file and what it should hold."""


def read_list(uri: str) -> list[dict[str, Any]]:
    """The lines of a list, each a dictionary; cells of a CSV that are empty, and nulls, are left out. Raises BadList."""
    ending = PurePosixPath(uri.lower()).suffix
    if ending not in FORMATS:
        raise BadList(f"{uri}: a list is a file ending in {', '.join(FORMATS)}")
    fs, path = filesystem(uri)
    try:
        data = fs.cat_file(path)
    except (FileNotFoundError, IsADirectoryError):
        raise BadList(f"there is no file {uri}") from None
    assert isinstance(data, bytes)
    try:
        if ending == ".parquet":
            lines = pq.read_table(pa.BufferReader(data)).to_pylist()
        elif ending == ".csv":
            lines = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig")), strict=True))
        else:
            lines = [json.loads(line) for line in data.decode().splitlines() if line.strip()]
    except (pa.ArrowInvalid, csv.Error, ValueError) as error:
        raise BadList(f"{uri} can't be read as {ending[1:]}: {error}") from error
    if not all(isinstance(line, dict) for line in lines):
        raise BadList(f'{uri}: every line must be an object, such as {{"phrase": "red star"}}')
    if any(None in line for line in lines):
        raise BadList(f"{uri}: a line has more cells than the heading names; put quotes around text with commas")
    return [{str(k): v for k, v in line.items() if v is not None and v != ""} for line in lines]


def cell(line: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    """The text of the first of `names` that a line has. Raises BadList where it has none of them."""
    for name in names:
        if name in line:
            return str(line[name]).strip()
    raise BadList(f"{where} has no {' or '.join(names)}; it has {', '.join(line) or 'nothing'}")


def number(line: Mapping[str, Any], name: str, where: str, kind: type[int] | type[float]) -> Any:
    """A line's number, None where it has none. Raises BadList for text that is none."""
    if name not in line:
        return None
    try:
        return kind(line[name])
    except (TypeError, ValueError):
        raise BadList(f"{where}: {name} is {line[name]!r}, which is no {'whole ' if kind is int else ''}number") from None
