"""The compose kind end to end on a tiny random base: what it writes, what it refuses, several pictures a row."""

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

from orchestration.finalize import verify
from orchestration.folder import JobFolder
from orchestration.job import JobFileError, parse
from orchestration.run import prepare, run
from pipelines.candidates import Several, best_of, rows_a_call
from pipelines.compose import ROWS
from tests.models.tiny_bases import save, tiny_unet_base
from workers.media import encode_image
from workers.provenance import read_provenance

SIDE = 16
LEFT, RIGHT = [0.0, 0.0, 0.5, 0.5], [0.5, 0.25, 1.0, 1.0]  # the rest is background, without which the loss is 0
FAST = {
    "num_inference_steps": 3,
    "guidance_steps": 1,
    "guidance_iterations": 1,
    "loss_threshold": 0.0,
    "refine_from": 1,
    "refine_every": 1,
    "kmeans_restarts": 1,
}


def tiny_model(folder: Path) -> Path:
    save(tiny_unet_base(), folder)
    card = {"method": "text_to_image", "tier": "lab", "topology": "stable-diffusion", "settings": FAST}
    (folder / "card.json").write_text(json.dumps(card))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def job(folder: Path, model: Path | str, rows: list[dict[str, Any]], **keys: Any) -> dict[str, Any]:
    pq.write_table(pa.Table.from_pylist(rows, schema=ROWS), folder / "manifest.parquet")
    return {
        "kind": "compose",
        "name": "test",
        "manifest": str(folder / "manifest.parquet"),
        "output": str(folder / "out"),
        "model": str(model),
        "engine": "inline",
        "tracking": {"enabled": False},
        **keys,
        "params": {"score": "loss", **keys.get("params", {})},
    }


def row(row_id: str, prompt: str = "a red star and a blue circle", **columns: Any) -> dict[str, Any]:
    subjects = [{"phrase": "red star", "box": LEFT}, {"phrase": "blue circle", "box": RIGHT}]
    return {"row_id": row_id, "prompt": prompt, "subjects": subjects, **columns}


def pixels(folder: JobFolder, uri: str) -> Any:
    return np.asarray(Image.open(Path(folder.uri) / uri)).astype(int)


