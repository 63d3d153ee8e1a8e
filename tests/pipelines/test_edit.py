"""The edit kind end to end on a tiny random base: what it writes, what it refuses, what the edits of a source share."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from models.methods.vital_layers import FILE, VitalLayers, transformer_hash
from orchestration.finalize import verify
from orchestration.folder import JobFolder
from orchestration.job import JobFileError, parse
from orchestration.run import prepare, run
from pipelines.edit import ROWS
from tests.models.tiny_bases import save, tiny_flow_base
from workers.provenance import read_provenance

SIDE = 16
LAYERS = (0, 2)


def tiny_model(folder: Path) -> Path:
    save(tiny_flow_base(), folder)
    settings = {"num_inference_steps": 3, "inversion_steps": 3}
    (folder / "card.json").write_text(json.dumps({"method": "text_to_image", "tier": "lab", "topology": "flux", "settings": settings}))
    measured = VitalLayers("tiny", transformer_hash(folder), "none", "", (1.0, 0.0, 1.0), LAYERS)
    measured.write(folder / FILE)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def job(folder: Path, model: Path | str, rows: list[dict[str, Any]], **keys: Any) -> dict[str, Any]:
    pq.write_table(pa.Table.from_pylist(rows, schema=ROWS), folder / "manifest.parquet")
    return {
        "kind": "edit",
        "name": "test",
        "manifest": str(folder / "manifest.parquet"),
        "output": str(folder / "out"),
        "model": str(model),
        "engine": "inline",
        "tracking": {"enabled": False},
        **keys,
    }


def row(row_id: str, edit: str = "a blue star", source: str = "a red star", **columns: Any) -> dict[str, Any]:
    return {"row_id": row_id, "source_prompt": source, "edit_prompt": edit, **columns}


def photograph(path: Path, size: tuple[int, int] = (SIDE, SIDE)) -> str:
    Image.fromarray(np.random.default_rng(3).integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)
    return str(path)


def test_generated_and_real_sources_are_edited_with_their_provenance(tmp_path: Path, model: Path) -> None:
    photo = photograph(tmp_path / "photo.png", (20, 40))
    before = Path(photo).read_bytes()
    rows = [row("a"), row("b", "a green circle"), row("real", image_uri=photo), row("wide", height=16, width=32)]
    summary = run(parse(job(tmp_path, model, rows, params={"return_reference": True})))
    folder = JobFolder(summary.folder)
    assert (summary.ok, summary.failed) == (4, 0)
    assert verify(folder) == []
    found = {r["row_id"]: r for r in folder.results().to_pylist()}
    assert found["a"]["source_key"] == found["b"]["source_key"]
    assert found["a"]["source_seed"] == found["b"]["source_seed"]
    shown = {
        name: [np.asarray(Image.open(Path(folder.uri) / found[name][f"{part}_uri"])) for part in ("reference_image", "edited")]
        for name in "ab"
    }
    assert (shown["a"][0] == shown["b"][0]).all()
    assert (shown["a"][1] != shown["b"][1]).any()
    assert (found["wide"]["height"], found["wide"]["width"]) == (16, 32)
    assert (found["real"]["height"], found["real"]["width"]) == (12, 24)  # the photograph's shape on the model's area
    assert found["real"]["inversion_psnr"] is not None
    assert found["a"]["inversion_psnr"] is None
    for name, kind in (("a", "/trainedAlgorithmicMedia"), ("real", "/compositeWithTrainedAlgorithmicMedia")):
        data = (Path(folder.uri) / found[name]["edited_uri"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == found[name]["edited_sha256"]
        assert Image.open(io.BytesIO(data)).size == (found[name]["width"], found[name]["height"])
        said = read_provenance(data)
        assert (said["rows"], said["method"], said["digital_source_type"].endswith(kind)) == ([name], "stable_flow", True)
    assert Path(photo).read_bytes() == before


def test_bad_rows_fail_alone_with_what_to_do(tmp_path: Path, model: Path) -> None:
    photo = photograph(tmp_path / "photo.png", (32, 32))
    (tmp_path / "torn.png").write_bytes(Path(photo).read_bytes()[:100])
    bad = {
        "empty": row("empty", " "),
        "long": row("long", "a " * 40),
        "torn": row("torn", image_uri=str(tmp_path / "torn.png")),
        "both": row("both", image_uri=photo, image=Path(photo).read_bytes()),
        "size": row("size", height=18, width=16),
        "half": row("half", height=16),
        "differs": row("differs", image_uri=photo, height=16, width=16),
    }
    folder = JobFolder(run(parse(job(tmp_path, model, [row("good"), *bad.values()]))).folder)
    results = folder.results(["row_id", "error_type", "error", "stage"])
    found = {r["row_id"]: r for r in results.filter(pc.equal(results["status"], "failed")).to_pylist()}  # pyright: ignore
    assert {name: r["error_type"] for name, r in found.items()} == {
        **dict.fromkeys(bad, "BadRow"),
        "long": "TextTooLong",
        "torn": "ImageBroken",
    }
    assert "leave them out" in found["differs"]["error"]
    assert all(r["stage"] == ("edit" if name == "long" else "decode") for name, r in found.items())  # nothing bad reaches the model
    assert verify(folder) == []


def test_a_row_s_edit_does_not_depend_on_its_neighbours(tmp_path: Path, model: Path) -> None:
    rows = [row("a"), row("b", "a green circle"), row("c", "a blue dog", "a red cat"), row("d", "a small star", guidance_scale=2.0)]
    together = JobFolder(run(parse(job(tmp_path, model, rows))).folder)
    one_by_one = {"resources": {"micro_batch": 1, "block_rows": 1}, "where": {"row_id": ["b", "d"]}}
    alone = JobFolder(run(parse(job(tmp_path, model, rows, **one_by_one))).folder)
    pictures = [{r["row_id"]: Path(f.uri) / r["edited_uri"] for r in f.results().to_pylist()} for f in (together, alone)]
    for name in ("b", "d"):
        a, b = (np.asarray(Image.open(of[name])).astype(int) for of in pictures)
        assert abs(a - b).max() <= 1  # 1e-4 of the pixel range can round to the next level


def test_edits_of_one_source_are_neighbours_in_the_plan(tmp_path: Path, model: Path) -> None:
    rows = [row(f"{i:02}", f"a blue star {i}", f"a red cat {i % 3}") for i in range(12)]
    folder = JobFolder(run(parse(job(tmp_path, model, rows))).folder)
    sources = folder.planned()["source_prompt"].to_pylist()
    assert sources == sorted(sources)


def test_without_measured_vital_layers_a_job_is_refused_with_the_command_that_measures_them(tmp_path: Path, model: Path) -> None:
    base = save(tiny_flow_base(seed=5), tmp_path / "unmeasured")
    full = {"method": "stable_flow", "base": str(base)}
    content = {**job(tmp_path, model, [row("a")]), "model": full}
    with pytest.raises(JobFileError, match="calotype train vital-layers"):
        prepare(parse(content))
    (base / FILE).write_bytes((model / FILE).read_bytes())
    with pytest.raises(JobFileError, match="another transformer"):
        prepare(parse(content))
    explicit = prepare(parse({**content, "params": {"vital_layers": [1]}}))
    assert explicit.parts["params"]["vital_layers"] == [1]
    assert explicit.parts["params"]["num_inference_steps"] == 4  # schnell's, by its configuration


def test_a_base_that_was_distilled_like_flux_dev_needs_its_licence_accepted(tmp_path: Path, model: Path) -> None:
    base = save(tiny_flow_base(guidance_embeds=True), tmp_path / "dev")
    content = {**job(tmp_path, model, [row("a")], params={"vital_layers": [0]}), "model": {"method": "stable_flow", "base": str(base)}}
    with pytest.raises(JobFileError, match="accept_noncommercial: true"):
        prepare(parse(content))
    assert prepare(parse({**content, "accept_noncommercial": True})).parts["params"]["num_inference_steps"] == 15


def test_what_decides_results_is_settled_and_the_rest_is_not_asked_for(tmp_path: Path, model: Path) -> None:
    params = prepare(parse(job(tmp_path, model, [row("a")]))).parts["params"]
    assert (params["vital_layers"], params["num_inference_steps"], params["image_size"]) == (list(LAYERS), 3, SIDE)
    assert (params["nudge"], params["real_guidance_scale"], params["true_cfg"]) == (1.15, 3.0, True)
    with pytest.raises(JobFileError, match="edit runs stable_flow on a base of the topology flux"):
        prepare(parse(job(tmp_path, "lab/instant-restore", [row("a")])))
    with pytest.raises(JobFileError, match="edit has no modes"):
        prepare(parse(job(tmp_path, model, [row("a")], mode="layout")))
