"""From a list of concepts to the manifest of a `weights` job of mode initialize.

A row's id is made of its content, so that a concept more adds a row and changes none.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from pipelines.catalogs import Catalog
from pipelines.lists import FORMATS, BadList, cell, number, read_list
from pipelines.weights_initialize import ROWS
from workers.folders import Skipped
from workers.storage import filesystem

_MAX_SLUG = 60


def concept_manifest(uri: str) -> Catalog:
    """A row a concept of a text file (a concept a line) or of a list with a column `concept`, and maybe `seed`.

    What is empty, and what says the same as an earlier line (but for case and spaces) with the same seed, is skipped and named.
    Raises BadList for a file that can't be read.
    """
    rows, seen, skipped = list[dict[str, Any]](), dict[tuple[str, int | None], int](), list[Skipped]()
    for at, line in _lines(uri):
        where = f"{uri}, line {at}"
        concept = " ".join(cell(line, ("concept", "text"), where).split()) if line else ""
        if not concept:
            skipped.append(Skipped(where, "is empty"))
            continue
        seed = number(line, "seed", where, int)
        first = seen.setdefault((concept.lower(), seed), at)
        if first != at:
            skipped.append(Skipped(where, f"{concept!r} is on line {first} already"))
            continue
        rows.append({"row_id": concept_id(concept, seed), "concept": concept, "seed": seed})
    return Catalog(pa.Table.from_pylist(rows, schema=ROWS), skipped)


def concept_id(concept: str, seed: int | None) -> str:
    """Something to read, and a digest of all that decides the row's result."""
    digest = hashlib.sha256(json.dumps([concept, seed]).encode()).hexdigest()[:12]
    slug = re.sub(r"[^a-z0-9]+", "-", concept.lower()).strip("-")[:_MAX_SLUG].rstrip("-")
    return f"{slug}-{digest}" if slug else digest


def _lines(uri: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if uri.lower().endswith(FORMATS):
        yield from enumerate(read_list(uri), 1)
        return
    if not uri.lower().endswith(".txt"):
        raise BadList(f"{uri}: concepts are a .txt file with one a line, or a list with a column concept ({', '.join(FORMATS)})")
    fs, path = filesystem(uri)
    try:
        text = fs.cat_file(path).decode("utf-8-sig")  # pyright: ignore[reportAttributeAccessIssue]
    except (FileNotFoundError, IsADirectoryError):
        raise BadList(f"there is no file {uri}") from None
    except UnicodeDecodeError as error:
        raise BadList(f"{uri} is not UTF-8 ({error}); save it as such") from error
    for at, line in enumerate(text.splitlines(), 1):
        yield at, {"concept": line} if line.strip() else {}
