from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from workers.crops import BadCrop, align_face, align_matrix, box_around, box_matrix, crop_box, inverse, resize_square, warp


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = [128 + 100 * np.sin(x / 17 + k) * np.cos(y / 23 - k) for k in range(3)]
    return np.stack(waves, -1).round().astype(np.uint8)


def landmarks(turn: float, eyes: float, at: tuple[float, float]) -> list[float]:
    """Landmarks of a face with this angle (radians) and eye distance, the middle of the eyes at a point."""
    points = np.array([[-0.5, 0], [0.5, 0], [0, 0.6], [-0.35, 1.0], [0.35, 1.0]]) * eyes
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return (points @ rotation + at).ravel().tolist()


@pytest.mark.parametrize(("turn", "eyes"), [(0.0, 30.0), (0.4, 12.0), (-1.2, 90.0), (3.0, 40.0)])
def test_the_eyes_come_to_stand_level_where_the_lab_has_them(turn: float, eyes: float) -> None:
    points = np.array(landmarks(turn, eyes, (150, 140))).reshape(5, 2)
    placed = np.c_[points, np.ones(5)] @ align_matrix(points.ravel().tolist(), 100).T
    assert placed[:2] == pytest.approx(np.array([[36.5, 45], [63.5, 45]]))
    assert placed[3, 1] == pytest.approx(45 + 27)  # upright, not mirrored


def test_a_turned_photograph_gives_the_same_face() -> None:
    photo = smooth(300, 300)
    upright, _ = align_face(photo, landmarks(0, 40, (150, 120)), 64)
    quarter = np.ascontiguousarray(np.rot90(photo))  # counter-clockwise: x, y -> y, 300 - x
    points = np.array(landmarks(0, 40, (150, 120))).reshape(5, 2)
    turned, _ = align_face(quarter, np.c_[points[:, 1], 300 - points[:, 0]].ravel().tolist(), 64)
    assert np.abs(turned.astype(int) - upright).mean() < 1.5


def test_shrinking_a_fine_pattern_gives_grey_and_no_moire() -> None:
    photo = np.zeros((400, 400, 3), np.uint8)
    photo[::2] = 255
    for points in (landmarks(0, 100, (200, 180)), landmarks(0.3, 100, (200, 180))):
        crop, _ = align_face(photo, points, 32)
        assert np.abs(crop[4:-4, 4:-4].astype(int) - 127).max() < 12


def test_a_picture_of_the_right_size_comes_back_unchanged() -> None:
    photo = smooth(64, 64)
    crop, matrix = resize_square(photo, 64)
    assert np.array_equal(crop, photo)
    assert matrix == pytest.approx(np.array([[1, 0, 0], [0, 1, 0]]))


def test_the_middle_square_is_what_pillow_cuts() -> None:
    photo = smooth(90, 120)
    wanted = np.asarray(Image.fromarray(photo[:, 15:105]).resize((32, 32), Image.Resampling.LANCZOS))
    crop, _ = resize_square(photo, 32)
    assert np.abs(crop.astype(int) - wanted)[2:-2, 2:-2].max() <= 1  # at the rim the neighbours beyond the box count here


def test_beyond_the_picture_the_nearest_edge_is_repeated() -> None:
    photo = np.full((50, 50, 3), 90, np.uint8)
    crop, _ = crop_box(photo, (-30, -30, 40, 40), 35)
    assert (crop == 90).all()
    assert (warp(photo, align_matrix(landmarks(0.5, 10, (2, 2)), 32), (32, 32)) == 90).all()


def test_the_box_around_landmarks_is_the_aligned_crop_when_the_head_is_upright() -> None:
    points = landmarks(0, 27, (100, 100))
    assert box_matrix(box_around(points), 64) == pytest.approx(align_matrix(points, 64))
    back = inverse(align_matrix(points, 64))
    assert back @ (0, 0, 1) == pytest.approx((50, 55))


def test_what_is_no_box_and_no_face_is_named() -> None:
    photo = smooth(40, 40)
    for box in ([1, 2, 3], [5, 5, 5, 9], [0, 0, float("nan"), 4]):
        with pytest.raises(BadCrop, match="face_box"):
            crop_box(photo, box, 16)
    with pytest.raises(BadCrop, match="outside the picture of 40 x 40"):
        crop_box(photo, (50, 0, 60, 10), 16)
    with pytest.raises(BadCrop, match="ten numbers"):
        align_face(photo, [1.0] * 8, 16)
    with pytest.raises(BadCrop, match="apart"):
        align_face(photo, [5.0] * 10, 16)
    with pytest.raises(BadCrop, match="outside the picture"):
        align_face(photo, landmarks(0, 30, (30, 10)), 16)
