"""Layouts of a row: the subjects that a prompt names, each with its box or mask. Checked without a model."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from pipelines.rows import BadRow
from workers.media import ImageBroken, decode_image
from workers.storage import Reader

MAX_SUBJECTS = 8
SUBJECT = pa.struct(
    [
        ("phrase", pa.string()),
        ("occurrence", pa.int32()),  # which of equal phrases in the prompt, from 0
        ("box", pa.list_(pa.float32())),  # x0, y0, x1, y1 as fractions of the picture; exactly one of box, mask, mask_uri
        ("mask", pa.binary()),  # a picture of the whole frame, white where the subject goes
        ("mask_uri", pa.string()),
        ("token_indices", pa.list_(pa.int32())),  # instead of finding the phrase
    ]
)
DRAWN = pa.list_(pa.struct([("phrase", pa.string()), ("box", pa.list_(pa.float32()))]))
"""A layout as a page draws it: every subject with its box, a mask's too."""
_WHITE = 128  # of 255


@dataclass(frozen=True)
class Placed:
    """A subject of a row: its box, and the mask (H, W) bool of the whole frame where the row gives one."""

    phrase: str
    occurrence: int | None
    box: tuple[float, float, float, float]
    mask: NDArray[np.bool_] | None
    token_indices: tuple[int, ...] | None


def placed_subjects(row: Mapping[str, Any], size: tuple[int, int], reader: Reader, max_pixels: int) -> list[Placed]:
    """A row's `subjects` for a picture of `size` (height, width). Raises BadRow with the subject and what is wrong, and what reading raises."""
    subjects = row["subjects"]
    if not 1 <= len(subjects) <= MAX_SUBJECTS:
        raise BadRow(f"{len(subjects)} subjects; 1 to {MAX_SUBJECTS} are allowed")
    found = []
    for number, subject in enumerate(subjects):
        try:
            if subject is None:
                raise BadRow("it is null")
            found.append(_placed(subject, size, reader, max_pixels))
        except (BadRow, ImageBroken) as error:
            name = f" ({subject['phrase']})" if subject and subject.get("phrase") else ""
            raise BadRow(f"subject {number}{name}: {error}") from error
    return found


def drawn(placed: Sequence[Placed]) -> list[dict[str, Any]]:
    """The values of a column of type DRAWN."""
    return [{"phrase": subject.phrase, "box": list(subject.box)} for subject in placed]


def _placed(subject: Mapping[str, Any], size: tuple[int, int], reader: Reader, max_pixels: int) -> Placed:
    phrase, box = (subject.get("phrase") or "").strip(), subject.get("box")
    if not phrase and not subject.get("token_indices"):
        raise BadRow("phrase is empty; write the words of the prompt that name the subject")
    named = [name for name in ("box", "mask", "mask_uri") if subject.get(name) is not None]
    if len(named) != 1:
        raise BadRow(f"give one of box, mask and mask_uri, not {' and '.join(named) or 'none'}")
    mask = None
    if box is None:
        data = subject["mask"] if subject.get("mask") is not None else reader.read(subject["mask_uri"])
        mask = _decoded_mask(data, size, max_pixels)
        box = _box_of(mask)
    tokens = subject.get("token_indices")
    return Placed(phrase, subject.get("occurrence"), _checked_box(box), mask, tuple(tokens) if tokens else None)


def _checked_box(box: Sequence[float]) -> tuple[float, float, float, float]:
    if len(box) != 4 or not all(value is not None and 0 <= value <= 1 for value in box):
        raise BadRow(f"box {_shown(box)} is not four numbers from 0 to 1: x0, y0, x1, y1 as fractions of the picture")
    x0, y0, x1, y1 = map(float, box)
    if x1 <= x0 or y1 <= y0:
        raise BadRow(f"box {_shown(box)} is empty; x1 must be above x0, and y1 above y0")
    return x0, y0, x1, y1


def _decoded_mask(data: bytes, size: tuple[int, int], max_pixels: int) -> NDArray[np.bool_]:
    pixels = decode_image(data, max_pixels=max_pixels).pixels
    height, width = pixels.shape[:2]
    if abs(height * size[1] - width * size[0]) > max(size):  # off by more than a pixel when scaled
        raise BadRow(f"its mask of {width} x {height} pixels has another shape than the picture of {size[1]} x {size[0]}")
    grey = Image.fromarray(pixels).convert("L").resize((size[1], size[0]), Image.Resampling.BOX)
    mask = np.asarray(grey) >= _WHITE
    if not mask.any():
        raise BadRow("its mask is empty; paint white where the subject goes")
    return mask


def _box_of(mask: NDArray[np.bool_]) -> list[float]:
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height, width = mask.shape
    return [xs[0] / width, ys[0] / height, (xs[-1] + 1) / width, (ys[-1] + 1) / height]


def packed_mask(mask: NDArray[np.bool_]) -> bytes:
    """A mask between two stages, an eighth of a byte a pixel."""
    return np.packbits(mask).tobytes()


def unpacked_mask(data: bytes, height: int, width: int) -> NDArray[np.bool_]:
    """The inverse of `packed_mask`."""
    return np.unpackbits(np.frombuffer(data, np.uint8), count=height * width).astype(bool).reshape(height, width)


def indexed_png(masks: NDArray[np.bool_]) -> bytes:
    """(S, H, W) masks as an indexed PNG: 0 background, s + 1 where subject s is, the first one where they overlap."""
    index = np.zeros(masks.shape[1:], np.uint8)
    for number in range(len(masks), 0, -1):
        index[masks[number - 1]] = number
    image = Image.fromarray(index, "P")
    image.putpalette(
        [0, 0, 0, 230, 80, 60, 60, 130, 230, 90, 190, 90, 240, 200, 60, 170, 90, 200, 80, 200, 210, 240, 140, 60, 200, 200, 200]
    )
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _shown(box: Sequence[float]) -> str:
    return "[" + ", ".join("null" if value is None else f"{value:.3g}" for value in box) + "]"
