"""Photographs with their restored faces in place: what is made once all faces of a job are restored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from pipelines.pipeline import Context
from workers import storage
from workers.artifacts import artifact_name
from workers.media import Format, Picture, encode_image
from workers.paste import FaceRow, paste_back
from workers.provenance import Provenance, write_picture


def paste_photographs(context: Context, format: Format, rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One picture a photograph under artifacts/photographs, from the `ok` rows of a job, inputs and outputs together. Idempotent.

    A photograph given as bytes has no place to be read from again and is left out; `not_pasted` counts those and the ones that failed.
    """
    without_uri = 0

    def faces() -> Iterator[FaceRow]:
        nonlocal without_uri
        for row in rows:
            if row.get("image_uri") is None:
                without_uri += 1
                continue
            yield FaceRow(row["row_id"], row["image_uri"], row["crop_matrix"], partial(_restored, context.folder, row))

    def write(picture: Picture, photo: str, row_ids: Any) -> None:
        made = Provenance(model=context.model.name, method=context.model.method, job=context.job, rows=row_ids, source=photo)
        data = encode_image(picture.pixels, format, icc_profile=picture.icc_profile, exif=picture.exif, xmp=made.xmp())
        name = artifact_name(photo.lstrip("/"), format).replace("artifacts/", "artifacts/photographs/", 1)
        if len(PurePosixPath(name).name) > 240:
            name = artifact_name(row_ids[0], format).replace("artifacts/", "artifacts/photographs/", 1)
        write_picture(storage.join(context.folder, name), data, [photo])

    report = paste_back(faces(), context.reader.read, write, max_pixels=context.max_pixels)
    return {"pasted_photographs": report.photographs, "pasted_faces": report.faces, "not_pasted": len(report.failed) + without_uri}


def _restored(folder: str, row: Mapping[str, Any]) -> bytes:
    if row.get("restored") is not None:
        return row["restored"]
    fs, path = storage.filesystem(storage.join(folder, row["restored_uri"]))
    data = fs.cat_file(path)
    assert isinstance(data, bytes)
    return data
