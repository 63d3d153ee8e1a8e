"""From lists to a manifest: subjects, prompts and layouts become rows of a `compose` job, sources and edits rows of an `edit` job.

A row's id is made of its content, so that a prompt more adds rows and changes none, and tonight's rows can be told from last night's.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from pipelines import compose, edit
from pipelines.layouts import placed_subjects
from pipelines.lists import BadList, cell, number, read_list
from pipelines.prompts import BadTemplate, Template, Vocabulary, fill, parse_template
from pipelines.rows import BadRow
from workers.folders import Skipped
from workers.storage import Reader

Join = Literal["cross", "combinations", "draw"]

COMPOSE_COLUMNS = (
    *("row_id", "prompt", "negative_prompt", "subjects", "height", "width", "guidance_scale", "seed"),
    *("reference_image_uris", "subject"),
)
COMPOSE_SCHEMA = pa.schema(
    [*(compose.ROWS.field(name) for name in COMPOSE_COLUMNS), ("template", pa.string()), ("layout_name", pa.string())]
)
EDIT_COLUMNS = ("row_id", "source_prompt", "edit_prompt", "image_uri", "source_seed", "height", "width", "guidance_scale")
EDIT_SCHEMA = pa.schema([*(edit.ROWS.field(name) for name in EDIT_COLUMNS), ("source", pa.string())])
_MAX_SLUG = 60


@dataclass(frozen=True)
class Catalog:
    """The rows, and what became of the lists' lines that are in none: (line, why)."""

    table: pa.Table
    skipped: Sequence[Skipped]


@dataclass(frozen=True)
class Subject:
    """phrase: as it stands in a prompt; noun: its class, for DreamBooth's templates; references: pictures of it, for the review page."""

    phrase: str
    noun: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """A name, and a box for every slot of the prompts that it fits."""

    name: str
    boxes: Mapping[str, tuple[float, ...]]


def compose_manifest(
    subjects: str,
    prompts: str,
    layouts: str,
    *,
    seeds: Sequence[int | None] = (None,),
    join: Join = "cross",
    vocabulary: Vocabulary | None = None,
) -> Catalog:
    """Cross three lists. A prompt goes with every layout that has just its slots.

    join: `cross`, every ordered choice of different subjects for a prompt's slots; `combinations`, every choice once, in the list's order;
    `draw`, one choice a prompt, by a hash of both, which a new subject changes only where it is drawn itself. `seeds` None: each row's from
    its id. With a `vocabulary` prompts that it can't read are skipped. Raises BadList.
    """
    people, skipped = _subjects(subjects), list[Skipped]()
    frames = _layouts(layouts)
    rows, misfits = dict[str, dict[str, Any]](), Counter[str]()
    for at, line in enumerate(read_list(prompts), 1):
        where = f"{prompts}, line {at}"
        text = cell(line, ("prompt", "template"), where)
        try:
            template = parse_template(text)
        except BadTemplate as error:
            skipped.append(Skipped(where, str(error)))
            continue
        fitting = [layout for layout in frames if set(layout.boxes) == set(template.slots)]
        if not fitting:
            skipped.append(Skipped(where, f"{text!r}: no layout has just the places {', '.join(template.slots)}"))
        given = {name: number(line, name, where, kind) for name, kind in (("height", int), ("width", int), ("guidance_scale", float))}
        given["negative_prompt"] = line.get("negative_prompt")
        objections = dict[str, None]()
        for chosen in _chosen(people, template, join) if fitting else ():
            filled = fill(template, {slot: _word(subject, template) for slot, subject in chosen.items()})
            why = vocabulary.objection(filled.prompt) if vocabulary is not None else None
            if why is not None:
                objections[why] = None
                misfits[where] += 1
                continue
            for layout, seed in itertools.product(fitting, seeds):
                placed = [
                    {"phrase": _word(subject, template), "occurrence": filled.occurrences[slot], "box": list(layout.boxes[slot])}
                    for slot, subject in chosen.items()
                ]
                row = {"prompt": filled.prompt, **given, "subjects": placed, "seed": seed}
                row_id = _row_id(f"{filled.prompt} {layout.name}", row)
                named = {"subject": ", ".join(subject.phrase for subject in chosen.values()), "template": text, "layout_name": layout.name}
                references = [uri for subject in chosen.values() for uri in subject.references]
                if row_id in rows:
                    misfits["twice"] += 1
                rows.setdefault(row_id, {"row_id": row_id, **row, **named, "reference_image_uris": references or None})
        if objections:
            skipped.append(Skipped(where, f"{text!r}: {misfits.pop(where)} prompts skipped; {'; '.join(itertools.islice(objections, 5))}"))
    if misfits["twice"]:
        skipped.append(
            Skipped(prompts, f"{misfits['twice']} rows are the same as others, word for word and box for box; each is there once")
        )
    return Catalog(_table(rows, COMPOSE_SCHEMA), skipped)


