from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from workers.crops import Matrix, align_face, crop_box
from workers.media import Picture, decode_image, encode_image
from workers.paste import FaceRow, paste_back, paste_face

EYES = [130.0, 100.0, 170.0, 115.0, 145.0, 130.0, 125.0, 150.0, 150.0, 158.0]  # a head that leans


def scene(height: int = 260, width: int = 320) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = [128 + 60 * np.sin(x / 9 + k) * np.cos(y / 11 - k) for k in range(3)]
    noise = np.random.default_rng(0).normal(0, 4, (height, width, 3))
    return (np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8)


def sharpened(crop: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(crop).filter(ImageFilter.UnsharpMask(3, 200, 0)))


def inside(photo: np.ndarray, matrix: Matrix, side: int, margin: float = 0.0) -> np.ndarray:
    """True where the middle of a pixel lies in the crop, `margin` crop pixels from its border."""
    y, x = np.mgrid[: photo.shape[0], : photo.shape[1]] + 0.5
    u, v = (matrix[i, 0] * x + matrix[i, 1] * y + matrix[i, 2] for i in range(2))
    return (np.minimum(u, v) > margin) & (np.maximum(u, v) < side - margin)


@pytest.mark.parametrize("side", [48, 300])
def test_outside_the_crop_the_photograph_stays_bit_for_bit(side: int) -> None:
    photo = scene()
    crop, matrix = align_face(photo, EYES, side)
    pasted = paste_face(photo, sharpened(crop), matrix)
    changed = (pasted != photo).any(2)
    assert not (changed & ~inside(photo, matrix, side)).any()
    assert (changed & inside(photo, matrix, side, 0.2 * side)).mean() > 0.02


def test_a_restorer_that_changes_nothing_changes_not_a_bit() -> None:
    photo = scene()
    crop, matrix = align_face(photo, EYES, 48)
    assert np.array_equal(paste_face(photo, crop, matrix), photo)


def test_in_the_middle_the_restored_face_is_what_is_seen() -> None:
    clean = np.asarray(Image.fromarray(scene()).filter(ImageFilter.GaussianBlur(2)))
    damaged = np.asarray(Image.fromarray(clean).filter(ImageFilter.GaussianBlur(6)))
    crop, matrix = crop_box(clean, (80, 60, 240, 220), 160)
    pasted = paste_face(damaged, crop, matrix)
    middle = (slice(90, 190), slice(110, 210))
    assert np.abs(pasted[middle].astype(int) - clean[middle]).mean() < 3 < np.abs(damaged[middle].astype(int) - clean[middle]).mean()


def test_the_edge_is_soft() -> None:
    photo = np.full((200, 200, 3), 100, np.uint8)
    crop, matrix = crop_box(photo, (40, 40, 160, 160), 120)
    face = crop.copy()
    face[::2] += 60  # stripes, as bright as dark on the whole
    face[1::2] -= 60
    profile = np.abs(paste_face(photo, face, matrix).astype(int) - 100)[100, :, 0]
    assert profile[39] == 0
    assert 0 < profile[46] < profile[52] < profile[57]
    assert profile[60:140].min() >= 55


def test_a_shift_of_colour_shows_no_seam_and_grey_stays_grey() -> None:
    photo = scene()
    crop, matrix = align_face(photo, EYES, 160)
    tinted = (crop.astype(int) + np.array([20, -10, 5])).clip(0, 255).astype(np.uint8)
    assert np.abs(paste_face(photo, tinted, matrix).astype(int) - photo).max() <= 1
    grey = np.repeat(scene()[..., :1], 3, 2)
    crop, matrix = align_face(grey, EYES, 160)
    coloured = sharpened(crop).astype(int)
    coloured[60:100, 60:100] += np.array([40, 0, -40])
    pasted = paste_face(grey, coloured.clip(0, 255).astype(np.uint8), matrix).astype(int)
    assert np.abs(np.diff(pasted, axis=2)).max() == 0
    assert not np.array_equal(pasted, grey)


def test_a_face_that_reaches_beyond_the_photograph_is_pasted_as_far_as_it_is_there() -> None:
    photo = scene(120, 120)
    for box in ((-40, -40, 60, 60), (70, 80, 170, 180)):
        crop, matrix = crop_box(photo, box, 64)
        pasted = paste_face(photo, sharpened(crop), matrix)
        assert pasted.shape == photo.shape
        assert not np.array_equal(pasted, photo)
    _, far = crop_box(photo, (0, 0, 40, 40), 64)
    assert np.array_equal(paste_face(photo[60:], sharpened(photo[:64, :64]), far - [[0, 0, 999], [0, 0, 0]]), photo[60:])


def test_a_crop_of_the_whole_picture_is_restored_up_to_its_rim() -> None:
    photo = scene(200, 200)
    crop, matrix = crop_box(photo, (0, 0, 200, 200), 200)
    assert np.array_equal(paste_face(photo, sharpened(crop), matrix), sharpened(crop))


def face_row(row_id: str, photo: str, pixels: np.ndarray, box: tuple[int, int, int, int]) -> FaceRow:
    crop, matrix = crop_box(pixels, box, 64)
    return FaceRow(row_id, photo, matrix.ravel().tolist(), lambda: encode_image(sharpened(crop), "png"))


def test_all_faces_of_a_photograph_come_into_one_picture_in_any_order() -> None:
    pixels = scene()
    source = {"a.png": encode_image(pixels, "png", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0")}
    rows = [face_row(f"a.png#face-{n}", "a.png", pixels, box) for n, box in enumerate([(20, 20, 140, 140), (100, 60, 230, 190)], 1)]
    rows.append(FaceRow("lost", "lost.png", rows[0].matrix, rows[0].restored))
    source["torn.png"] = source["a.png"][:500]
    rows.append(FaceRow("torn", "torn.png", rows[0].matrix, rows[0].restored))

    def run(order: list[FaceRow]) -> tuple[dict[str, tuple[bytes, list[str]]], list[str]]:
        written: dict[str, tuple[bytes, list[str]]] = {}

        def read(uri: str) -> bytes:
            if uri not in source:
                raise FileNotFoundError(uri)
            return source[uri]

        def write(picture: Picture, photo: str, row_ids: object) -> None:
            written[photo] = (encode_image(picture.pixels, "png"), list(row_ids))  # type: ignore[call-overload]

        report = paste_back(order, read, write, max_pixels=10**6)
        assert (report.photographs, report.faces) == (1, 2)
        return written, [why.split(":")[0] for _, why in report.failed]

    written, failed = run(rows)
    assert failed == ["FileNotFoundError", "ImageBroken"]
    assert written["a.png"][1] == ["a.png#face-1", "a.png#face-2"]
    pasted = decode_image(written["a.png"][0]).pixels
    for x, y in ((80, 80), (190, 130)):
        assert (pasted[y - 10 : y + 10, x - 10 : x + 10] != pixels[y - 10 : y + 10, x - 10 : x + 10]).any()
    assert run(rows[::-1])[0] == written
