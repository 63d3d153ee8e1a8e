"""Pictures of rows, and the seeds of several of one row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines import pictures
from pipelines.pipeline import Context, Model
from pipelines.rows import BadRow, candidate_seed, row_seed
from workers.storage import Reader

MODEL = Model("lab/m", "m", "lab", {}, "1")
PIXELS = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def test_a_row_may_give_a_picture_as_bytes_or_by_its_place_but_not_both(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"there")
    assert pictures.given({"image": b"here"}, "image", Reader()) == b"here"
    assert pictures.given({"image_uri": str(tmp_path / "a.png")}, "image", Reader()) == b"there"
    assert pictures.given({}, "image", Reader()) is None
    with pytest.raises(BadRow, match="not both"):
        pictures.given({"image": b"", "image_uri": "a"}, "image", Reader())
    with pytest.raises(BadRow, match="one of them is needed"):
        pictures.needed({"image": None}, "image", Reader())


@pytest.mark.parametrize("media", ["files", "columns"])
def test_kept_pictures_fill_the_columns_that_were_announced(tmp_path: Path, media: str) -> None:
    context = Context(MODEL, folder=str(tmp_path), media=media)
    both = [pictures.keep(PIXELS, "image", "a,b", context, label=str(i)) for i in range(2)]
    assert list(both[0]) == pictures.kept("image", media).names
    assert list(pictures.as_list(both, "images")) == pictures.kept_list("images", media).names
    if media == "files":
        assert len({entry["image_uri"] for entry in both}) == 2
        assert all((tmp_path / entry["image_uri"]).exists() for entry in both)


def test_no_row_s_second_picture_is_called_like_another_row_s(tmp_path: Path) -> None:
    context = Context(MODEL, folder=str(tmp_path))
    names = {pictures.keep(PIXELS, "image", row, context, label=label)["image_uri"] for row, label in (("a", "1"), ("a,1", ""), ("a", ""))}
    assert len({Path(name).name for name in names}) == 3


def test_more_pictures_a_row_leave_those_that_were_there() -> None:
    seed = row_seed({"row_id": "a", "seed": None}, 3)
    assert candidate_seed(seed, 0) == seed
    assert len({candidate_seed(seed, number) for number in range(8)}) == 8
    assert row_seed({"row_id": "a", "seed": 9}, 3) == 9
