"""Pictures of rows: read as a manifest gives them, written as the job file asks, each saying how it came about."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.pipeline import Context
from pipelines.rows import BadRow
from workers.artifacts import artifact_name
from workers.media import Format, Pixels, encode_image
from workers.provenance import Provenance, write_picture
from workers.storage import Reader, join

EXTENSIONS: Mapping[Format, str] = {"png": "png", "jpeg": "jpg", "webp": "webp", "tiff": "tif"}


def given(row: Mapping[str, Any], column: str, reader: Reader) -> bytes | None:
    """A row's picture file, from `column` or from where `column`_uri says; None for neither. Raises BadRow for both, and what reading raises."""
    data: bytes | None = row.get(column)
    uri: str | None = row.get(f"{column}_uri")
    if data is not None and uri is not None:
        raise BadRow(f"give either {column} or {column}_uri, not both")
    return reader.read(uri) if uri is not None else data


def needed(row: Mapping[str, Any], column: str, reader: Reader) -> bytes:
    """As `given`, and raises BadRow where the row has none."""
    data = given(row, column, reader)
    if data is None:
        raise BadRow(f"give either {column} or {column}_uri; one of them is needed")
    return data


def given_list(row: Mapping[str, Any], columns: str, reader: Reader) -> Sequence[bytes]:
    """A row's picture files, from `columns` such as `images` or from where `image_uris` says; none for neither. Raises as `given`."""
    uris = f"{columns.removesuffix('s')}_uris"
    if row.get(columns) is not None and row.get(uris) is not None:
        raise BadRow(f"give either {columns} or {uris}, not both")
    return row.get(columns) or [reader.read(uri) for uri in row.get(uris) or []]


def kept(column: str, media: str) -> pa.Schema:
    """The columns of one picture that a job makes: its bytes or its place, and the digest of the file."""
    where = (column, pa.binary()) if media == "columns" else (f"{column}_uri", pa.string())
    return pa.schema([where, (f"{column}_sha256", pa.string())])


def kept_list(columns: str, media: str) -> pa.Schema:
    """The columns of several pictures a row, such as `images` or `image_uris`, and `image_sha256s`."""
    name = columns.removesuffix("s")
    where = (columns, pa.list_(pa.binary())) if media == "columns" else (f"{name}_uris", pa.list_(pa.string()))
    return pa.schema([where, (f"{name}_sha256s", pa.list_(pa.string()))])


def keep(
    pixels: Pixels,
    column: str,
    row_id: str,
    context: Context,
    *,
    format: Format = "png",
    label: str = "",
    source: str | None = None,
    generated: bool = False,
    icc_profile: bytes | None = None,
    exif: bytes | None = None,
) -> dict[str, Any]:
    """Make a picture file of (H, W, 3) uint8 pixels, write it where the job's media go, and return the values of `kept(column, media)`.

    `label` tells a row's pictures apart. `source` is the picture that it was made from; `generated` says that nothing in it is a photograph.
    The name depends on the row only, so that doing it again writes the same file. Raises OSError, OriginalInTheWay.
    """
    made = Provenance(
        model=context.model.name, method=context.model.method, job=context.job, rows=[row_id], source=source, generated=generated
    )
    data = encode_image(pixels, format, icc_profile=icc_profile, exif=exif, xmp=made.xmp())
    return keep_file(data, column, row_id, context, extension=EXTENSIONS[format], label=label, sources=[source] if source else [])


def keep_file(
    data: bytes, column: str, row_id: str, context: Context, *, extension: str, label: str = "", sources: Sequence[str] = ()
) -> dict[str, Any]:
    """As `keep`, of the bytes of a picture file."""
    digest = {f"{column}_sha256": hashlib.sha256(data).hexdigest()}
    if context.media == "columns":
        return {column: data, **digest}
    name = artifact_name(row_id, extension, label)
    write_picture(join(context.folder, name), data, sources)
    return {f"{column}_uri": name, **digest}


def as_list(kept: Sequence[Mapping[str, Any]], columns: str) -> dict[str, Any]:
    """The values of `kept_list` from those of each picture in `kept`, whose column is the singular of `columns`."""
    name = columns.removesuffix("s")
    plural = {name: columns, f"{name}_uri": f"{name}_uris", f"{name}_sha256": f"{name}_sha256s"}
    return {plural[key]: [entry[key] for entry in kept] for key in kept[0]}


def to_pixels(data: bytes, height: int, width: int) -> Pixels:
    """(H, W, 3) uint8 of raw bytes between two stages."""
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)


def to_tensor(data: bytes, height: int, width: int) -> Any:
    """(3, H, W) float tensor in [-1, 1] of raw bytes between two stages."""
    import torch

    return torch.from_numpy(to_pixels(data, height, width).copy()).permute(2, 0, 1).float() / 127.5 - 1


def from_tensor(image: Any) -> bytes:
    """Raw bytes for the next stage, of a (3, H, W) tensor in [-1, 1]."""
    pixels = image.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0).contiguous()
    return pixels.cpu().numpy().tobytes()
