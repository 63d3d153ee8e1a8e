"""The weights kind, mode initialize, end to end on a tiny random denoiser: what it writes, what it refuses."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from models.lora_files import read_lora
from models.methods.neural_weights import NeuralWeights, Request
from orchestration.finalize import verify
from orchestration.folder import JobFolder
from orchestration.job import JobFileError, parse
from orchestration.run import prepare, run
from pipelines.weights_initialize import ROWS
from tests.models.methods.tiny_neural_weights import tiny_model as tiny_denoiser
from tests.models.methods.tiny_neural_weights import tiny_translator


def tiny_model(folder: Path) -> Path:
    return tiny_denoiser(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def job(folder: Path, model: Path | str | dict[str, str], rows: list[dict[str, Any]], **keys: Any) -> dict[str, Any]:
    pq.write_table(pa.Table.from_pylist(rows, schema=ROWS), folder / "manifest.parquet")
    return {
        "kind": "weights",
        "mode": "initialize",
        "name": "test",
        "manifest": str(folder / "manifest.parquet"),
        "output": str(folder / "out"),
        "model": model if isinstance(model, dict) else str(model),
        "engine": "inline",
        "tracking": {"enabled": False},
        **keys,
    }


def row(row_id: str, concept: str = "sepia, ink outlines", **columns: Any) -> dict[str, Any]:
    return {"row_id": row_id, "concept": concept, **columns}


def test_every_concept_becomes_a_file_that_says_what_it_is(tmp_path: Path, model: Path) -> None:
    spec = parse(job(tmp_path, model, [row("a"), row("b", "noir", seed=7)], params={"precision": "float32"}))
    summary = run(spec)
    folder = JobFolder(summary.folder)
    assert (summary.ok, summary.failed) == (2, 0)
    assert verify(folder) == []
    method = NeuralWeights.load({"base": model.parent / "translator", "checkpoint": model}, device="cpu")
    for found in folder.results().to_pylist():
        data = (Path(folder.uri) / found["weights_uri"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == found["weights_sha256"]
        lora, said = read_lora(data)
        (made,) = method([Request({"a": "sepia, ink outlines", "b": "noir"}[found["row_id"]], found["seed"])])
        assert all((lora[name] - made.lora[name]).abs().max() < 1e-5 for name in made.lora)
        assert (said["row_id"], said["job"], said["state"]) == (found["row_id"], "test", "generated")
        assert said["base_hash"] == found["base_hash"] == made.metadata["base_hash"]
        assert said["model_revision"] == prepare(spec).context.model.revision
        for column in ("input", "start"):
            assert Image.open(Path(folder.uri) / found[f"{column}_uri"]).size == (16, 16)
        assert found["input_sha256"] != found["start_sha256"]
        assert found["row_id"] != "b" or found["seed"] == 7


def test_bad_rows_fail_alone_with_what_to_do(tmp_path: Path, model: Path) -> None:
    rows = [row("good"), row("empty", " "), row("unknown", "watercolour"), row("long", "sepia " * 30), row("good too", "fog")]
    folder = JobFolder(run(parse(job(tmp_path, model, rows))).folder)
    results = folder.results(["row_id", "error_type", "error"])
    found = {r["row_id"]: r for r in results.filter(pc.equal(results["status"], "failed")).to_pylist()}  # pyright: ignore
    assert {name: r["error_type"] for name, r in found.items()} == {"empty": "BadRow", "unknown": "UnknownWords", "long": "UnknownWords"}
    assert "'watercolour'" in found["unknown"]["error"]
    assert verify(folder) == []


def test_each_option_has_its_effect(tmp_path: Path, model: Path) -> None:
    def made(**params: Any) -> dict[str, Any]:
        return JobFolder(run(parse(job(tmp_path, model, [row("a")], params=params, media="columns"))).folder).results().to_pylist()[0]

    whole, half, bare = made(precision="float32"), made(), made(preview=False)
    assert len(half["weights"]) < len(whole["weights"])
    assert half["start"].startswith(b"\x89PNG")
    assert "start" not in bare
    assert bare["weights"] == half["weights"]
    assert made(num_steps=4)["weights_sha256"] != half["weights_sha256"]


def test_weights_do_not_depend_on_their_neighbours_or_the_batch(tmp_path: Path, model: Path) -> None:
    rows = [row("a"), row("b", "noir"), row("c", "golden, fog")]
    together = JobFolder(run(parse(job(tmp_path, model, rows))).folder)
    alone = JobFolder(run(parse(job(tmp_path, model, rows, where={"row_id": ["b"]}, resources={"micro_batch": 1}))).folder)
    uris = [{r["row_id"]: r["weights_uri"] for r in folder.results().to_pylist()}["b"] for folder in (together, alone)]
    one, other = (read_lora(Path(folder.uri) / uri)[0] for folder, uri in zip((together, alone), uris, strict=True))
    assert max((one[name] - other[name]).abs().max().item() for name in one) < 1e-3  # files are fp16


def test_a_denoiser_for_another_translator_stops_the_job_before_anything_is_loaded(tmp_path: Path, model: Path) -> None:
    other = tiny_translator(tmp_path / "other", seed=1)
    named = {"method": "neural_weights", "base": str(other), "checkpoint": str(model)}
    with pytest.raises(JobFileError, match=r"was made for the base .* other is .* train a denoiser for this one"):
        prepare(parse(job(tmp_path, named, [row("a")])))
    right = {**named, "base": str(model.parent / "translator")}
    assert run(parse(job(tmp_path, right, [row("a")]))).ok == 1
    with pytest.raises(JobFileError, match=r"no weight denoiser \(it has no layout.json\); name lab/weight-denoiser"):
        prepare(parse(job(tmp_path, str(model.parent / "translator"), [row("a")])))


def test_the_model_s_revision_covers_its_translator(tmp_path: Path, model: Path) -> None:
    before = prepare(parse(job(tmp_path, model, [row("a")]))).context.model.revision
    card = model.parent / "translator" / "card.json"
    facts = json.loads(card.read_text())
    card.write_text(json.dumps({**facts, "changed": True}))
    after = prepare(parse(job(tmp_path, model, [row("a")]))).context.model.revision
    card.write_text(json.dumps(facts))
    assert before != after
