"""People in as photographs, adapters out: a whole job on a tiny random base, and what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from models.lora_files import read_lora
from orchestration.folder import JobFolder
from orchestration.job import JobFileError, parse
from orchestration.run import prepare, run
from pipelines.manifests import identity_manifest
from pipelines.weights_identity import ROWS
from tests.models.tiny_bases import save, tiny_unet_base

PARAMS = {"prompt": "a dog", "num_steps": 2, "num_inference_steps": 1, "batch": 2}


def tiny_model(folder: Path) -> Path:
    save(tiny_unet_base(), folder)
    card = {"method": "text_to_image", "tier": "lab", "topology": "stable-diffusion"}
    (folder / "card.json").write_text(json.dumps(card))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def photograph(number: int, side: int = 40) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (side, side, 3), np.uint8)).save(sink, "PNG")
    return sink.getvalue()


def row(row_id: str, count: int = 2, **columns: Any) -> dict[str, Any]:
    return {"row_id": row_id, "reference_images": [photograph(at) for at in range(count)], "person_id": f"person {row_id}", **columns}


def job(folder: Path, model: Path | str, rows: list[dict[str, Any]], **keys: Any) -> dict[str, Any]:
    pq.write_table(pa.Table.from_pylist(rows, schema=ROWS), folder / "manifest.parquet")
    return {
        "kind": "weights",
        "mode": "identity",
        "name": "test",
        "manifest": str(folder / "manifest.parquet"),
        "output": str(folder / "out"),
        "model": str(model),
        "engine": "inline",
        "tracking": {"enabled": False},
        "params": PARAMS,
        **keys,
    }


def test_a_person_s_photographs_become_an_adapter_that_says_whose_it_is(tmp_path: Path, model: Path) -> None:
    summary = run(parse(job(tmp_path, model, [row("a"), row("b", 3)])))
    folder = JobFolder(summary.folder)
    found = {r["row_id"]: r for r in folder.results().to_pylist()}
    assert (summary.ok, found["b"]["n_pictures"], len(found["a"]["curve"])) == (2, 3, len(found["a"]["curve_steps"]))
    tensors, metadata = read_lora(Path(folder.uri) / found["a"]["weights_uri"])
    assert metadata["person"] == "person a"
    assert all(key.startswith("base_model.model.") for key in tensors)
    assert Image.open(Path(folder.uri) / found["a"]["tuned_uri"]).size == (16, 16)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"reference_images": []}, "needs one photograph or more"),
        ({"reference_images": None}, "needs one photograph or more"),
        ({"reference_images": [photograph(0), b"no picture"]}, "photograph 1:"),
        ({"reference_image_uris": ["/nowhere.png"]}, "not both"),
        ({"reference_images": [photograph(0)] * 65}, "65 photographs of one person; give 64 at most"),
    ],
)
def test_a_person_that_cannot_be_learned_fails_alone(tmp_path: Path, model: Path, columns: dict[str, Any], message: str) -> None:
    summary = run(parse(job(tmp_path, model, [row("good"), row("bad", **columns)])))
    assert (summary.ok, summary.failed) == (1, 1)
    (error,) = [r["error"] for r in JobFolder(summary.folder).results().to_pylist() if r["status"] == "failed"]
    assert message in error


def test_a_model_that_is_no_base_stops_the_job(tmp_path: Path) -> None:
    with pytest.raises(JobFileError, match="weights/identity runs weights2weights on a base of the topology"):
        prepare(parse(job(tmp_path, "lab/mmdit", [row("a")])))


def test_a_folder_a_person_becomes_a_row_a_person(tmp_path: Path) -> None:
    for name in ("anna/1.png", "anna/2.png", "bert/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(photograph(0))
    (tmp_path / "notes.txt").write_text("no picture")
    report = identity_manifest(str(tmp_path))
    assert report.table["person_id"].to_pylist() == ["anna", "bert"]
    assert [len(uris) for uris in report.table["reference_image_uris"].to_pylist()] == [2, 1]
    assert report.table.schema.field("row_id").nullable is False
