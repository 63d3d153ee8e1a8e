"""Models of people in a space: sampled, edited, inverted; whole jobs on a tiny random base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from models.lora_files import read_lora
from models.methods.weights2weights_files import read_start
from orchestration.folder import JobFolder
from orchestration.job import parse
from orchestration.run import run
from pipelines import find_kind
from pipelines.people import layout_of, moved, resolve_space
from pipelines.pipeline import Accept
from tests.pipelines.test_personalize import tiny_model
from tests.pipelines.test_weights_identity import photograph

FAST: dict[str, dict[str, Any]] = {"sample": {}, "edit": {}, "invert": {"num_steps": 3}}
SCHEMAS = {
    "sample": pa.schema([("row_id", pa.string()), ("seed", pa.int64()), ("person_id", pa.string())]),
    "edit": pa.schema(
        [
            ("row_id", pa.string()),
            ("start_weights_uri", pa.string()),
            ("start_coefficients", pa.list_(pa.float32())),
            ("edits", pa.list_(pa.struct([("attribute", pa.string()), ("strength", pa.float32())]))),
        ]
    ),
    "invert": pa.schema([("row_id", pa.string()), ("image", pa.binary()), ("mask", pa.binary()), ("consent", pa.string())]),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def job(mode: str, folder: Path, model: Path, rows: list[dict[str, Any]], **keys: Any) -> dict[str, Any]:
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMAS[mode]), folder / "manifest.parquet")
    return {
        "kind": "weights",
        "mode": mode,
        "name": "test",
        "manifest": str(folder / "manifest.parquet"),
        "output": str(folder / "out"),
        "model": str(model),
        "engine": "inline",
        "tracking": {"enabled": False},
        "params": {"prompt": "a dog", "num_inference_steps": 1, **FAST[mode]},
        **keys,
    }


def sample_row(row_id: str, seed: int | None = None) -> dict[str, Any]:
    return {"row_id": row_id, "seed": seed}


def edit_row(row_id: str, strength: float = 2.0, attribute: str = "tall", **columns: Any) -> dict[str, Any]:
    return {"row_id": row_id, "start_coefficients": [0.5, -1.0], "edits": [{"attribute": attribute, "strength": strength}], **columns}


def invert_row(row_id: str, number: int = 0, **columns: Any) -> dict[str, Any]:
    return {"row_id": row_id, "image": photograph(number, 24), **columns}


def results(summary: Any) -> dict[str, dict[str, Any]]:
    return {row["row_id"]: row for row in JobFolder(summary.folder).results().to_pylist()}


def weights(summary: Any, model: Path, row: dict[str, Any]) -> torch.Tensor:
    data = (Path(summary.folder) / row["weights_uri"]).read_bytes()
    start = read_start(data, layout_of(resolve_space(str(model), Accept())))
    assert start.weights_n is not None
    return start.weights_n


def test_a_seed_decides_who_is_sampled(tmp_path: Path, model: Path) -> None:
    summary = run(parse(job("sample", tmp_path, model, [sample_row("a", 1), sample_row("b", 2), sample_row("c", 1), sample_row("d")])))
    found = results(summary)
    assert summary.ok == 4
    a, b, c = (weights(summary, model, found[name]) for name in "abc")
    assert torch.equal(a, c)
    assert not torch.equal(a, b)
    assert found["a"]["coefficients"] != found["d"]["coefficients"]
    assert read_lora(Path(summary.folder) / found["a"]["weights_uri"])[1]["state"] == "sampled"


def test_an_edit_moves_a_person_by_its_strength_and_shows_both(tmp_path: Path, model: Path) -> None:
    rows = [edit_row("none", 0.0), edit_row("some", 1.0), edit_row("more", 2.0)]
    summary = run(parse(job("edit", tmp_path, model, rows)))
    found = results(summary)
    none, some, more = (weights(summary, model, found[name]) for name in ("none", "some", "more"))
    assert (more - none - 2 * (some - none)).abs().max() < 1e-5
    assert (some - none).abs().max() > 1e-4
    pictures = {side: np.asarray(Image.open(Path(summary.folder) / found["none"][f"{side}_uri"])) for side in ("start", "tuned")}
    assert np.array_equal(pictures["start"], pictures["tuned"])


def test_edits_are_told_in_words_with_their_sign_and_time() -> None:
    edits = [{"attribute": "beard", "strength": 2.0}, {"attribute": "long hair", "strength": -0.5}]
    assert moved({"edits": edits}) == "beard +2, long hair -0.5"
    assert moved({"edits": edits[:1], "start_timestep": 700}) == "beard +2 from t = 700"
    assert moved({"edits": None, "start_timestep": 700}) is None


def test_edits_that_cannot_be_fail_alone(tmp_path: Path, model: Path) -> None:
    rows = [edit_row("good"), edit_row("unknown", attribute="wise"), edit_row("far", float("inf")), edit_row("nothing", edits=[])]
    summary = run(parse(job("edit", tmp_path, model, rows)))
    found = results(summary)
    assert (summary.ok, summary.failed) == (1, 3)
    assert "it has" in found["unknown"]["error"]
    assert "finite" in found["far"]["error"]
    assert "edits is empty" in found["nothing"]["error"]


def test_a_photograph_becomes_a_model_with_its_curve_and_consent(tmp_path: Path, model: Path) -> None:
    rows = [invert_row("a", consent="by mail, 2026-11-02"), invert_row("b", 1, mask=white(24))]
    summary = run(parse(job("invert", tmp_path, model, rows)))
    found = results(summary)
    assert summary.ok == 2
    assert found["a"]["consent_given"] == "by mail, 2026-11-02"
    assert found["a"]["curve_steps"][-1] == 3
    assert read_lora(Path(summary.folder) / found["a"]["weights_uri"])[1]["consent"] == "by mail, 2026-11-02"
    assert not torch.equal(weights(summary, model, found["a"]), weights(summary, model, found["b"]))


def test_photographs_and_masks_that_cannot_be_used_fail_alone(tmp_path: Path, model: Path) -> None:
    rows = [
        invert_row("good"),
        invert_row("broken", image=b"no picture"),
        invert_row("dark", mask=white(24, value=0)),
        invert_row("wide", mask=white(24, width=48)),
    ]
    summary = run(parse(job("invert", tmp_path, model, rows)))
    found = results(summary)
    assert (summary.ok, summary.failed) == (1, 3)
    assert "the mask is empty" in found["dark"]["error"]
    assert "aspect" in found["wide"]["error"]


def test_coefficients_alone_are_a_smaller_file(tmp_path: Path, model: Path) -> None:
    content = job("sample", tmp_path, model, [sample_row("a", 1)])
    summary = run(parse({**content, "params": {**content["params"], "weights_format": "coefficients"}}))
    tensors, _ = read_lora(Path(summary.folder) / results(summary)["a"]["weights_uri"])
    assert list(tensors) == ["coefficients"]


@pytest.mark.parametrize("mode", ["sample", "edit", "invert"])
def test_what_a_model_decides_is_written_down(mode: str, model: Path) -> None:
    kind = find_kind("weights", mode)
    settled = kind.settle(kind.params(), resolve_space(str(model), Accept()))
    assert settled.num_inference_steps == 2  # its card's
    assert settled.image_size == 16
    assert settled.prompt == "a portrait of a dog"


def white(side: int, *, width: int | None = None, value: int = 255) -> bytes:
    import io

    sink = io.BytesIO()
    Image.new("L", (width or side, side), value).save(sink, "PNG")
    return sink.getvalue()
