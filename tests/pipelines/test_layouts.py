"""Layouts of a row: what is checked before any model sees it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.layouts import drawn, indexed_png, packed_mask, placed_subjects, unpacked_mask
from pipelines.rows import BadRow
from workers.media import encode_image
from workers.storage import Reader

BOX = [0.0, 0.25, 0.5, 1.0]


def mask(height: int = 16, width: int = 32, *, rows: slice = slice(4, 8), columns: slice = slice(8, 24)) -> bytes:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[rows, columns] = 255
    return encode_image(pixels, "png")


def placed(*subjects: Any, size: tuple[int, int] = (16, 32)) -> Any:
    return placed_subjects({"subjects": list(subjects)}, size, Reader(), 10_000)


def test_boxes_and_masks_place_subjects() -> None:
    found = placed({"phrase": "red star", "box": BOX}, {"phrase": "blue dog", "mask": mask(), "occurrence": 1})
    assert [subject.box for subject in found] == [tuple(BOX), (0.25, 0.25, 0.75, 0.5)]
    assert found[0].mask is None
    assert (found[1].occurrence, int(found[1].mask.sum())) == (1, 64)
    assert drawn(found)[1] == {"phrase": "blue dog", "box": [0.25, 0.25, 0.75, 0.5]}


@pytest.mark.parametrize(
    ("subject", "says"),
    [
        ({"phrase": "a", "box": BOX, "mask": mask()}, "box and mask"),
        ({"phrase": "a"}, "not none"),
        ({"phrase": " ", "box": BOX}, "phrase is empty"),
        ({"phrase": "a", "box": [0, 0, 0.5]}, "four numbers from 0 to 1"),
        ({"phrase": "a", "box": [0, 0, 0.5, 1.2]}, r"\[0, 0, 0.5, 1.2\] is not four numbers"),
        ({"phrase": "a", "box": [0, 0, None, 1]}, "null"),
        ({"phrase": "a", "box": [0, 0, float("nan"), 1]}, "four numbers"),
        ({"phrase": "a", "box": [0.5, 0, 0.5, 1]}, "x1 must be above x0"),
        ({"phrase": "a", "mask": b"nonsense"}, "not a picture"),
        ({"phrase": "a", "mask": mask(rows=slice(0, 0))}, "mask is empty"),
        ({"phrase": "a", "mask": mask(32, 32)}, "another shape"),
        (None, "null"),
    ],
)
def test_a_subject_that_cannot_be_placed_is_named_with_what_is_wrong(subject: Any, says: str) -> None:
    with pytest.raises(BadRow, match=says) as error:
        placed({"phrase": "fine", "box": BOX}, subject)
    assert str(error.value).startswith("subject 1")


def test_a_row_has_one_to_eight_subjects() -> None:
    for count in (0, 9):
        with pytest.raises(BadRow, match=f"{count} subjects; 1 to 8"):
            placed(*({"phrase": "a", "box": BOX} for _ in range(count)))


def test_a_mask_of_another_size_but_the_same_shape_is_scaled() -> None:
    (subject,) = placed({"phrase": "a", "mask": mask(32, 64, rows=slice(0, 16), columns=slice(0, 64))})
    assert subject.box == (0.0, 0.0, 1.0, 0.5)


def test_masks_survive_between_stages_and_in_the_indexed_picture() -> None:
    masks = np.zeros((2, 5, 7), bool)
    masks[0, 1:3], masks[1, 2:5] = True, True
    assert (unpacked_mask(packed_mask(masks[0]), 5, 7) == masks[0]).all()
    image = Image.open(io.BytesIO(indexed_png(masks)))
    assert image.mode == "P"
    assert np.asarray(image)[:, 0].tolist() == [0, 1, 1, 2, 2]
