"""Square crops of a photograph, and where each came from: a 2x3 matrix takes points of the photograph to points of the crop.

Points are continuous, (0, 0) is the outer corner of the first pixel. Matrices are float64 and hold a turn, one scale and a shift. A crop of
side S by landmarks has the eyes level at y = 0.45 S and 0.27 S apart, in the middle; that is how the lab's faces are cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from workers.media import Pixels

Matrix = NDArray[np.float64]

EYE_HEIGHT, EYE_DISTANCE = 0.45, 0.27
_MAX_SIDE = 16_384


class BadCrop(ValueError):
    """A box or landmarks that no crop can be made of."""


def resize_square(pixels: Pixels, side: int) -> tuple[Pixels, Matrix]:
    """The middle square of a picture (H, W, 3), Lanczos-resized to (side, side, 3), and its matrix."""
    return crop_box(pixels, (0, 0, pixels.shape[1], pixels.shape[0]), side)


def crop_box(pixels: Pixels, box: Sequence[float], side: int) -> tuple[Pixels, Matrix]:
    """The middle square of a box x0, y0, x1, y1 (pixels of the upright picture) at (side, side, 3), and its matrix.

    A box that reaches beyond the picture is filled with the colour of the nearest edge. Raises BadCrop for four numbers that are no box or
    a box outside the picture.
    """
    matrix = box_matrix(box, side)
    x0, y0, x1, y1 = box
    height, width = pixels.shape[:2]
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise BadCrop(
            f"face_box {_shown(box)} lies outside the picture of {width} x {height} pixels; boxes count pixels of the upright picture"
        )
    return warp(pixels, matrix, (side, side)), matrix


def align_face(pixels: Pixels, landmarks5: Sequence[float], side: int) -> tuple[Pixels, Matrix]:
    """The face turned upright at (side, side, 3), and its matrix; landmarks as in `align_matrix`, in pixels of the picture.

    Raises BadCrop for landmarks of wrong length or outside the picture.
    """
    matrix = align_matrix(landmarks5, side)
    height, width = pixels.shape[:2]
    points = np.asarray(landmarks5, float).reshape(5, 2)
    if (points < 0).any() or (points > (width, height)).any():
        raise BadCrop(
            f"landmarks {_shown(landmarks5)} lie outside the picture of {width} x {height} pixels; they count pixels of the upright picture"
        )
    return warp(pixels, matrix, (side, side)), matrix


def box_matrix(box: Sequence[float], side: int) -> Matrix:
    """Photograph to crop, for the middle square of a box x0, y0, x1, y1. Raises BadCrop."""
    if len(box) != 4 or not all(map(math.isfinite, box)):
        raise BadCrop(f"face_box needs four numbers x0, y0, x1, y1, got {_shown(box)}")
    x0, y0, x1, y1 = box
    edge = min(x1 - x0, y1 - y0)
    if edge < 1 or edge > _MAX_SIDE:
        raise BadCrop(
            f"face_box {_shown(box)} is {x1 - x0:g} x {y1 - y0:g} pixels; it needs x0 < x1 and y0 < y1, 1 to {_MAX_SIDE} pixels apart"
        )
    scale = side / edge
    return np.array([[scale, 0, side / 2 - scale * (x0 + x1) / 2], [0, scale, side / 2 - scale * (y0 + y1) / 2]])


def align_matrix(landmarks5: Sequence[float], side: int, *, eye_height: float = EYE_HEIGHT, eye_distance: float = EYE_DISTANCE) -> Matrix:
    """Photograph to crop, from ten numbers: x, y of left eye, right eye, nose tip, left and right corner of the mouth, left as seen.

    The eyes decide alone; `eye_height` and `eye_distance` are shares of the side. Raises BadCrop for wrong length or eyes that coincide.
    """
    if len(landmarks5) != 10 or not all(map(math.isfinite, landmarks5)):
        raise BadCrop(f"landmarks need ten numbers (x, y of eyes, nose, mouth corners), got {len(landmarks5)}")
    left, right = complex(*landmarks5[0:2]), complex(*landmarks5[2:4])
    if not 1 <= abs(right - left) <= _MAX_SIDE * eye_distance:
        raise BadCrop(f"the eyes are {abs(right - left):g} pixels apart; landmarks need at least 1")
    turn = side * eye_distance / (right - left)  # a complex number: scale and rotation
    shift = complex(side / 2, side * eye_height) - turn * (left + right) / 2
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def box_around(landmarks5: Sequence[float]) -> list[float]:
    """The upright box x0, y0, x1, y1 with the centre and size of the aligned crop; may reach beyond the picture."""
    turn_back = inverse(align_matrix(landmarks5, 1))
    x, y = turn_back @ (0.5, 0.5, 1.0)
    half = math.hypot(*turn_back[:, 0]) / 2
    return [x - half, y - half, x + half, y + half]


def inverse(matrix: Matrix) -> Matrix:
    """Crop to photograph."""
    return np.linalg.inv(np.vstack([matrix, (0, 0, 1)]))[:2]


def warp(pixels: Pixels, matrix: Matrix, size: tuple[int, int]) -> Pixels:
    """The crop of `size` (width, height) that a matrix describes. Lanczos where the picture is shrunk or not turned; bicubic for the turn itself.

    Beyond the picture the nearest edge is repeated.
    """
    back, (height, width) = inverse(matrix), pixels.shape[:2]
    corners = back @ np.array([[0, size[0], 0, size[0]], [0, 0, size[1], size[1]], [1, 1, 1, 1]])
    scale = math.hypot(*matrix[:, 0])
    margin = 4 * max(1.0, 1 / scale)
    low, high = np.floor(corners.min(1) - margin).astype(int), np.ceil(corners.max(1) + margin).astype(int)
    inside = np.ix_(np.arange(low[1], high[1]).clip(0, height - 1), np.arange(low[0], high[0]).clip(0, width - 1))
    region = Image.fromarray(pixels[inside])
    if matrix[0, 1] == 0 and matrix[0, 0] > 0:
        box = (corners[0].min() - low[0], corners[1].min() - low[1], corners[0].max() - low[0], corners[1].max() - low[1])
        return np.asarray(region.resize(size, Image.Resampling.LANCZOS, box=box))
    factor_x = factor_y = 1.0
    if scale < 1:  # an affine transform samples without a filter: take the resolution away first
        small = (max(1, round(region.width * scale)), max(1, round(region.height * scale)))
        factor_x, factor_y = small[0] / region.width, small[1] / region.height
        region = region.resize(small, Image.Resampling.LANCZOS)
    coefficients = np.array([[factor_x], [factor_y]]) * np.hstack([back[:, :2], back[:, 2:] - low[:, None]])
    return np.asarray(region.transform(size, Image.Transform.AFFINE, tuple(coefficients.ravel()), Image.Resampling.BICUBIC))


def _shown(numbers: Sequence[float]) -> str:
    return "[" + ", ".join(f"{n:g}" for n in numbers) + "]"
