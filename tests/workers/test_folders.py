from __future__ import annotations

import os
from pathlib import Path

import fsspec
import numpy as np
import pytest

from workers.folders import NotAFolder, list_pictures, natural_key
from workers.media import encode_image

PNG = encode_image(np.full((8, 8, 3), 90, np.uint8), "png")


def put(folder: Path, **files: bytes) -> None:
    for name, data in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def test_everything_in_a_folder_is_either_a_picture_or_listed_with_its_reason(tmp_path: Path) -> None:
    put(
        tmp_path,
        anna__01_dot_JPG=PNG,
        anna__2_dot_Tiff=PNG,
        b_dot_png=PNG,
        notes_dot_txt=b"x",
        empty_dot_jpg=b"",
        torn_dot_jpg=b"\xff\xd8 torn",
    )
    put(tmp_path, _dot_hidden_dot_png=PNG, _dot_cache__a_dot_png=PNG, big_dot_png=PNG + bytes(900), wide_dot_webp=b"")
    (tmp_path / "wide.webp").write_bytes(encode_image(np.zeros((40, 40, 3), np.uint8), "webp"))
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "anna" / "loop").symlink_to(tmp_path)
    pictures, skipped = list_pictures(str(tmp_path), max_bytes=900, max_pixels=1000)
    assert [p.path for p in pictures] == ["anna/01.JPG", "anna/2.Tiff", "b.png"]
    assert [p.uri for p in pictures] == [str(tmp_path / p.path) for p in pictures]
    reasons = {os.path.relpath(s.path, tmp_path): s.why for s in skipped}
    assert set(reasons) == set(EXPECTED)
    for path, words in EXPECTED.items():
        assert words in reasons[path]


EXPECTED = {
    "notes.txt": "not a picture by its name",
    "empty.jpg": "empty file",
    "torn.jpg": "check that the file is whole",
    ".hidden.png": "hidden",
    ".cache": "hidden",
    "big.png": "too large",
    "wide.webp": "more than the limit of 1000",
    "gone.jpg": "No such file",
    "anna/loop": "already looked into",
}


def test_a_folder_below_can_be_left_out(tmp_path: Path) -> None:
    put(tmp_path, a_dot_png=PNG, references__a_dot_png=PNG)
    pictures, skipped = list_pictures(str(tmp_path), without=str(tmp_path / "references"))
    assert [p.path for p in pictures] == ["a.png"]
    assert skipped == []


def test_a_remote_folder_reads_like_a_local_one() -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe({"/archive/anna/10.png": PNG, "/archive/anna/9.png": PNG, "/archive/notes.txt": b"x", "/archive/refs/a.png": PNG})
    try:
        pictures, skipped = list_pictures("memory://archive", without="memory://archive/refs")
        assert [p.uri for p in pictures] == ["memory://archive/anna/9.png", "memory://archive/anna/10.png"]
        assert [s.path for s in skipped] == ["memory://archive/notes.txt"]
    finally:
        fs.rm("/archive", recursive=True)


def test_a_missing_folder_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(NotAFolder, match="give the folder"):
        list_pictures(str(tmp_path / "none"))


def test_ten_comes_after_nine() -> None:
    assert sorted(["b10", "B9", "a2", "a", "A10"], key=natural_key) == ["a", "a2", "A10", "B9", "b10"]
