"""Scores of generated pictures: real drawings score high, other drawings low, and pictures survive the way to tensors and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.catalog import lab_path
from models.lab.generation_scores import accuracy, asked, picture, pixels
from models.nets.reader import Reader, crops


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader.load(lab_path("reader"))


@pytest.mark.parametrize("group", ["portrait", "scene of 1", "scene of 2"])
def test_real_drawings_are_read_as_what_they_are_and_others_are_not(reader: Reader, group: str) -> None:
    drawings = [one.drawing for one in asked(group, 24)]
    images = torch.stack([pixels(drawing.image) for drawing in drawings])
    right, wrong = accuracy(reader, images, drawings), accuracy(reader, images.roll(1, 0), drawings)
    for name in ("hair", "glasses", "shirt") if group == "portrait" else ("object", "background"):
        assert right[name] > 0.85
        assert wrong[name] < right[name] - 0.2


def test_prompts_are_always_the_same_and_name_every_object() -> None:
    first, again = asked("scene of 2", 3), asked("scene of 2", 3)
    assert [one.prompt for one in first] == [one.prompt for one in again]
    assert all(one.prompt.count(" and ") == 1 for one in first)


def test_a_picture_survives_the_way_to_a_tensor_and_back() -> None:
    image = asked("portrait", 1)[0].drawing.image
    assert np.array_equal(np.asarray(picture(pixels(image))), np.asarray(image))


def test_a_box_is_cut_out_where_it_is() -> None:
    images = torch.zeros(1, 3, 32, 32)
    images[:, 0, 4:12, 20:28] = 1.0
    inside, outside = crops(images.repeat(2, 1, 1, 1), [(0.7, 0.2, 0.8, 0.3), (0.1, 0.6, 0.3, 0.8)])
    assert inside[0].min() > 0.9
    assert outside.abs().max() == 0