def edit_manifest(sources: str, edits: str, *, seeds: Sequence[int | None] = (None,), vocabulary: Vocabulary | None = None) -> Catalog:
    """Cross sources with edits.

    A source has `source_prompt`, maybe `image_uri`, `source_seed`, `height` and `width`; `seeds` are for generated ones that name none. An edit
    has `edit_prompt`, in which `{source}` stands for the source's prompt, or `replace` and `with`, for the sources that hold that word; its
    `source` keeps it to one source, by the source's `name`. Raises BadList.
    """
    rows, skipped, changes = dict[str, dict[str, Any]](), list[Skipped](), read_list(edits)
    used, twice = set[int](), 0
    for at, line in enumerate(read_list(sources), 1):
        where = f"{sources}, line {at}"
        prompt = cell(line, ("source_prompt", "prompt"), where)
        source = {name: number(line, name, where, int) for name in ("source_seed", "height", "width")}
        own = (source["source_seed"],) if source["source_seed"] is not None or "image_uri" in line else seeds
        before = len(rows)
        for i, change in enumerate(changes):
            wanted = _edited(prompt, str(line.get("name", "")), change, f"{edits}, line {i + 1}")
            why = vocabulary.objection(wanted) if vocabulary is not None and wanted is not None else None
            if why is not None:
                skipped.append(Skipped(where, f"{wanted!r}: {why}"))
            if wanted is None or why is not None:
                continue
            used.add(i)
            for seed in own:
                scale = number(change, "guidance_scale", f"{edits}, line {i + 1}", float)
                row = {
                    "source_prompt": prompt,
                    "edit_prompt": wanted,
                    "image_uri": line.get("image_uri"),
                    **source,
                    "source_seed": seed,
                    "guidance_scale": scale,
                }
                row_id = _row_id(wanted, row)
                twice += row_id in rows
                rows.setdefault(row_id, {"row_id": row_id, **row, "source": line.get("name")})
        if len(rows) == before:
            skipped.append(Skipped(where, f"{prompt!r}: no edit is new to it"))
    skipped += [Skipped(f"{edits}, line {i + 1}", "it fits no source") for i in range(len(changes)) if i not in used]
    if twice:
        skipped.append(Skipped(edits, f"{twice} rows are the same as others; each is there once"))
    return Catalog(_table(rows, EDIT_SCHEMA), skipped)


def _subjects(uri: str) -> list[Subject]:
    found = list[Subject]()
    for at, line in enumerate(read_list(uri), 1):
        phrase = cell(line, ("phrase", "subject"), f"{uri}, line {at}")
        references = line.get("reference_image_uris") or ([line["reference_image_uri"]] if "reference_image_uri" in line else [])
        if isinstance(references, str):
            references = [part.strip() for part in references.split(";")]
        found.append(Subject(phrase, str(line.get("noun", phrase)), tuple(references)))
    if not found:
        raise BadList(f"{uri} names no subject; write a line for each, with a phrase")
    return found


def _layouts(uri: str) -> list[Layout]:
    """Lines with `name` and `boxes` (slot -> box), or a line for each slot: `name`, `slot`, `x0`, `y0`, `x1`, `y1`."""
    boxes = dict[str, dict[str, tuple[float, ...]]]()
    for at, line in enumerate(read_list(uri), 1):
        where = f"{uri}, line {at}"
        name = cell(line, ("name", "layout"), where)
        if isinstance(line.get("boxes"), dict):
            slots = {str(slot): box for slot, box in line["boxes"].items() if box is not None}  # Parquet's structs have every field
        else:
            slots = {str(line.get("slot", "subject")): [number(line, side, where, float) for side in ("x0", "y0", "x1", "y1")]}
        for slot, box in slots.items():
            try:
                placed_subjects({"subjects": [{"phrase": slot, "box": box}]}, (1, 1), Reader(), 1)
            except (BadRow, TypeError) as error:
                raise BadList(f"{where}: {error}") from error
            if slot in boxes.setdefault(name, {}):
                raise BadList(f"{where}: layout {name} has a box for {slot} already")
            boxes[name][slot] = tuple(map(float, box))
    if not boxes:
        raise BadList(f"{uri} holds no layout; write name, slot, x0, y0, x1, y1")
    return [Layout(name, slots) for name, slots in boxes.items()]


def _chosen(subjects: Sequence[Subject], template: Template, join: Join) -> Iterator[dict[str, Subject]]:
    """Subjects for the template's slots, never one twice."""
    count = len(template.slots)
    if join == "draw":
        order = sorted(subjects, key=lambda subject: hashlib.sha256(f"{template.text}\0{subject.phrase}".encode()).digest())
        choices: Iterator[tuple[Subject, ...]] = iter([tuple(order[:count])] if len(order) >= count else [])
    else:
        choices = (itertools.permutations if join == "cross" else itertools.combinations)(subjects, count)
    for choice in choices:
        yield dict(zip(template.slots, choice, strict=True))


def _word(subject: Subject, template: Template) -> str:
    return subject.noun if template.noun else subject.phrase


def _edited(prompt: str, name: str, change: Mapping[str, Any], where: str) -> str | None:
    """The prompt of an edit of a source; None where the edit is not for it."""
    if "source" in change and str(change["source"]) != name:
        return None
    if "edit_prompt" in change:
        return str(change["edit_prompt"]).replace("{source}", prompt)
    old, new = cell(change, ("replace", "edit_prompt"), where), cell(change, ("with",), where)
    wanted = re.sub(rf"(?<!\w){re.escape(old)}(?!\w)", lambda _: new, prompt)
    return None if wanted == prompt else wanted


def _row_id(words: str, content: Mapping[str, Any]) -> str:
    """Something to read, and a digest of all that decides the row's result."""
    known = {key: value for key, value in content.items() if value is not None}
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]
    slug = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:_MAX_SLUG].rstrip("-")
    return f"{slug}-{digest}" if slug else digest


def _table(rows: Mapping[str, Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist(list(rows.values()), schema=schema)
