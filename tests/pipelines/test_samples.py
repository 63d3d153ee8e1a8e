from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pipelines.manifests import restore_manifest
from pipelines.samples import NAMES, draw_sample_archive
from workers.media import ImageBroken, decode_image


def digests(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    drawn = draw_sample_archive(folder, people=6, photos_each=3, side=64)
    assert drawn is not None
    assert drawn.photos == 20
    return folder


def test_every_photograph_is_in_the_manifest_but_the_one_that_is_no_picture(archive: Path) -> None:
    report = restore_manifest(str(archive / "photos"), str(archive / "references"))
    assert [(Path(path).relative_to(archive / "photos").as_posix(), why[:13]) for path, why in report.skipped] == [
        ("anna/04.jpg", "not a picture")
    ]
    assert report.people == {name: 4 if name == "boris" else 3 for name in NAMES[:6]}
    assert all(2 <= len(uris) <= 4 for uris in report.table["reference_image_uris"].to_pylist())
    extensions = {Path(uri).suffix for uri in report.table["image_uri"].to_pylist()}
    assert extensions == {".jpg", ".JPG", ".png", ".jpeg", ".webp", ".tif", ".PNG"}


def test_the_torn_photograph_breaks_only_when_its_pixels_are_read(archive: Path) -> None:
    report = restore_manifest(str(archive / "photos"), str(archive / "references"))
    broken = []
    pictures = {}
    for row in report.table.to_pylist():
        try:
            pictures[row["row_id"]] = decode_image(Path(row["image_uri"]).read_bytes())
        except ImageBroken:
            broken.append(row["row_id"])
    assert broken == ["boris/04.jpg"]
    turned = [p for p in pictures.values() if p.orientation != 1]
    assert len(turned) == 3
    for picture in turned:
        assert picture.icc_profile
        assert picture.exif


def test_a_seed_gives_the_same_archive_and_what_is_there_is_kept(archive: Path, tmp_path: Path) -> None:
    before = digests(archive)
    assert draw_sample_archive(archive, people=4) is None
    assert digests(archive) == before
    draw_sample_archive(tmp_path, people=6, photos_each=3, side=64)
    assert digests(tmp_path) == before


def test_more_people_than_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="people: 2 to 24"):
        draw_sample_archive(tmp_path, people=25)
