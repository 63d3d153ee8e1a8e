"""The personalize kind end to end on a tiny random base: every row its own person, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from models.catalog import model_revision
from models.methods.weights2weights_files import adapter_bytes, coefficient_bytes
from models.methods.weights2weights_layout import Layout
from orchestration.finalize import verify
from orchestration.folder import JobFolder
from orchestration.job import JobFileError, parse
from orchestration.run import prepare, run
from pipelines.people import resolve_space
from pipelines.personalize import ROWS
from pipelines.pipeline import Accept
from tests.models.methods.test_weights2weights_files import authors_folder
from tests.models.methods.tiny_space import tiny_space
from tests.models.methods.tiny_weights2weights import tiny_person
from tests.models.tiny_bases import save, tiny_unet_base
from workers.provenance import read_provenance

SETTINGS = {"identity_token": "dog", "negative_prompt": "", "num_inference_steps": 2}


def tiny_model(folder: Path) -> Path:
    """A space whose base lies in its folder."""
    base = tiny_unet_base()
    save(base, folder / "base")
    layout = Layout.of(base.unet, base_hash=model_revision(folder / "base" / "unet"))
    replace(tiny_space(base), layout=layout).save(folder)
    card = {"method": "weights2weights", "tier": "lab", "base": "base", "settings": SETTINGS}
    (folder / "card.json").write_text(json.dumps(card))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def job(folder: Path, model: Path | dict[str, str] | str, rows: list[dict[str, Any]], **keys: Any) -> dict[str, Any]:
    pq.write_table(pa.Table.from_pylist(rows, schema=ROWS), folder / "manifest.parquet")
    return {
        "kind": "personalize",
        "name": "test",
        "manifest": str(folder / "manifest.parquet"),
        "output": str(folder / "out"),
        "model": model if isinstance(model, dict) else str(model),
        "engine": "inline",
        "tracking": {"enabled": False},
        **keys,
    }


def row(row_id: str, **columns: Any) -> dict[str, Any]:
    return {"row_id": row_id, "prompt": "a dog", "start_coefficients": None if "start_weights_uri" in columns else [0.5, -1.0], **columns}


def person(path: Path, number: int = 0, base_hash: str | None = None) -> str:
    """Someone's adapter as a file."""
    start, layout = tiny_person(number), replace(tiny_space(tiny_unet_base()).layout, base_hash=base_hash)
    assert start.weights_n is not None
    path.write_bytes(adapter_bytes(layout, start.weights_n, {}))
    return str(path)


def rows_of(folder: JobFolder) -> dict[str, dict[str, Any]]:
    return {r["row_id"]: r for r in folder.results().to_pylist()}


def test_people_as_files_and_as_coefficients_are_drawn_with_their_provenance(tmp_path: Path, model: Path) -> None:
    file = tmp_path / "p.safetensors"
    file.write_bytes(
        coefficient_bytes(replace(tiny_space(tiny_unet_base()).layout, base_hash=None), tiny_space(tiny_unet_base()).proj_std_k, {})
    )
    rows = [
        row("weights", start_weights_uri=person(tmp_path / "ada.safetensors"), seed=1),
        row("edited", start_weights_uri=str(tmp_path / "ada.safetensors"), seed=1, edits=[{"attribute": "tall", "strength": 3.0}]),
        row("late", start_weights_uri=str(tmp_path / "ada.safetensors"), seed=1, edits=[{"attribute": "tall", "strength": 3.0}], start_timestep=0),
        row("file", start_weights_uri=str(file), seed=1),
        row("several", num_images=3, seed=1),
    ]  # fmt: skip
    summary = run(parse(job(tmp_path, model, rows)))
    folder = JobFolder(summary.folder)
    assert (summary.ok, summary.failed) == (5, 0)
    assert verify(folder) == []
    found = rows_of(folder)
    pixels = {name: np.asarray(Image.open(Path(folder.uri) / columns["image_uri"])) for name, columns in found.items()}
    assert [found[name]["moved"] for name in ("weights", "edited", "late")] == [None, "tall +3", "tall +3 from t = 0"]
    assert np.array_equal(pixels["late"], pixels["weights"])  # an edit that never begins
    assert not np.array_equal(pixels["edited"], pixels["weights"])
    assert not np.array_equal(pixels["file"], pixels["weights"])
    assert len(set(found["several"]["image_sha256s"])) == 3
    assert found["several"]["image_uris"][0] == found["several"]["image_uri"]
    said = read_provenance((Path(folder.uri) / found["weights"]["image_uri"]).read_bytes())
    assert (said["rows"], said["method"]) == (["weights"], "weights2weights")
    assert said["digital_source_type"].endswith("/trainedAlgorithmicMedia")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": "a cat"}, "it must contain 'dog'"),
        ({"prompt": "a dogma"}, "it must contain 'dog'"),
        ({"start_coefficients": None}, "one of them is needed"),
        ({"start_coefficients": [float("inf")]}, "not all finite"),
        ({"start_coefficients": [0.0] * 11}, "11 coefficients were given; this space has 10"),
        ({"start_weights_uri": "/nowhere.safetensors"}, "nowhere"),
        ({"edits": [{"attribute": "small", "strength": 1.0}]}, "'small' is no attribute of this space; it has round, tall"),
        ({"edits": [{"attribute": "tall", "strength": float("nan")}]}, "a finite strength"),
        ({"start_timestep": 1001}, "it goes from 0"),
        ({"num_images": 0}, "a row makes 1 to 64"),
    ],
)
def test_a_bad_row_fails_alone_with_what_to_change(tmp_path: Path, model: Path, columns: dict[str, Any], message: str) -> None:
    summary = run(parse(job(tmp_path, model, [row("good"), row("bad", **columns), row("better")])))
    assert (summary.ok, summary.failed) == (2, 1)
    assert message in rows_of(JobFolder(summary.folder))["bad"]["error"]


