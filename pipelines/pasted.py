"""After a restore job: one picture a photograph, with all its restored faces in place, in the job folder's `photographs/`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.pictures import EXTENSIONS
from pipelines.pipeline import Context
from workers.media import Format, Picture, encode_image
from workers.paste import FaceRow, paste_back
from workers.provenance import Provenance, write_picture
from workers.storage import filesystem, join, write_atomic

INDEX = "photographs/index.parquet"
INDEX_SCHEMA = pa.schema(
    [
        pa.field("image_uri", pa.string(), nullable=False),
        ("photograph_uri", pa.string()),  # relative to the job folder; null where the picture could not be made
        ("sha256", pa.string()),
        ("row_ids", pa.list_(pa.string())),
        ("error", pa.string()),
    ]
)


def paste_photographs(format: Format, context: Context, rows: Iterable[Mapping[str, Any]]) -> Mapping[str, int]:
    """Write every photograph that has restored faces, and `photographs/index.parquet`; returns counts. Idempotent.

    rows: those that are ok, with `row_id`, `image_uri`, `crop_matrix`, and `restored_uri` or `restored`. A row whose photograph came as bytes
    inside the manifest has no other rows to be found with and is left out. Raises OriginalInTheWay, or OSError where nothing can be written.
    """
    written = list[dict[str, Any]]()

    def write(picture: Picture, photo: str, row_ids: Sequence[str]) -> None:
        made = Provenance(model=context.model.name, method=context.model.method, job=context.job, rows=row_ids, source=photo)
        data = encode_image(picture.pixels, format, icc_profile=picture.icc_profile, exif=picture.exif, xmp=made.xmp())
        name = photograph_name(photo, format)
        write_picture(join(context.folder, name), data, [photo])
        written.append({"image_uri": photo, "photograph_uri": name, "sha256": hashlib.sha256(data).hexdigest(), "row_ids": row_ids})

    report = paste_back(_face_rows(context.folder, rows), context.reader.read, write, max_pixels=context.max_pixels)
    failed = [{"image_uri": photo, "error": why} for photo, why in report.failed]
    file = BytesIO()
    pq.write_table(pa.Table.from_pylist(sorted(written + failed, key=lambda row: row["image_uri"]), schema=INDEX_SCHEMA), file)
    fs, path = filesystem(join(context.folder, INDEX))
    write_atomic(fs, path, file.getvalue())
    return {"photographs": report.photographs, "photographs_failed": len(failed), "faces_pasted": report.faces}


def photograph_name(photo: str, format: Format) -> str:
    """Where the picture made from a photograph lies, relative to the job folder: its own name, and a digest of its whole URI."""
    digest = hashlib.sha1(photo.encode()).hexdigest()
    stem = PurePosixPath(photo).stem
    while len(quote(stem, safe="")) > 160:
        stem = stem[:-1]
    return f"photographs/{digest[:2]}/{quote(stem, safe='')}-{digest[:8]}.{EXTENSIONS[format]}"


def _face_rows(folder: str, rows: Iterable[Mapping[str, Any]]) -> Iterator[FaceRow]:
    for row in rows:
        if row.get("image_uri"):
            where = row.get("restored_uri")
            yield FaceRow(
                row["row_id"], row["image_uri"], row["crop_matrix"], _Restored(row.get("restored"), join(folder, where) if where else None)
            )


class _Restored:
    """Reads a restored face when it is asked for; a million rows are a million names, not a million pictures."""

    def __init__(self, data: bytes | None, uri: str | None) -> None:
        self.data, self.uri = data, uri

    def __call__(self) -> bytes:
        if self.data is not None:
            return self.data
        assert self.uri is not None
        fs, path = filesystem(self.uri)
        content = fs.cat_file(path)
        assert isinstance(content, bytes)
        return content
