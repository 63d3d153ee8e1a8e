"""Pictures to train on: only what a licence allows, and always the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.training.photographs import NoPhotographs
from models.training.pictures import drawn_portraits, free_photographs


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "mixed").mkdir()
    lines = ["file,licence"]
    for number, licence in enumerate(["CC-BY-4.0", "Unsplash-License (+CC-BY-4.0 dataset)", "Public domain (1905)", ""]):
        shade = np.full((40, 60, 3), 60 * number + 20, dtype=np.uint8)
        Image.fromarray(shade).save(tmp_path / "mixed" / f"{number}.png")
        lines.append(f"{number}.png,{licence}")
    (tmp_path / "mixed" / "index.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_photographs_without_a_free_licence_are_left_out(data: Path) -> None:
    found = free_photographs(data, ["mixed"], 16, views=2)
    assert found.shape == (4, 3, 16, 16)
    assert found.float().mean((1, 2, 3)).tolist() == [20, 20, 140, 140]  # the first and the third, two views of each


def test_the_views_of_a_photograph_are_always_the_same(data: Path) -> None:
    gradient = np.tile(np.arange(60, dtype=np.uint8)[None, :, None] * 4, (40, 1, 3))
    Image.fromarray(gradient).save(data / "mixed" / "0.png")
    first = free_photographs(data, ["mixed"], 16)
    assert torch.equal(first, free_photographs(data, ["mixed"], 16))
    assert not torch.equal(first[0], first[1])


def test_a_set_that_is_missing_or_not_free_says_what_to_do(data: Path) -> None:
    with pytest.raises(NoPhotographs, match="pass --data"):
        free_photographs(data, ["nowhere"], 16)
    (data / "mixed" / "index.csv").write_text("file,licence\n1.png,unknown\n")
    with pytest.raises(NoPhotographs, match="leave mixed out"):
        free_photographs(data, ["mixed"], 16)


def test_a_drawn_portrait_is_known_by_its_number() -> None:
    three = drawn_portraits(3, 16)
    assert three.shape == (3, 3, 16, 16)
    assert torch.equal(drawn_portraits(1, 16, first=2), three[2:])
    assert not torch.equal(three[0], three[1])
