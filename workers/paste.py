"""Restored faces back into their photograph, at the photograph's resolution and in its colours; everything outside the soft edge stays as it was.

What is added is the difference that restoring made to the crop, not the crop itself. So a face that is larger in the photograph than in the
crop keeps the grain and detail that the crop could not hold, and a restorer that changes nothing changes not a bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from workers.crops import Matrix, inverse, warp
from workers.media import Picture, Pixels, decode_image

log = logging.getLogger(__name__)

_LUMA = np.array([0.299, 0.587, 0.114])
_NEUTRAL = 3.0  # mean difference of the channels, of 255, up to which a photograph counts as black and white


@dataclass(frozen=True)
class FaceRow:
    """A restored face and where it belongs. `matrix`: six numbers, 2 x 3 row by row, photograph to crop; `restored`: the picture file's bytes."""

    row_id: str
    photo: str
    matrix: Sequence[float]
    restored: Callable[[], bytes]


@dataclass(frozen=True)
class PasteReport:
    """Photographs written, faces in them, and (photograph, why) of those that could not be made."""

    photographs: int
    faces: int
    failed: Sequence[tuple[str, str]]


def paste_face(photo: Pixels, restored: Pixels, matrix: Matrix, *, feather: float = 0.15) -> Pixels:
    """A copy of the photograph (H, W, 3) uint8 with one restored face (S, S, 3) uint8 in its place.

    `matrix` is the one that the crop was cut with; `feather` the width of the soft edge as a share of the crop's side. A shift of colour over the
    whole crop is taken out, so that no seam shows, and a black and white photograph stays black and white. Outside the crop nothing changes.
    """
    side, (height, width) = restored.shape[0], photo.shape[:2]
    corners = inverse(matrix) @ np.array([[0, side, 0, side], [0, 0, side, side], [1, 1, 1, 1]])
    x0, y0 = np.floor(corners.min(1)).astype(int).clip(0, (width, height))
    x1, y1 = np.ceil(corners.max(1)).astype(int).clip(0, (width, height))
    if x0 == x1 or y0 == y1:
        return photo.copy()
    size, place = (int(x1 - x0), int(y1 - y0)), inverse(matrix) - [[0, 0, x0], [0, 0, y0]]
    change = warp(restored, place, size).astype(np.float64) - warp(warp(photo, matrix, (side, side)), place, size)
    region = photo[y0:y1, x0:x1]
    if np.abs(np.diff(region.astype(int), axis=2)).mean() <= _NEUTRAL:
        change = np.broadcast_to((change @ _LUMA)[..., None], change.shape)
    mask = _soft_mask(matrix, side, (x0, y0), size, feather, open_sides=_sides_beyond(corners, width, height))
    rim = mask * (1 - mask)
    if rim.sum() > 0:
        change = change - (change * rim[..., None]).sum((0, 1)) / rim.sum()
    pasted = photo.copy()
    pasted[y0:y1, x0:x1] = (region + mask[..., None] * change).round().clip(0, 255).astype(np.uint8)
    return pasted


def paste_back(
    rows: Iterable[FaceRow],
    read: Callable[[str], bytes],
    write: Callable[[Picture, str, Sequence[str]], None],
    *,
    max_pixels: int,
    feather: float = 0.15,
) -> PasteReport:
    """One picture a photograph with all its restored faces, whatever the order of the rows; the same rows give the same pictures.

    `read` gets a photograph's bytes by its URI; `write` is handed the picture with its profile and EXIF, the photograph's URI, and the ids of the
    rows in it. A photograph that fails is reported, with its reason, and the others go on. Holds no pixels but one photograph's.
    """
    by_photo = dict[str, list[FaceRow]]()
    for row in rows:
        by_photo.setdefault(row.photo, []).append(row)
    faces, failed = 0, list[tuple[str, str]]()
    for photo, found in sorted(by_photo.items()):
        ordered = sorted(found, key=lambda row: row.row_id)
        try:
            picture = decode_image(read(photo), max_pixels=max_pixels)
            pixels = picture.pixels
            for row in ordered:
                face = decode_image(row.restored(), max_pixels=max_pixels).pixels
                pixels = paste_face(pixels, face, np.reshape(row.matrix, (2, 3)).astype(float), feather=feather)
            write(replace(picture, pixels=pixels), photo, [row.row_id for row in ordered])
            faces += len(ordered)
        except (OSError, ValueError) as error:
            log.warning("paste_back photo=%s error=%s", photo, error)
            failed.append((photo, f"{type(error).__name__}: {error}"))
    return PasteReport(len(by_photo) - len(failed), faces, failed)


def _sides_beyond(corners: NDArray[np.float64], width: int, height: int) -> NDArray[np.bool_]:
    """(left or right, top or bottom), (first, second) side of a crop: is it on the photograph's rim or beyond? There it needs no soft edge."""
    x, y = corners
    beyond = np.stack([x <= 1e-6, x >= width - 1e-6, y <= 1e-6, y >= height - 1e-6])  # rim, corner
    sides = [[(0, 2), (1, 3)], [(0, 1), (2, 3)]]
    return np.array([[(beyond[:, a] & beyond[:, b]).any() for a, b in pair] for pair in sides])


def _soft_mask(
    matrix: Matrix, side: int, corner: tuple[int, int], size: tuple[int, int], feather: float, open_sides: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """(H, W) in [0, 1]: 1 inside the crop, 0 on its border and beyond, by smoothstep over `feather` of the side."""
    y, x = np.mgrid[: size[1], : size[0]] + 0.5
    in_crop = np.tensordot(matrix[:, :2], np.stack([x + corner[0], y + corner[1]]), 1) + matrix[:, 2, None, None]
    to_sides = np.stack([in_crop, side - in_crop], 1)  # axis, first or second side, H, W
    to_sides[open_sides] = np.inf
    inside = (to_sides.min(1) / (feather * side)).clip(0, 1)
    return (inside**2 * (3 - 2 * inside)).prod(0)
