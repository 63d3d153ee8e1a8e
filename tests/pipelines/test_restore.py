"""The restore kind end to end on a tiny random model: what it writes, what it refuses, what it leaves alone."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageCms

from models.methods.instant_restore import Settings
from models.methods.instant_restore_checkpoint import save_lab
from orchestration.finalize import verify
from orchestration.folder import JobFolder
from orchestration.job import JobFileError, parse
from orchestration.run import run
from tests.models.methods.tiny_instant_restore import tiny_networks
from workers.provenance import read_provenance

SIDE = 32


def tiny_model(folder: Path) -> Path:
    save_lab(tiny_networks(), Settings(image_size=SIDE, noise=0.0, freeu=False), folder, {})
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def picture(path: Path, seed: int, size: tuple[int, int] = (48, 48), **save: Any) -> str:
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **save)
    return str(path)


def manifest(folder: Path, rows: list[dict[str, Any]]) -> str:
    schema = pa.schema(
        [
            pa.field("row_id", pa.string()),
            ("image_uri", pa.string()),
            ("reference_image_uris", pa.list_(pa.string())),
            ("person_id", pa.string()),
            ("face_box", pa.list_(pa.float32())),
            ("landmarks", pa.list_(pa.float32())),
        ]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "manifest.parquet")
    return str(folder / "manifest.parquet")


def archive(folder: Path, people: int = 3, photos: int = 3) -> list[dict[str, Any]]:
    rows = []
    for p in range(people):
        references = [picture(folder / f"references/{p}/{i}.png", 100 * p + i) for i in range(1 + p % 3)]
        for i in range(photos):
            image = picture(folder / f"photos/{p}/{i}.png", 1000 + 10 * p + i)
            rows.append({"row_id": f"{p}/{i}", "image_uri": image, "reference_image_uris": references, "person_id": str(p)})
    return rows


def job(folder: Path, model: Path, rows: list[dict[str, Any]], **keys: Any) -> dict[str, Any]:
    params = {"identity": "none", **keys.pop("params", {})}
    return {
        "kind": "restore",
        "name": "test",
        "manifest": manifest(folder, rows),
        "output": str(folder / "out"),
        "model": str(model),
        "engine": "inline",
        "tracking": {"enabled": False},
        **keys,
        "params": params,
    }


def failures(folder: JobFolder) -> dict[str, tuple[str, str]]:
    results = folder.results(["row_id", "error_type", "error"])
    failed = results.filter(pc.equal(results["status"], "failed")).to_pylist()
    return {r["row_id"]: (r["error_type"], r["error"]) for r in failed}


def test_every_photograph_comes_back_restored_with_its_provenance(tmp_path: Path, model: Path) -> None:
    rows = archive(tmp_path)
    before = {row["image_uri"]: Path(row["image_uri"]).read_bytes() for row in rows}
    summary = run(parse(job(tmp_path, model, rows)))
    folder = JobFolder(summary.folder)
    assert (summary.ok, summary.exit_code) == (9, 0)
    assert verify(folder) == []
    for row in folder.results().to_pylist():
        data = (Path(folder.uri) / row["restored_uri"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row["restored_sha256"]
        assert Image.open(io.BytesIO(data)).size == (SIDE, SIDE)
        assert read_provenance(data)["rows"] == [row["row_id"]]
        assert row["n_references"] == 1 + int(row["row_id"][0]) % 3
    assert {uri: Path(uri).read_bytes() for uri in before} == before  # originals are never written to


def test_bad_rows_fail_alone_with_what_to_do(tmp_path: Path, model: Path) -> None:
    good = archive(tmp_path, people=1, photos=2)
    reference = good[0]["reference_image_uris"]
    (tmp_path / "torn.png").write_bytes(Path(good[0]["image_uri"]).read_bytes()[:500])
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    (tmp_path / "bomb.png").write_bytes(bomb.getvalue())
    bad = {
        "torn": {"image_uri": str(tmp_path / "torn.png"), "reference_image_uris": reference},
        "bomb": {"image_uri": str(tmp_path / "bomb.png"), "reference_image_uris": reference},
        "gone": {"image_uri": str(tmp_path / "nowhere.png"), "reference_image_uris": reference},
        "web": {"image_uri": "https://example.org/a.png", "reference_image_uris": reference},
        "alone": {"image_uri": good[0]["image_uri"], "reference_image_uris": []},
        "reference": {"image_uri": good[0]["image_uri"], "reference_image_uris": [*reference, str(tmp_path / "torn.png")]},
        "box": {"image_uri": good[0]["image_uri"], "reference_image_uris": reference, "face_box": [10, 10, 5, 5]},
        "points": {"image_uri": good[0]["image_uri"], "reference_image_uris": reference, "landmarks": [1, 2, 3]},
    }
    rows = [*good, *({"row_id": name, **row} for name, row in bad.items())]
    folder = JobFolder(run(parse(job(tmp_path, model, rows))).folder)
    found = failures(folder)
    assert {name: kind for name, (kind, _) in found.items()} == {
        "torn": "ImageBroken",
        "bomb": "ImageTooLarge",
        "gone": "FileNotFoundError",
        "web": "UriNotAllowed",
        "alone": "BadRow",
        "reference": "BadRow",
        "box": "BadCrop",
        "points": "BadCrop",
    }
    assert "reference 1" in found["reference"][1]
    assert verify(folder) == []


def test_a_bad_reference_can_be_skipped_and_a_row_restored_without_any(tmp_path: Path, model: Path) -> None:
    row = archive(tmp_path, people=1, photos=1)[0]
    rows = [
        {**row, "row_id": "skips", "reference_image_uris": [str(tmp_path / "nowhere.png"), *row["reference_image_uris"]]},
        {**row, "row_id": "plain", "reference_image_uris": []},
    ]
    params = {"on_bad_reference": "skip", "on_no_reference": "plain"}
    folder = JobFolder(run(parse(job(tmp_path, model, rows, params=params))).folder)
    kept = {r["row_id"]: r["kept_references"] for r in folder.results().to_pylist()}
    assert kept == {"skips": [1], "plain": []}


def test_a_rows_result_does_not_depend_on_its_neighbours_or_engine_settings(tmp_path: Path, model: Path) -> None:
    rows = archive(tmp_path)
    whole = JobFolder(run(parse(job(tmp_path, model, rows))).folder)
    wanted = {"where": {"person_id": "1"}, "resources": {"micro_batch": 1, "block_rows": 1, "reference_cache_bytes": 0}}
    part = JobFolder(run(parse(job(tmp_path, model, rows, **wanted))).folder)
    for row in part.results().to_pylist():
        alone, together = (np.asarray(Image.open(Path(f.uri) / row["restored_uri"])).astype(int) for f in (part, whole))
        assert abs(alone - together).max() <= 1  # 1e-4 of the pixel range can round to the next level


def test_pictures_can_stay_in_the_parquet_files(tmp_path: Path, model: Path) -> None:
    folder = JobFolder(run(parse(job(tmp_path, model, archive(tmp_path, people=1, photos=2), media="columns"))).folder)
    assert not (Path(folder.uri) / "artifacts").exists()
    for row in folder.results().to_pylist():
        assert Image.open(io.BytesIO(row["restored"])).size == (SIDE, SIDE)


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "tiff"])
def test_profile_and_orientation_of_the_source_are_respected(tmp_path: Path, model: Path, format: str) -> None:
    row = archive(tmp_path, people=1, photos=1)[0]
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[274], exif[306] = 6, "1931:05:04 10:00:00"
    row["image_uri"] = picture(tmp_path / "turned.jpg", 5, icc_profile=profile, exif=exif)
    folder = JobFolder(run(parse(job(tmp_path, model, [row], params={"format": format}))).folder)
    found = Image.open(Path(folder.uri) / folder.results()["restored_uri"][0].as_py())
    assert found.info["icc_profile"] == profile
    assert found.getexif().get(306) == "1931:05:04 10:00:00"
    assert found.getexif().get(274, 1) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params": {"max_reference": 2}}, "did you mean `max_references`"),
        ({"params": {"timestep": 2000}}, "params: timestep"),
        ({"mode": "fast"}, "restore has no modes"),
        ({"kind": "restoration"}, "kinds are"),
        ({"enginee": "ray"}, "did you mean `engine`"),
        ({"resources": {"replica": 2}}, "did you mean `replicas`"),
    ],
)
def test_a_wrong_job_file_is_refused_with_what_to_write(tmp_path: Path, model: Path, change: dict[str, Any], message: str) -> None:
    content = job(tmp_path, model, archive(tmp_path, people=1, photos=1), params=change.pop("params", {}))
    with pytest.raises(JobFileError, match=message):
        run(parse({**content, **change}))


def test_a_photograph_with_two_faces_gives_two_rows_and_one_picture(tmp_path: Path, model: Path) -> None:
    row = archive(tmp_path, people=1, photos=1)[0]
    photo = picture(tmp_path / "group.png", 9, size=(120, 160))
    boxes = {"left": [5.0, 20.0, 65.0, 80.0], "right": [90.0, 30.0, 150.0, 90.0]}
    rows = [{**row, "row_id": name, "image_uri": photo, "face_box": box} for name, box in boxes.items()]
    folder = JobFolder(run(parse(job(tmp_path, model, rows, params={"paste_back": True}))).folder)
    found = list((Path(folder.uri) / "photographs").rglob("*.png"))
    assert len(found) == 1
    before, after = np.asarray(Image.open(photo)).astype(int), np.asarray(Image.open(found[0])).astype(int)
    changed = (before != after).any(-1)
    assert changed[20:80, 5:65].any()
    assert changed[30:90, 90:150].any()
    assert not changed[:, 66:89].any()
    assert read_provenance(found[0].read_bytes())["rows"] == ["left", "right"]
