from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from orchestration.folder import JobFolder
from orchestration.review.thumbnails import Frame, Source, Thumbnails, shrink, thumb_path
from tests.orchestration.review.folders import face
from workers import storage
from workers.media import ImageBroken, ImageTooLarge


def thumbnails(tmp_path: Path, roots: tuple[str, ...] = ()) -> Thumbnails:
    return Thumbnails(JobFolder(str(tmp_path / "job-0")), storage.Reader(roots), px=32, max_pixels=10_000)


def as_file(image: Image.Image, format: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format, **options)
    return sink.getvalue()


def swap_red_and_green(profile: bytes) -> bytes:
    """A colour profile whose first channel is green: seen without it, a picture is plainly wrong."""
    return profile.replace(b"rXYZ", b"----").replace(b"gXYZ", b"rXYZ").replace(b"----", b"gXYZ")


def test_a_thumbnail_is_upright_and_never_enlarged() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways
    wide = as_file(Image.new("RGB", (80, 40)), "JPEG", exif=exif)
    assert shrink(wide, 32, 10_000).size == (16, 32)
    assert shrink(face(0, side=16), 32, 10_000).size == (16, 16)


def test_a_picture_in_another_colour_space_is_shown_in_srgb() -> None:
    odd = Image.new("RGB", (8, 8), (200, 60, 60))
    swapped = swap_red_and_green(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for format in ("PNG", "JPEG"):
        shown = np.asarray(shrink(as_file(odd, format, icc_profile=swapped), 32, 10_000))[4, 4].astype(int)
        assert np.abs(shown - (60, 200, 60)).max() <= 4


def test_one_picture_is_made_once_however_many_rows_show_it(tmp_path: Path) -> None:
    path = tmp_path / "reference.png"
    path.write_bytes(face(1))
    found = thumbnails(tmp_path).make([Source(uri=str(path))] * 5)
    assert len({t.key for t in found}) == 1
    assert len(list((tmp_path / "job-0/review/thumbs").rglob("*.jpg"))) == 1


def test_thumbnails_of_an_earlier_page_are_kept_and_a_changed_result_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "after.png"
    path.write_bytes(face(1))
    first = thumbnails(tmp_path)
    (old,) = first.make([Source(uri=str(path), version="0")])
    first.close()
    path.unlink()
    assert thumbnails(tmp_path).make([Source(uri=str(path), version="0")]) == [old]
    path.write_bytes(face(2))
    (new,) = thumbnails(tmp_path).make([Source(uri=str(path), version="1")])
    assert new.key != old.key
    assert (tmp_path / "job-0" / thumb_path(new.key)).exists()


def test_what_cannot_be_read_is_said_and_not_raised(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/text.jpg").write_text("no picture")
    (tmp_path / "in/huge.png").write_bytes(as_file(Image.new("L", (200, 200)), "PNG"))
    (tmp_path / "out.png").write_bytes(face(1))
    uris = [tmp_path / "in/gone.png", tmp_path / "in/text.jpg", tmp_path / "in/huge.png", tmp_path / "out.png", tmp_path / "in"]
    found = thumbnails(tmp_path, (str(tmp_path / "in"),)).make([Source(uri=str(uri)) for uri in uris])
    assert [t.missing for t in found[:4]] == ["not found", "not a readable picture", "too large to show", "outside the allowed roots"]
    assert found[4].missing is not None
    assert "IsADirectory" in found[4].missing


def test_a_frame_that_is_the_whole_picture_is_told_from_a_part() -> None:
    assert Frame((0.5, 0, 0, 0, 0.5, 0), 32, 32).is_whole(64, 64)
    assert not Frame((0.5, 0, 0, 0, 0.5, 0), 32, 32).is_whole(64, 80)
    assert not Frame((0.5, 0.1, 0, -0.1, 0.5, 0), 32, 32).is_whole(64, 64)


def test_broken_and_oversized_pictures_are_told_apart() -> None:
    with pytest.raises(ImageBroken):
        shrink(face(0)[:200], 32, 10_000)
    with pytest.raises(ImageTooLarge):
        shrink(face(0, side=48), 32, 100)
