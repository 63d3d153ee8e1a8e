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
    """A row a concept of a text file (a concept a line), of a list with a column `concept` and maybe `seed`, or of the lab (see `read_concepts`).

    What is empty, and what says the same as an earlier line (but for case and spaces) with the same seed, is skipped and named.
    Raises BadList for a file that can't be read.
    """
    skipped = list[Skipped]()
    rows = [
        {"row_id": concept_id(concept, seed), "concept": concept, "seed": seed} for _where, concept, seed in read_concepts(uri, skipped)
    ]
    return Catalog(pa.Table.from_pylist(rows, schema=ROWS), skipped)


def read_concepts(uri: str, skipped: list[Skipped]) -> Iterator[tuple[str, str, int | None]]:
    """Place, concept and seed of every line that counts; the others are added to `skipped`.

    Besides a file: `lab:300`, the lab's first 300 training concepts; `lab:held-out`, the 20 that nothing is trained on; several with commas
    between. Raises BadList.
    """
    seen = dict[tuple[str, int | None], str]()
    for where, line in _lines(uri):
        concept = " ".join(cell(line, ("concept", "text"), where).split()) if line else ""
        if not concept:
            skipped.append(Skipped(where, "is empty"))
            continue
        seed = number(line, "seed", where, int)
        first = seen.setdefault((concept.lower(), seed), where)
        if first != where:
            skipped.append(Skipped(where, f"{concept!r} is on {first.removeprefix(f'{uri}, ')} already"))
            continue
        yield where, concept, seed


def concept_id(concept: str, seed: int | None) -> str:
    """Something to read, and a digest of all that decides the row's result."""
    digest = hashlib.sha256(json.dumps([concept, seed]).encode()).hexdigest()[:12]
    slug = re.sub(r"[^a-z0-9]+", "-", concept.lower()).strip("-")[:_MAX_SLUG].rstrip("-")
    return f"{slug}-{digest}" if slug else digest


def _lines(uri: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if uri.startswith("lab:"):
        yield from ((f"{uri}, line {at}", {"concept": text}) for at, text in enumerate(_of_the_lab(uri), 1))
        return
    if uri.lower().endswith(FORMATS):
        yield from ((f"{uri}, line {at}", line) for at, line in enumerate(read_list(uri), 1))
        return
    if not uri.lower().endswith(".txt"):
        raise BadList(f"{uri}: concepts are a .txt file with one a line, a list with a column concept ({', '.join(FORMATS)}), or lab:300")
    fs, path = filesystem(uri)
    try:
        text = fs.cat_file(path).decode("utf-8-sig")  # pyright: ignore[reportAttributeAccessIssue]
    except (FileNotFoundError, IsADirectoryError):
        raise BadList(f"there is no file {uri}") from None
    except UnicodeDecodeError as error:
        raise BadList(f"{uri} is not UTF-8 ({error}); save it as such") from error
    for at, line in enumerate(text.splitlines(), 1):
        yield f"{uri}, line {at}", {"concept": line} if line.strip() else {}


def _of_the_lab(named: str) -> list[str]:
    """The texts of `lab:300`, `lab:held-out`, or both with a comma between. Raises BadList."""
    from models.lab.concepts import held_out_concepts, training_concepts

    found = []
    for part in named.split(","):
        which = part.strip().removeprefix("lab:")
        if which != "held-out" and not which.isdecimal():
            raise BadList(f"{part.strip()}: write lab:held-out, or how many of the lab's training concepts, such as lab:300")
        try:
            found += held_out_concepts() if which == "held-out" else training_concepts(int(which))
        except ValueError as error:
            raise BadList(str(error)) from error
    return [concept.text for concept in found]
