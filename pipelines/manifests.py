"""From folders to a manifest: photographs and references of the same people become rows of a `restore` job, and nothing vanishes silently.

Whose photograph it is, is said by a folder of that person's name, at any depth, or by the file's name up to a number (`anna_01.jpg`,
`anna-2.tif`, `anna.png`); upper and lower case are the same. Files whose header cannot be read are skipped and listed. One whose pixels are
damaged behind a good header becomes a row, and fails in the job with its reason.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import PurePosixPath
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.restore import ROWS
from pipelines.whose import assign_faces
from workers.crops import box_around
from workers.faces import Face, FaceEmbedder, FaceFinder
from workers.folders import PictureFile, Skipped, list_pictures, natural_key
from workers.media import ImageBroken, ImageTooLarge, Pixels, decode_image
from workers.storage import Reader, filesystem, write_atomic

MAX_REFERENCES = 16
COLUMNS = ("row_id", "image_uri", "face_box", "reference_image_uris", "person_id", "landmarks", "reference_landmarks")
SCHEMA = pa.schema([ROWS.field(name) for name in COLUMNS])
_MAX_QUOTED_PATH = 200  # bytes; the id becomes a file name
_NUMBER = re.compile(r"[\s_.\-(]+\d+\)?$")


class NothingToRestore(ValueError):
    """No row came out of the folders."""


@dataclass(frozen=True)
class Reference:
    """A clean photograph of a person; landmarks and embedding where faces were looked for."""

    uri: str
    landmarks5: Sequence[float] | None = None
    embedding: np.ndarray | None = None


@dataclass(frozen=True)
class ManifestReport:
    """table: the rows, columns as in `SCHEMA`; skipped: (path, why) of every file that is in no row; people: rows a person, by name."""

    table: pa.Table
    skipped: Sequence[Skipped]
    people: Mapping[str, int]


@dataclass
class _Person:
    name: str
    references: list[Reference] = field(default_factory=list)


def restore_manifest(photos: str, references: str, *, faces: bool = False) -> ManifestReport:
    """Match a folder of damaged photographs with a folder of clean ones, both local or remote. No file is changed.

    Without `faces` a photograph is taken as it is, one row each. With it (extra `faces`) every picture is decoded, faces are found, and
    there is a row for each face of somebody who has references. Raises NotAFolder, NothingToRestore where a folder holds no picture, and
    FacesNotInstalled.
    """
    if filesystem(photos) == filesystem(references):
        raise NothingToRestore(
            f"{photos} cannot hold both the photographs and the references; put the references into a folder of their own"
        )
    finder = _Faces() if faces else None
    reference_files, skipped_references = list_pictures(references, without=photos)
    photo_files, skipped = list_pictures(photos, without=references)
    for folder, files in ((photos, photo_files), (references, reference_files)):
        if not files:
            raise NothingToRestore(f"{folder} holds no picture that can be read; give another folder")
    people, more = _collect_people(reference_files, finder)
    rows, unmatched = list[dict[str, object]](), list[Skipped]()
    for photo in photo_files:
        for row in _rows_of(photo, people, finder):
            if isinstance(row, Skipped):
                unmatched.append(row)
            else:
                rows.append(row)
    count = Counter(row["person_id"] for row in rows)
    counts = {person.name: count[person.name] for person in people.values()}
    return ManifestReport(pa.Table.from_pylist(rows, schema=SCHEMA), [*skipped, *skipped_references, *more, *unmatched], counts)


def identity_manifest(photos: str) -> ManifestReport:
    """A folder of people's photographs, by person as in `restore_manifest`: a row a person, for weights jobs of mode identity.

    Raises NotAFolder, NothingToRestore where it holds no picture.
    """
    files, skipped = list_pictures(photos)
    if not files:
        raise NothingToRestore(f"{photos} holds no picture that can be read; give another folder")
    people, more = _collect_people(files, None)
    rows = [
        {
            "row_id": _row_id(person.name),
            "reference_image_uris": [reference.uri for reference in person.references],
            "person_id": person.name,
        }
        for person in people.values()
    ]
    schema = pa.schema(
        [pa.field("row_id", pa.string(), nullable=False), ("reference_image_uris", pa.list_(pa.string())), ("person_id", pa.string())]
    )
    return ManifestReport(pa.Table.from_pylist(rows, schema), [*skipped, *more], {person.name: 1 for person in people.values()})


def write_manifest(report: ManifestReport, output: object) -> None:
    """Write the rows as a Parquet file, whole or not at all. Raises NothingToRestore for no rows, ValueError for another extension."""
    _check_name(str(output))
    if not report.table.num_rows:
        lines = "".join(f"\n  {path}: {why}" for path, why in report.skipped[:10])
        raise NothingToRestore(f"no photograph has references of the same person; {len(report.skipped)} files were skipped:{lines}")
    write_table(report.table, str(output))


def write_table(table: pa.Table, uri: str) -> None:
    """Write a manifest's rows as a Parquet file, whole or not at all. Raises ValueError for another extension."""
    _check_name(uri)
    file = BytesIO()
    pq.write_table(table, file, row_group_size=16_384)
    fs, path = filesystem(uri)
    write_atomic(fs, path, file.getvalue())


def _check_name(uri: str) -> None:
    if not uri.endswith(".parquet"):
        raise ValueError(f"{uri}: a manifest is a Parquet file; name it something.parquet")


