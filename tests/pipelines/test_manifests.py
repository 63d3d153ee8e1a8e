from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from models.lab.people import random_identity, random_view
from models.lab.portraits import draw_portrait
from pipelines.manifests import SCHEMA, NothingToRestore, person_of, restore_manifest, write_manifest
from pipelines.whose import assign_faces
from workers import faces
from workers.media import encode_image

JPEG = encode_image(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8), "jpeg")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Photographs in folders and flat, references in folders and flat, with everything an old disk holds besides."""
    for name in ("photos/Anna/10.jpg", "photos/Anna/9.JPG", "photos/box 3/anna/x.jpg", "photos/boris_01.jpeg", "photos/BORIS-2.jpg"):
        put(tmp_path / name, JPEG)
    put(tmp_path / "photos/stranger_01.jpg", JPEG)
    put(tmp_path / "photos/anna_broken.jpg", b"no picture")
    put(tmp_path / "photos/Anna/cut.jpg", JPEG[: len(JPEG) // 2])
    for name in ("references/anna/b 10.jpg", "references/anna/b 2.jpg", "references/boris.jpg"):
        put(tmp_path / name, JPEG)
    put(tmp_path / "references/notes.txt", b"x")
    return tmp_path


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_folders_and_file_names_say_who_it_is(archive: Path) -> None:
    report = restore_manifest(str(archive / "photos"), str(archive / "references"))
    assert report.table.schema.equals(SCHEMA)
    rows = {row["row_id"]: row for row in report.table.to_pylist()}
    assert {name: row["person_id"] for name, row in rows.items()} == {
        "Anna/9.JPG": "anna",
        "Anna/10.jpg": "anna",
        "Anna/cut.jpg": "anna",  # damaged behind a good header: the job will say so
        "box 3/anna/x.jpg": "anna",
        "boris_01.jpeg": "boris",
        "BORIS-2.jpg": "boris",
    }
    row = rows["Anna/9.JPG"]
    assert row["image_uri"] == str(archive / "photos/Anna/9.JPG")
    assert row["reference_image_uris"] == [str(archive / "references/anna" / name) for name in ("b 2.jpg", "b 10.jpg")]
    assert row["face_box"] is None
    assert report.people == {"anna": 4, "boris": 2}


def test_what_is_in_no_row_is_listed_with_its_reason(archive: Path) -> None:
    report = restore_manifest(str(archive / "photos"), str(archive / "references"))
    reasons = {Path(path).name: why for path, why in report.skipped}
    assert set(reasons) == {"anna_broken.jpg", "stranger_01.jpg", "notes.txt"}
    assert "check that the file is whole" in reasons["anna_broken.jpg"]
    assert reasons["stranger_01.jpg"] == "no reference of 'stranger'"


def test_the_same_folders_give_the_same_manifest_and_the_file_holds_it(archive: Path) -> None:
    reports = [restore_manifest(str(archive / "photos"), str(archive / "references")) for _ in range(2)]
    assert reports[0].table.equals(reports[1].table)
    write_manifest(reports[0], archive / "manifest.parquet")
    assert pq.read_table(archive / "manifest.parquet").equals(reports[0].table)


def test_references_may_lie_below_the_photographs(archive: Path) -> None:
    (archive / "references").rename(archive / "photos/references")
    report = restore_manifest(str(archive / "photos"), str(archive / "photos/references"))
    assert report.people == {"anna": 4, "boris": 2}
    with pytest.raises(NothingToRestore, match="a folder of their own"):
        restore_manifest(str(archive / "photos"), str(archive / "photos"))


def test_the_seventeenth_reference_is_listed_not_taken(tmp_path: Path) -> None:
    put(tmp_path / "photos/anna.jpg", JPEG)
    for number in range(17):
        put(tmp_path / f"references/anna_{number}.jpg", JPEG)
    report = restore_manifest(str(tmp_path / "photos"), str(tmp_path / "references"))
    assert len(report.table["reference_image_uris"][0]) == 16
    assert [(Path(path).name, why) for path, why in report.skipped] == [("anna_16.jpg", "anna has 16 references already")]


def test_an_overlong_path_gets_an_id_that_can_be_a_file_name(tmp_path: Path) -> None:
    for folder in ("ü" * 60, "ä" * 60):
        put(tmp_path / "photos" / folder / ("ö" * 40) / "anna.jpg", JPEG)
    put(tmp_path / "references/anna.jpg", JPEG)
    ids = restore_manifest(str(tmp_path / "photos"), str(tmp_path / "references")).table["row_id"].to_pylist()
    assert len(set(ids)) == 2
    assert all(len(i.encode()) < 200 and i.endswith("/anna.jpg") for i in ids)


def test_nothing_to_restore_is_said_with_reasons(tmp_path: Path) -> None:
    put(tmp_path / "photos/anna.jpg", JPEG)
    put(tmp_path / "references/boris.jpg", JPEG)
    report = restore_manifest(str(tmp_path / "photos"), str(tmp_path / "references"))
    with pytest.raises(NothingToRestore, match="no reference of 'anna'"):
        write_manifest(report, tmp_path / "manifest.parquet")
    with pytest.raises(ValueError, match=r"something\.parquet"):
        write_manifest(report, tmp_path / "photos/anna.jpg")
    (tmp_path / "references/boris.jpg").unlink()
    with pytest.raises(NothingToRestore, match="holds no picture"):
        restore_manifest(str(tmp_path / "photos"), str(tmp_path / "references"))


@pytest.mark.parametrize(
    ("path", "person"),
    [
        ("anna/01.jpg", "anna"),
        ("ANNA/1912/01.jpg", "anna"),
        ("anna_01.jpg", "anna"),
        ("anna-01.jpg", "anna"),
        ("Anna (2).png", "anna"),
        ("anna.jpg", "anna"),
        ("box/anna_1912_03.jpg", "anna"),
        ("anna-maria_2.jpg", "anna-maria"),  # not Anna
        ("anna_wedding.jpg", "anna_wedding"),
        ("Jo\u0308rg.jpg", "j\u00f6rg"),
    ],
)
def test_a_name_is_taken_whole_or_without_its_number(path: str, person: str) -> None:
    assert person_of(path, {"anna": 0, "j\u00f6rg": 0}) == person


def test_a_stranger_beside_the_named_person_gets_nobodys_features() -> None:
    assert assign_faces([{"anna": 0.55, "boris": 0.7}, {"anna": 0.58, "boris": 0.8}], "anna") == ["anna", None]
    assert assign_faces([{"anna": 0.55}, {"anna": 0.4}], "anna") == [None, "anna"]
    assert assign_faces([{"anna": 0.7}, {"anna": 0.9}], "anna") == [None, None]


def test_an_unnamed_face_needs_a_close_reference_and_a_lone_named_one_none() -> None:
    assert assign_faces([{"anna": 0.48, "boris": 0.45}, {"anna": 0.45, "boris": 0.2}], None) == ["anna", "boris"]
    assert assign_faces([{"anna": 0.55}], None) == [None]
    assert assign_faces([{}], "anna") == ["anna"]


@pytest.mark.skipif(not faces.installed(), reason="extra `faces` is not installed")
def test_a_group_photograph_gives_a_row_for_each_face_that_has_references(tmp_path: Path) -> None:
    generator, finder = torch.Generator().manual_seed(1), faces.FaceFinder()
    group = Image.new("RGB", (500, 200), (200, 200, 190))
    names = ["anna", "boris"]
    for name, x in zip(names, (20, 300), strict=True):
        portrait = None
        for _ in range(40):
            portrait = draw_portrait(random_identity(generator), random_view(generator), 160)
            found = finder.find(np.asarray(portrait.image))
            if len(found) == 1 and found[0].confidence > 1:
                break
        assert portrait is not None
        group.paste(portrait.image, (x, 20))
        (tmp_path / "references" / name).mkdir(parents=True)
        portrait.image.save(tmp_path / "references" / name / "1.png")
    wall = Image.new("RGB", (100, 100), (90, 90, 90))
    wall.save(tmp_path / "references/anna/2.png")
    (tmp_path / "photos").mkdir()
    group.save(tmp_path / "photos/fair.png")
    wall.save(tmp_path / "photos/boris_1.png")
    report = restore_manifest(str(tmp_path / "photos"), str(tmp_path / "references"), faces=True)
    rows = report.table.to_pylist()
    assert [(row["row_id"], row["person_id"]) for row in rows] == [("fair.png#face-1", "anna"), ("fair.png#face-2", "boris")]
    for row, x in zip(rows, (20, 300), strict=True):
        assert len(row["landmarks"]) == 10
        assert [len(points) for points in row["reference_landmarks"]] == [10]
        x0, y0, x1, y1 = row["face_box"]
        assert (x1 - x0) == pytest.approx(y1 - y0, rel=1e-4)
        assert x < (x0 + x1) / 2 < x + 160
    assert sorted((Path(path).name, why.split(";")[0]) for path, why in report.skipped) == [
        ("2.png", "no face found in this reference"),
        ("boris_1.png", "no face found"),
    ]
