"""From people to manifests: crossed with prompts and edits for `personalize`, with edits for weights jobs of mode `edit`; and new ones.

A row's id is made of its content, so that a person, a prompt or an edit more adds rows and changes none.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa

from pipelines.catalogs import Catalog
from pipelines.lists import FORMATS, BadList, cell, number, read_list
from pipelines.personalize import ROWS
from pipelines.weights_edit import ROWS as EDIT_ROWS
from pipelines.weights_invert import ROWS as INVERT_ROWS
from pipelines.weights_sample import ROWS as SAMPLE_ROWS
from workers.folders import Skipped, list_pictures
from workers.storage import filesystem, join, scheme

ADAPTERS = (".safetensors", ".pt")
COLUMNS = ("row_id", "prompt", "negative_prompt", "start_weights_uri", "edits", "start_timestep", "num_images", "seed", "person_id")
SCHEMA = pa.schema([ROWS.field(name) for name in COLUMNS])
EDIT_SCHEMA = pa.schema([EDIT_ROWS.field(name) for name in ("row_id", "start_weights_uri", "edits", "person_id")])
INVERT_SCHEMA = pa.schema([INVERT_ROWS.field(name) for name in ("row_id", "image_uri", "consent", "person_id")])
_MAX_SLUG = 60


class Person(NamedTuple):
    """Someone's name and where their weights or coefficients are."""

    name: str
    uri: str


class EditSet(NamedTuple):
    """Edits that go together: a list of attribute and strength, and from which timestep on."""

    name: str
    edits: list[dict[str, Any]] | None
    start_timestep: int | None


def people_in(uri: str) -> tuple[list[Person], list[Skipped]]:
    """The people of a list (columns start_weights_uri or weights_uri, and maybe person_id), or of a folder with a file a person.

    A person without a name is called like the file. Raises BadList for what is neither.
    """
    if uri.lower().endswith(FORMATS):
        lines = read_list(uri)
        files = [cell(line, ("start_weights_uri", "weights_uri"), f"{uri}, line {at}") for at, line in enumerate(lines, 1)]
        return [Person(str(line.get("person_id", _stem(file))), file) for line, file in zip(lines, files, strict=True)], []
    fs, root = filesystem(uri)
    if not fs.isdir(root):
        raise BadList(f"{uri}: people are a job's folder, a folder of {' and '.join(ADAPTERS)} files, or a list ({', '.join(FORMATS)})")
    names = sorted(PurePosixPath(path).name for path in fs.ls(root, detail=False))
    base = root if scheme(uri) == "file" else uri.rstrip("/")
    files = [name for name in names if name.lower().endswith(ADAPTERS)]
    skipped = [Skipped(join(base, name), f"ends in none of {', '.join(ADAPTERS)}") for name in names if name not in files]
    return [Person(_stem(name), join(base, name)) for name in files], skipped


def personalize_manifest(
    people: Sequence[Person],
    prompts: str,
    *,
    edits: str | None = None,
    seeds: Sequence[int | None] = (None,),
    num_images: int | None = None,
) -> Catalog:
    """Cross people with a list of prompts (column prompt, maybe negative_prompt) and a list of edits; `seeds` None: each row's from its id.

    Rows that say the same twice are there once, and named. Raises BadList.
    """
    rows, skipped, twice = dict[str, dict[str, Any]](), list[Skipped](), 0
    sets = [EditSet("", None, None)] if edits is None else read_edits(edits)
    for at, line in enumerate(read_list(prompts), 1):
        prompt = cell(line, ("prompt",), f"{prompts}, line {at}")
        if not prompt:
            skipped.append(Skipped(f"{prompts}, line {at}", "is empty"))
            continue
        for person, chosen, seed in itertools.product(people, sets, seeds):
            row = {
                "prompt": prompt,
                "negative_prompt": line.get("negative_prompt"),
                "start_weights_uri": person.uri,
                "edits": chosen.edits,
                "start_timestep": chosen.start_timestep,
                "num_images": num_images,
                "seed": seed,
            }
            row_id = _row_id(f"{person.name} {chosen.name} {prompt}", row)
            twice += row_id in rows
            rows.setdefault(row_id, {"row_id": row_id, **row, "person_id": person.name})
    if twice:
        skipped.append(Skipped(prompts, f"{twice} rows say the same as others; each is there once"))
    return Catalog(pa.Table.from_pylist(list(rows.values()), schema=SCHEMA), skipped)