def person_of(path: str, known: Mapping[str, object] | None = None) -> str:
    """The key of the person that a relative path names: the first folder, else the file's name without its number.

    With `known` keys, the first folder that is one of them, else the file's name when it, or it without numbers at its end, is one of them.
    """
    parts = PurePosixPath(path)
    folders, stem = [_key(folder) for folder in parts.parts[:-1]], _key(parts.stem)
    if known is None:
        return folders[0] if folders else _NUMBER.sub("", stem)
    name = stem
    for folder in folders:
        if folder in known:
            return folder
    while name not in known and _NUMBER.search(name):
        name = _NUMBER.sub("", name)
    return name if name in known else person_of(path)


class _Faces:
    """The finder, the embedder, and how they read a file."""

    def __init__(self) -> None:
        self.finder, self.embedder, self.reader = FaceFinder(), FaceEmbedder(), Reader()

    def look(self, file: PictureFile) -> tuple[Pixels, list[Face]]:
        pixels = decode_image(self.reader.read(file.uri)).pixels
        return pixels, self.finder.find(pixels)


def _collect_people(files: Sequence[PictureFile], faces: _Faces | None) -> tuple[dict[str, _Person], list[Skipped]]:
    people, skipped = dict[str, _Person](), list[Skipped]()
    for file in sorted(files, key=lambda file: natural_key(file.path)):
        parts = PurePosixPath(file.path)
        name = parts.parts[0] if len(parts.parts) > 1 else _NUMBER.sub("", parts.stem)
        person = people.setdefault(person_of(file.path), _Person(unicodedata.normalize("NFC", name)))
        if len(person.references) == MAX_REFERENCES:
            skipped.append(Skipped(file.uri, f"{person.name} has {MAX_REFERENCES} references already"))
        elif faces is None:
            person.references.append(Reference(file.uri))
        else:
            found = _reference_with_face(file, faces)
            (skipped if isinstance(found, Skipped) else person.references).append(found)  # pyright: ignore[reportArgumentType]
    return {key: person for key, person in people.items() if person.references}, skipped


def _reference_with_face(file: PictureFile, faces: _Faces) -> Reference | Skipped:
    try:
        pixels, found = faces.look(file)
    except (ImageBroken, ImageTooLarge) as error:
        return Skipped(file.uri, str(error))
    by_size = sorted(found, key=lambda face: -face.size)
    if not by_size:
        return Skipped(file.uri, "no face found in this reference")
    if len(by_size) > 1 and by_size[1].size > by_size[0].size / 2:
        return Skipped(file.uri, f"{len(found)} faces in this reference; it must show one person")
    landmarks = by_size[0].landmarks5
    return Reference(file.uri, landmarks, faces.embedder.embed(pixels, landmarks))


def _rows_of(photo: PictureFile, people: Mapping[str, _Person], faces: _Faces | None) -> Iterator[dict[str, object] | Skipped]:
    key = person_of(photo.path, people)
    if faces is not None:
        yield from _rows_of_faces(photo, key if key in people else None, people, faces)
    elif key in people:
        yield _row(photo, people[key], None, "")
    else:
        yield Skipped(photo.uri, f"no reference of '{key}'")


def _rows_of_faces(
    photo: PictureFile, named: str | None, people: Mapping[str, _Person], faces: _Faces
) -> Iterator[dict[str, object] | Skipped]:
    try:
        pixels, found = faces.look(photo)
    except (ImageBroken, ImageTooLarge) as error:
        yield Skipped(photo.uri, str(error))
        return
    if not found:
        yield Skipped(photo.uri, "no face found; give it with face_box in the manifest, or make one of face crops without --faces")
        return
    embeddings = [faces.embedder.embed(pixels, face.landmarks5) for face in found] if len(found) > 1 or named is None else [None]
    distances = [
        {key: _distance(embedding, person) for key, person in people.items()} if embedding is not None else {} for embedding in embeddings
    ]
    for number, (face, key) in enumerate(zip(found, assign_faces(distances, named), strict=True), 1):
        suffix = f"#face-{number}" if len(found) > 1 else ""
        if key is None:
            yield Skipped(
                photo.uri + suffix, "resembles no one in the references closely enough; give face_box and person_id in the manifest"
            )
        else:
            yield _row(photo, people[key], face, suffix)


def _row(photo: PictureFile, person: _Person, face: Face | None, suffix: str) -> dict[str, object]:
    return {
        "row_id": _row_id(photo.path) + suffix,
        "image_uri": photo.uri,
        "face_box": box_around(face.landmarks5) if face else None,
        "reference_image_uris": [reference.uri for reference in person.references],
        "person_id": person.name,
        "landmarks": face.landmarks5 if face else None,
        "reference_landmarks": [reference.landmarks5 for reference in person.references] if face else None,
    }


def _row_id(path: str) -> str:
    """The path, so that the id is stable and can be read; an overlong one keeps its end and a digest of the whole."""
    name = unicodedata.normalize("NFC", path)
    if len(quote(name, safe="")) <= _MAX_QUOTED_PATH:
        return name
    end = name
    while len(quote(end, safe="")) > _MAX_QUOTED_PATH - 20:
        end = end[1:]
    return f"{hashlib.sha256(path.encode()).hexdigest()[:16]}-{end}"


def _distance(embedding: np.ndarray, person: _Person) -> float:
    return min(float(np.linalg.norm(embedding - reference.embedding)) for reference in person.references if reference.embedding is not None)


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold().strip()