def test_every_layout_becomes_a_picture_with_its_provenance(tmp_path: Path, model: Path) -> None:
    mask = np.zeros((SIDE, SIDE, 3), np.uint8)
    mask[:8] = 255
    masked = [{"phrase": "red star", "mask": encode_image(mask, "png")}, {"phrase": "blue circle", "box": [0, 0.5, 1, 1]}]
    rows = [row("a"), row("masked", subjects=masked), row("wide", height=16, width=32, guidance_scale=1.0, seed=5)]
    summary = run(parse(job(tmp_path, model, rows, params={"return_refined_mask": True})))
    folder = JobFolder(summary.folder)
    assert (summary.ok, summary.failed) == (3, 0)
    assert verify(folder) == []
    found = {r["row_id"]: r for r in folder.results().to_pylist()}
    assert found["a"]["token_indices"] == [[2, 3], [6, 7]]
    assert found["a"]["guidance_iterations_used"] == 1
    assert found["a"]["final_loss"] > 0
    assert (found["wide"]["height"], found["wide"]["width"], found["wide"]["seed"]) == (16, 32, 5)
    assert found["masked"]["layout"][0] == {"phrase": "red star", "box": [0.0, 0.0, 1.0, 0.5]}
    for r in found.values():
        data = (Path(folder.uri) / r["image_uri"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == r["image_sha256"]
        assert Image.open(io.BytesIO(data)).size == (r["width"], r["height"])
        said = read_provenance(data)
        assert (said["rows"], said["method"]) == ([r["row_id"]], "bounded_attention")
        assert said["digital_source_type"].endswith("/trainedAlgorithmicMedia")
        assert set(np.unique(pixels(folder, r["refined_mask_uri"]))) <= {0, 1, 2}


def test_bad_rows_fail_alone_with_what_to_do(tmp_path: Path, model: Path) -> None:
    bad = {
        "phrase": row("phrase", "a red star and a dog"),
        "twice": row("twice", "a red star and a red star and a blue circle"),
        "box": row("box", subjects=[{"phrase": "red star", "box": [0, 0, 2, 1]}]),
        "none": row("none", subjects=[]),
        "size": row("size", height=18, width=16),
        "empty": row("empty", " "),
        "gone": row("gone", subjects=[{"phrase": "red star", "mask_uri": str(tmp_path / "nowhere.png")}]),
        "web": row("web", subjects=[{"phrase": "red star", "mask_uri": "https://example.org/mask.png"}]),
    }
    folder = JobFolder(run(parse(job(tmp_path, model, [row("good"), *bad.values()]))).folder)
    results = folder.results(["row_id", "error_type", "error", "stage"])
    found = {r["row_id"]: r for r in results.filter(pc.equal(results["status"], "failed")).to_pylist()}  # pyright: ignore
    others = {"phrase": "PhraseNotFound", "twice": "AmbiguousPhrase", "gone": "FileNotFoundError", "web": "UriNotAllowed"}
    assert {name: r["error_type"] for name, r in found.items()} == {**dict.fromkeys(bad, "BadRow"), **others}
    assert {r["stage"] for name, r in found.items() if name not in ("phrase", "twice")} == {"layout"}  # nothing bad reaches the model
    assert "blue circle" in found["phrase"]["error"]
    assert "a red star and a dog" in found["phrase"]["error"]
    assert verify(folder) == []


def test_several_pictures_a_row_are_scored_and_the_best_or_all_are_kept(tmp_path: Path, model: Path) -> None:
    rows = [row("a"), row("b", "a red star and a blue circle on the left")]
    single = JobFolder(run(parse(job(tmp_path, model, rows))).folder)
    first = {r["row_id"]: r for r in single.results().to_pylist()}
    for keep in ("all", "best"):
        folder = JobFolder(run(parse(job(tmp_path, model, rows, name=keep, params={"images_per_row": 3, "keep": keep}))).folder)
        assert verify(folder) == []
        for r in folder.results().to_pylist():
            scores = r["candidate_scores"]
            assert len(scores) == 3
            assert r["final_loss"] == scores[r["best"]] == min(scores)
            assert scores[0] == pytest.approx(first[r["row_id"]]["final_loss"], rel=1e-3)  # the first is what a single one is
            if keep == "all":
                assert len(set(r["image_sha256s"])) == 3
                assert r["image_uri"] == r["image_uris"][r["best"]]
                assert abs(pixels(folder, r["image_uris"][0]) - pixels(single, first[r["row_id"]]["image_uri"])).max() <= 1
    all_of_them = JobFolder(prepare(parse(job(tmp_path, model, rows, name="all", params={"images_per_row": 3, "keep": "all"}))).folder.uri)
    (Path(all_of_them.uri) / all_of_them.results()["image_uris"][0].as_py()[1]).unlink()
    assert any("is missing" in problem for problem in verify(all_of_them))


def test_a_row_s_picture_does_not_depend_on_its_neighbours(tmp_path: Path, model: Path) -> None:
    rows = [row("a"), row("b", subjects=[{"phrase": "blue circle", "box": LEFT}]), row("c", guidance_scale=2.0)]
    together = JobFolder(run(parse(job(tmp_path, model, rows))).folder)
    wanted = {"where": {"row_id": ["b"]}, "resources": {"micro_batch": 1}}
    alone = JobFolder(run(parse(job(tmp_path, model, rows, **wanted))).folder)
    of = {r["row_id"]: r["image_uri"] for r in together.results().to_pylist()}
    assert abs(pixels(together, of["b"]) - pixels(alone, alone.results()["image_uri"][0].as_py())).max() <= 1


def test_what_decides_results_is_settled(tmp_path: Path, model: Path) -> None:
    settled = prepare(parse(job(tmp_path, model, [row("a")])))
    params = settled.parts["params"]
    assert (params["num_inference_steps"], params["step_size"], params["image_size"], params["size_unit"]) == (3, [8.0, 2.0], SIDE, 4)
    assert settled.parts["mode"] == "layout"
    assert prepare(parse(job(tmp_path, model, [row("a")], mode="layout"))).parts == settled.parts
    assert prepare(parse(job(tmp_path, model, [row("a")], params={"step_size": [4, 1]}))).parts["params"]["step_size"] == [4.0, 1.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "objects"}, "compose has no mode objects; it has layout"),
        ({"params": {"image_size": 18}}, "multiples of 4"),
        ({"params": {"scores": "loss"}}, "did you mean `score`"),
        ({"model": "lab/instant-restore"}, "compose/layout runs bounded_attention on a base of the topology stable-diffusion"),
        ({"model": {"method": "stable_flow", "base": "/nowhere"}}, "compose/layout runs bounded_attention, not stable_flow"),
    ],
)
def test_a_wrong_job_file_is_refused_with_what_to_write(tmp_path: Path, model: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(JobFileError, match=message):
        prepare(parse({**job(tmp_path, model, [row("a")]), **change}))


def test_a_full_size_base_is_named_by_its_folder(tmp_path: Path, model: Path) -> None:
    full = {"method": "bounded-attention", "base": str(model)}
    assert (
        prepare(parse(job(tmp_path, model, [row("a")]) | {"model": full})).parts["params"]["num_inference_steps"] == 50
    )  # no card is read
    with pytest.raises(JobFileError, match=r"model\.checkpoint: bounded-attention takes base"):
        prepare(parse(job(tmp_path, model, [row("a")]) | {"model": {**full, "checkpoint": str(model)}}))


def test_the_best_score_is_finite_and_the_first_of_equals() -> None:
    assert best_of([0.3, 0.1, 0.1], higher_is_better=False) == 1
    assert best_of([None, float("nan"), 0.2, 0.5], higher_is_better=True) == 3
    assert best_of([None, None], higher_is_better=True) == 0


def test_several_pictures_a_row_go_to_the_method_in_calls_of_bounded_size() -> None:
    calls: list[int] = []

    def method(requests: Any) -> list[int]:
        calls.append(len(requests))
        return [2 * request for request in requests]

    assert Several(method, 4)([[1, 2, 3], [], [4, 5, 6]]) == [[2, 4, 6], [], [8, 10, 12]]
    assert calls == [4, 2]
    assert (rows_a_call(16, 3), rows_a_call(4, 9)) == (5, 1)
