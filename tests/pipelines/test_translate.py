"""The translate kind, both modes, end to end on a tiny random base: what it trains, from where, what it refuses."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from models.lora_files import lora_bytes, read_lora
from models.nets.translator import Translator
from models.training.weight_denoising import read_collection
from orchestration.finalize import verify
from orchestration.folder import JobFolder
from orchestration.job import JobFileError, parse
from orchestration.run import prepare, run
from pipelines import translate_collect, translate_finetune
from tests.models.methods.tiny_neural_weights import tiny_model as tiny_denoiser

FAST: dict[str, dict[str, Any]] = {
    "collect": {"steps": 4, "batch_size": 4},
    "finetune": {"max_epochs": 2, "batch_size": 4, "check_every": 2},
}


def tiny_model(folder: Path) -> Path:
    """A denoiser with its translator beside it."""
    return tiny_denoiser(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def png(seed: int, size: tuple[int, int] = (16, 16), *, darker: bool = False) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(coarse // 3 if darker else coarse).resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def pairs(count: int = 12) -> dict[str, list[bytes]]:
    return {"input_images": [png(i) for i in range(count)], "target_images": [png(i, darker=True) for i in range(count)]}


def row(row_id: str, concept: str = "sepia, ink outlines", **columns: Any) -> dict[str, Any]:
    given = {} if {"pairs_uri", "input_image_uris"} & columns.keys() else pairs()
    return {"row_id": row_id, "concept": concept, **given, **columns}


def job(folder: Path, model: Path | str | dict[str, str], rows: list[dict[str, Any]], mode: str = "collect", **keys: Any) -> dict[str, Any]:
    schema = {"collect": translate_collect.ROWS, "finetune": translate_finetune.ROWS}[mode]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "manifest.parquet")
    return {
        "kind": "translate",
        "mode": mode,
        "name": "test",
        "manifest": str(folder / "manifest.parquet"),
        "output": str(folder / "out"),
        "model": model if isinstance(model, dict) else str(model),
        "engine": "inline",
        "tracking": {"enabled": False},
        **keys,
        "params": {**FAST[mode], **keys.get("params", {})},
    }


def finetune(folder: Path, model: Path | str | dict[str, str], rows: list[dict[str, Any]], **keys: Any) -> dict[str, Any]:
    return job(folder, model, rows, "finetune", **keys)


def results(folder: JobFolder) -> dict[str, dict[str, Any]]:
    return {r["row_id"]: r for r in folder.results().to_pylist()}


def test_collected_weights_are_what_a_denoiser_can_be_trained_on(tmp_path: Path, model: Path) -> None:
    rows = [row("a"), row("b", "golden, soft focus"), row("c", "sepia, soft focus", seed=9)]
    spec = parse(job(tmp_path, model.parent / "translator", rows))
    folder = JobFolder(run(spec).folder)
    assert verify(folder) == []
    base = Translator.load(model.parent / "translator")
    collection = read_collection(Path(folder.uri), base.base_hash)
    assert collection.concepts == ("golden, soft focus", "sepia, ink outlines", "sepia, soft focus")
    assert {name: tuple(tensor.shape[1:]) for name, tensor in collection.lora.items()} == dict(base.lora_layout)
    for found in results(folder).values():
        assert found["l1_final"] < found["l1_start"] == found["l1_base"]
        assert (found["steps"], found["curve_steps"]) == (4, [0, 2, 4])
        assert found["base_hash"] == base.base_hash
        lora, said = read_lora((Path(folder.uri) / found["weights_uri"]).read_bytes())
        assert (said["state"], said["steps"], said["row_id"]) == ("trained", "4", found["row_id"])
        assert not all((lora[name] == start).all() for name, start in base.start_lora().items())
        for column in ("input", "tuned", "target"):
            assert Image.open(Path(folder.uri) / found[f"{column}_uri"]).size == (16, 16)


def test_pairs_may_be_bytes_files_or_a_parquet_file_and_give_the_same_weights(tmp_path: Path, model: Path) -> None:
    given = pairs()
    pq.write_table(pa.table({"input_image": given["input_images"], "target_image": given["target_images"]}), tmp_path / "pairs.parquet")
    uris: dict[str, list[str]] = {}
    for column, what in (("input_images", "input"), ("target_images", "target")):
        for i, data in enumerate(given[column]):
            (tmp_path / f"{what}{i}.png").write_bytes(data)
        uris[f"{what}_image_uris"] = [str(tmp_path / f"{what}{i}.png") for i in range(len(given[column]))]
    rows = [
        row("bytes"),
        row("file", pairs_uri=str(tmp_path / "pairs.parquet")),
        {"row_id": "uris", "concept": "sepia, ink outlines", **uris},
    ]
    folder = JobFolder(run(parse(job(tmp_path, model.parent / "translator", rows))).folder)
    loras = [read_lora((Path(folder.uri) / found["weights_uri"]).read_bytes())[0] for found in results(folder).values()]
    assert len(loras) == 3
    assert all((loras[0][name] - other[name]).abs().max() < 1e-5 for other in loras[1:] for name in other)


def test_a_finetuning_begins_with_generated_weights_or_with_a_file(tmp_path: Path, model: Path) -> None:
    base = Translator.load(model.parent / "translator")
    given = lora_bytes(base.start_lora(), {"concept": "sepia", "base_hash": base.base_hash})
    (tmp_path / "start.safetensors").write_bytes(given)
    rows = [row("generated"), row("given", start_weights_uri=str(tmp_path / "start.safetensors"), apply_images=[png(99), png(98)])]
    folder = JobFolder(run(parse(finetune(tmp_path, model, rows))).folder)
    found = results(folder)
    assert verify(folder) == []
    assert found["given"]["l1_start"] == pytest.approx(found["given"]["l1_base"], abs=1e-5)  # a LoRA that changes nothing
    assert found["generated"]["l1_start"] != pytest.approx(found["generated"]["l1_base"], abs=1e-4)
    assert found["generated"]["generate_ms"] > 0 == found["given"]["generate_ms"]
    for one in found.values():
        assert one["curve"][-1] == one["l1_final"]
        assert one["steps"] == 2 * 2  # 12 pairs, 4 of them held out, 4 a step, twice
    assert found["generated"]["image_uris"] is None
    assert len(found["given"]["image_uris"]) == 2
    start, tuned = ((Path(folder.uri) / found["generated"][f"{what}_uri"]).read_bytes() for what in ("start", "tuned"))
    assert start != tuned
    with_nothing = JobFolder(run(parse(finetune(tmp_path, model.parent / "translator", [row("plain")]))).folder)
    assert results(with_nothing)["plain"]["l1_start"] == pytest.approx(found["given"]["l1_base"], abs=1e-5)


def test_a_row_ends_where_its_target_is_reached_and_missing_it_is_no_failure(tmp_path: Path, model: Path) -> None:
    rows = [row("easy", target_l1=0.99), row("hard", target_l1=1e-4), row("free"), row("brief", max_seconds=1e-6)]
    found = results(JobFolder(run(parse(finetune(tmp_path, model, rows, params={"target_l1": 0.98}))).folder))
    assert (found["easy"]["steps"], found["easy"]["reached_target"]) == (0, True)
    assert (found["free"]["steps"], found["free"]["reached_target"]) == (0, True)  # the job's target
    assert (found["hard"]["steps"], found["hard"]["reached_target"]) == (4, False)
    assert found["brief"]["steps"] in (0, 2)


@pytest.mark.parametrize("mode", ["collect", "finetune"])
def test_bad_rows_fail_alone_with_what_to_do(tmp_path: Path, model: Path, mode: str) -> None:
    few, broken = pairs(7), pairs()
    broken["target_images"][3] = b"no picture"
    uneven, sizes = pairs(), pairs()
    uneven["target_images"].pop()
    sizes["target_images"][5] = png(5, (20, 16))
    rows = [
        row("good"),
        row("empty", " "),
        {**row("few"), **few},
        {**row("broken"), **broken},
        {**row("uneven"), **uneven},
        {**row("sizes"), **sizes},
        {**row("both", pairs_uri="pairs.parquet"), **pairs()},
        row("gone", pairs_uri=str(tmp_path / "nowhere.parquet")),
    ]
    folder = JobFolder(run(parse(job(tmp_path, model, rows, mode))).folder)
    table = folder.results(["row_id", "error_type", "error"])
    found = {r["row_id"]: r for r in table.filter(pc.equal(table["status"], "failed")).to_pylist()}  # pyright: ignore
    others = {"gone": "FileNotFoundError"}
    bad = [one["row_id"] for one in rows if one["row_id"] != "good"]
    assert {name: r["error_type"] for name, r in found.items()} == {**dict.fromkeys(bad, "BadRow"), **others}
    assert "target image 3" in found["broken"]["error"]
    assert "pair 5: input is 16 x 16, target 20 x 16" in found["sizes"]["error"]
    assert "12 input images and 11 target images" in found["uneven"]["error"]
    assert verify(folder) == []


def test_words_that_the_text_tower_does_not_know_matter_only_where_weights_come_from_them(tmp_path: Path, model: Path) -> None:
    rows = [row("a", "watercolour"), row("b", "sepia")]
    for base, status in ((model.parent / "translator", "ok"), (model, "failed")):
        found = results(JobFolder(run(parse(finetune(tmp_path, base, rows))).folder))
        assert (found["a"]["status"], found["b"]["status"]) == (status, "ok")


def test_a_start_for_another_base_fails_its_row(tmp_path: Path, model: Path) -> None:
    base = Translator.load(model.parent / "translator")
    (tmp_path / "foreign.safetensors").write_bytes(lora_bytes(base.start_lora(), {"concept": "sepia", "base_hash": "another"}))
    rows = [row("good"), row("foreign", start_weights_uri=str(tmp_path / "foreign.safetensors"))]
    found = results(JobFolder(run(parse(finetune(tmp_path, model, rows))).folder))
    assert found["good"]["status"] == "ok"
    assert found["foreign"]["error_type"] == "ForeignBase"


def test_what_a_row_becomes_does_not_depend_on_who_trains_beside_it(tmp_path: Path, model: Path) -> None:
    rows = [row("a"), row("b", "golden, fog"), row("c", "noir")]
    together = JobFolder(run(parse(job(tmp_path, model.parent / "translator", rows))).folder)
    where = {"where": {"row_id": ["b"]}, "resources": {"micro_batch": 1}}
    alone = JobFolder(run(parse(job(tmp_path, model.parent / "translator", rows, **where))).folder)
    one, other = (read_lora((Path(f.uri) / results(f)["b"]["weights_uri"]).read_bytes())[0] for f in (together, alone))
    assert max((one[name] - other[name]).abs().max().item() for name in one) < 1e-4  # four steps of Adam on rounding


def test_a_model_that_is_no_translator_is_refused(tmp_path: Path, model: Path) -> None:
    with pytest.raises(JobFileError, match="no translator; name lab/translator"):
        prepare(parse(job(tmp_path, "lab/reader", [row("a")])))
