"""From photographs and concepts to the manifest of a `translate` job: pairs that the lab's edits make, or pairs that somebody has.

A row's id is made of its concept, so that a concept more adds a row and changes none.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.catalogs import Catalog
from pipelines.concept_lists import concept_id, read_concepts
from pipelines.lists import BadList
from pipelines.translate import COLUMNS, FEWEST
from workers.crops import resize_square
from workers.folders import Skipped, list_pictures
from workers.media import Pixels, decode_image, encode_image
from workers.storage import Reader, filesystem, join, write_atomic

_ALL = pa.schema(COLUMNS)
SCHEMA = pa.schema([_ALL.field(name) for name in ("row_id", "concept", "pairs_uri")])
GIVEN = pa.schema([_ALL.field(name) for name in ("row_id", "concept", "input_image_uris", "target_image_uris")])
UNSEEN_DRAWINGS = 1_200_000  # number of the first drawn portrait: none before a million and two was trained on or measured with


def lab_pairs(photos: str | None, concepts: str, out: str, *, pictures: int = 72, drawings: int = 36, side: int = 64) -> Catalog:
    """A row a concept, with a Parquet file of pairs below `out`/pairs: every picture as it is and under the lab's edit of that name.

    `pictures` of them: `drawings` drawn portraits, the others of the folder `photos`, spread over it; the same for all concepts, mixed.
    Texts that name no edit of the lab are skipped. Raises BadList, NotAFolder, and ValueError where there are too few pictures.
    """
    shown = _pictures(photos, pictures, drawings, side)
    inputs = [encode_image(picture, "png") for picture in shown]
    rows, skipped = list[dict[str, Any]](), list[Skipped]()
    for where, concept, seed in read_concepts(concepts, skipped):
        if seed is not None:
            skipped.append(Skipped(where, "has a seed; pairs have none, leave it out"))
            continue
        try:
            targets = _edited(concept, shown)
        except ValueError as error:
            skipped.append(Skipped(where, str(error)))
            continue
        row_id = concept_id(concept, None)
        uri = join(out, f"pairs/{row_id}.parquet")
        buffer = io.BytesIO()
        pq.write_table(pa.table({"input_image": inputs, "target_image": [encode_image(picture, "png") for picture in targets]}), buffer)
        fs, path = filesystem(uri)
        write_atomic(fs, path, buffer.getvalue())
        rows.append({"row_id": row_id, "concept": concept, "pairs_uri": path if "://" not in uri else uri})
    return Catalog(pa.Table.from_pylist(rows, schema=SCHEMA), skipped)


def given_pairs(folder: str) -> Catalog:
    """A row for every sub-folder that holds input/ and target/ with files of the same names; its name is the concept. Raises NotAFolder."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    files, skipped = list_pictures(folder)
    for file in files:
        parts = PurePosixPath(file.path).parts
        if len(parts) == 3 and parts[1] in ("input", "target"):
            found.setdefault(parts[0], {"input": {}, "target": {}})[parts[1]][PurePosixPath(parts[2]).stem] = file.uri
        else:
            skipped.append(Skipped(file.path, "is not in CONCEPT/input or CONCEPT/target"))
    rows = list[dict[str, Any]]()
    for concept, sides in found.items():
        both = [name for name in sides["input"] if name in sides["target"]]
        alone = sorted(set(sides["input"]) ^ set(sides["target"]))
        skipped += [Skipped(f"{concept}/{name}", "has no partner of the same name") for name in alone]
        if len(both) < FEWEST:
            skipped.append(Skipped(concept, f"{len(both)} pairs; at least {FEWEST} are needed"))
            continue
        uris = {f"{side}_image_uris": [sides[side][name] for name in both] for side in ("input", "target")}
        rows.append({"row_id": concept_id(concept, None), "concept": concept, **uris})
    return Catalog(pa.Table.from_pylist(rows, schema=GIVEN), skipped)


def _pictures(photos: str | None, count: int, drawings: int, side: int) -> list[Pixels]:
    """Photographs and drawings of (side, side, 3), mixed by a fixed order. Raises ValueError where there are too few."""
    if photos is None:
        drawings = count
    read, found = Reader(), list[Pixels]()
    if wanted := count - drawings:
        assert photos is not None
        files = list_pictures(photos)[0]
        if len(files) < wanted:
            raise BadList(f"{photos} holds {len(files)} pictures, {wanted} are wanted; set --pictures or --drawings")
        chosen = [files[i * len(files) // wanted] for i in range(wanted)]
        found += [resize_square(decode_image(read.read(file.uri)).pixels, side)[0] for file in chosen]
    found += _drawn(drawings, side)
    order = np.random.default_rng(0).permutation(len(found))
    return [found[i] for i in order]


def _drawn(count: int, side: int) -> Iterator[Pixels]:
    from models.training.pictures import drawn_portraits

    if count:
        yield from drawn_portraits(count, side, UNSEEN_DRAWINGS).permute(0, 2, 3, 1).contiguous().numpy()


def _edited(concept: str, pictures: Sequence[Pixels]) -> list[Pixels]:
    """The pictures under an edit of the lab. Raises UnknownConcept."""
    import torch

    from models.lab.concepts import find_concept

    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    made = find_concept(concept).apply(images).clamp(-1, 1).add(1).mul(127.5).round().byte()
    return list(made.permute(0, 2, 3, 1).contiguous().numpy())