def edit_manifest(people: Sequence[Person], edits: str) -> Catalog:
    """Cross people with a list of edits, for a job that makes the edited people's adapters. Raises BadList.

    A line that leaves people as they are is named and left out: there would be nothing to make. So is `start_timestep`, which only pictures have.
    """
    rows, skipped, twice = dict[str, dict[str, Any]](), list[Skipped](), 0
    for chosen in read_edits(edits):
        if chosen.edits is None:
            skipped.append(Skipped(f"{edits}, {chosen.name}", "edits nothing"))
            continue
        if chosen.start_timestep is not None:
            skipped.append(
                Skipped(f"{edits}, {chosen.name}", "its start_timestep, since an adapter has no time; give it to a personalize job")
            )
        for person in people:
            row = {"start_weights_uri": person.uri, "edits": chosen.edits}
            row_id = _row_id(f"{person.name} {chosen.name}", row)
            twice += row_id in rows
            rows.setdefault(row_id, {"row_id": row_id, **row, "person_id": person.name})
    if twice:
        skipped.append(Skipped(edits, f"{twice} rows say the same as others; each is there once"))
    return Catalog(pa.Table.from_pylist(list(rows.values()), schema=EDIT_SCHEMA), skipped)


def sample_manifest(seeds: Sequence[int]) -> Catalog:
    """New people, one a seed, named by it."""
    rows = [{"row_id": name, "seed": seed, "person_id": name} for seed in dict.fromkeys(seeds) for name in (f"new-{seed:05d}",)]
    return Catalog(pa.Table.from_pylist(rows, schema=SAMPLE_ROWS), [])


def invert_manifest(photos: str, consent: str | None = None) -> Catalog:
    """The photographs of a folder and below, a row each, for weights jobs of mode invert; `consent` is copied to every row. Raises NotAFolder."""
    files, skipped = list_pictures(photos)
    rows = [
        {"row_id": file.path, "image_uri": file.uri, "consent": consent, "person_id": str(PurePosixPath(file.path).with_suffix(""))}
        for file in files
    ]
    return Catalog(pa.Table.from_pylist(rows, schema=INVERT_SCHEMA), skipped)


def read_edits(uri: str) -> list[EditSet]:
    """Sets of edits from a list: attribute, strength (in standard deviations) and maybe start_timestep; lines of one `name` go together.

    A line without attribute leaves people as they are. Raises BadList.
    """
    sets = dict[str, EditSet]()
    for at, line in enumerate(read_list(uri), 1):
        where = f"{uri}, line {at}"
        attribute, strength = line.get("attribute"), number(line, "strength", where, float)
        if (attribute is None) != (strength is None):
            raise BadList(f"{where}: an edit is an attribute and a strength, in standard deviations; leave both out for none")
        own = [] if attribute is None else [{"attribute": str(attribute), "strength": strength}]
        name = str(line.get("name", f"{attribute} {strength:+g}" if attribute is not None else "as-is"))
        known = sets.get(name, EditSet(name, [], None))
        timestep = number(line, "start_timestep", where, int)
        sets[name] = EditSet(name, [*(known.edits or ()), *own], known.start_timestep if timestep is None else timestep)
    return [chosen._replace(edits=chosen.edits or None) for chosen in sets.values()]


def _stem(file: str) -> str:
    return PurePosixPath(file).stem


def _row_id(words: str, content: Mapping[str, Any]) -> str:
    """Something to read, and a digest of all that decides the row's result."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    slug = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:_MAX_SLUG].rstrip("-")
    return f"{slug}-{digest}" if slug else digest