def test_weights_of_another_base_or_layout_fail_their_row_alone(tmp_path: Path, model: Path) -> None:
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(Path(person(tmp_path / "whole.safetensors")).read_bytes()[:-100])
    rows = [
        row("good", start_weights_uri=person(tmp_path / "own.safetensors")),
        row("foreign", start_weights_uri=person(tmp_path / "foreign.safetensors", base_hash="0123456789abcdef")),
        row("torn", start_weights_uri=str(torn)),
    ]
    summary = run(parse(job(tmp_path, model, rows)))
    found = rows_of(JobFolder(summary.folder))
    assert (summary.ok, summary.failed) == (1, 2)
    assert (found["foreign"]["error_type"], found["torn"]["error_type"]) == ("ForeignBase", "UnreadableCheckpoint")
    assert "was made for the base 0123456789ab" in found["foreign"]["error"]


def test_a_row_is_the_same_alone_and_in_any_batch(tmp_path: Path, model: Path) -> None:
    rows = [row(name, start_weights_uri=person(tmp_path / f"{name}.safetensors", number)) for number, name in enumerate("abc")]
    together = JobFolder(run(parse(job(tmp_path, model, rows))).folder)
    alone = JobFolder(run(parse(job(tmp_path, model, rows, resources={"micro_batch": 1}, output=str(tmp_path / "alone")))).folder)
    for name in "abc":
        a, b = (np.asarray(Image.open(Path(f.uri) / rows_of(f)[name]["image_uri"]), dtype=int) for f in (together, alone))
        assert np.abs(a - b).max() <= 1


def test_a_space_of_another_base_stops_the_job_at_once(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny")
    config = folder / "base" / "unet" / "config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(JobFileError, match=r"was made for the base (?s:.*) calotype train identity-space"):
        prepare(parse(job(tmp_path, folder, [row("a")])))


def test_a_full_size_model_is_a_base_and_a_space_and_the_authors_wants_consent(tmp_path: Path, model: Path) -> None:
    authors = authors_folder(tmp_path / "files", tiny_space(tiny_unet_base()))
    named = {"method": "weights2weights", "base": str(model / "base"), "checkpoint": str(authors)}
    with pytest.raises(JobFileError, match="set accept_noncommercial: true if yours are"):
        prepare(parse(job(tmp_path, named, [row("a")])))
    rows = [row("a", prompt="sks person", start_weights_uri=person(tmp_path / "ada.safetensors"))]
    params = {"num_inference_steps": 2, "image_size": 16}
    summary = run(parse(job(tmp_path, named, rows, accept_noncommercial=True, params=params)))
    assert (summary.ok, summary.failed) == (1, 0)
    found = resolve_space(named, Accept(noncommercial=True))
    assert found.settings["identity_token"] == "sks person"
    assert found.sources == {"base": str(model / "base"), "checkpoint": str(authors)}


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"method": "stable_flow", "base": "b"}, "are made by weights2weights, not stable_flow"),
        ({"method": "weights2weights", "base": "b"}, "model.checkpoint is missing"),
        ({"method": "weights2weights", "base": "b", "checkpoint": "c", "vae": "v"}, "model.vae: weights2weights takes base and checkpoint"),
        ("lab/unet", "people need a space of adapters"),
    ],
)
def test_a_model_that_is_no_space_is_refused(tmp_path: Path, named: Any, message: str) -> None:
    with pytest.raises(JobFileError, match=message):
        prepare(parse(job(tmp_path, named, [row("a")])))


def test_a_job_s_own_settings_come_before_the_card_s(tmp_path: Path, model: Path) -> None:
    params = prepare(parse(job(tmp_path, model, [row("a")], params={"num_inference_steps": 7}))).params
    assert (params.num_inference_steps, params.negative_prompt, params.guidance_scale, params.debias) == (7, "", 3.0, "joint")
    with pytest.raises(JobFileError, match="makes sizes that are multiples of 4"):
        prepare(parse(job(tmp_path, model, [row("a")], params={"image_size": 18})))
