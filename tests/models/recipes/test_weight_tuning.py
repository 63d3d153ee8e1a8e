"""The recipe that finishes a weight denoiser on pictures: translations come nearer to their targets, resumed equals unbroken, bad parts are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from models.lab.concepts import training_concepts
from models.lora_files import ForeignBase
from models.methods.neural_weights import NeuralWeights, Request
from models.methods.weight_diffusion import Denoiser
from models.nets.translator import Translator
from models.recipes.weight_tuning import Config, error, source_of, train
from models.training.given_pairs import read_pairs
from tests.models.methods.tiny_neural_weights import tiny_model, tiny_translator

CONCEPTS = [concept.text for concept in training_concepts(3)]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A denoiser's folder, its translator beside it."""
    folder = tiny_model(tmp_path_factory.mktemp("start") / "weight-denoiser")
    (folder / "concepts.txt").write_text("\n".join(CONCEPTS) + "\n")
    return folder


def config(start: Path, **changes: object) -> Config:
    tiny = Config(
        start=str(start), translator=str(start.parent / "translator"), portraits=6, validation=2, concepts=3, pairs=2, paraphrases=1, steps=4,
        save_every=2, warmup=1,
    )  # fmt: skip
    return replace(tiny, **changes)  # pyright: ignore[reportArgumentType]


def test_translations_come_nearer_to_their_targets(start: Path, tmp_path: Path) -> None:
    cfg = config(start, steps=60, lr=1e-2, average=0.8, save_every=1000)
    base = Translator.load(start.parent / "translator")
    draw, _known = source_of(cfg, base)
    before = error(base, Denoiser.load(start), CONCEPTS, draw)
    train(cfg, tmp_path)
    assert error(base, Denoiser.load(tmp_path / "weight-denoiser"), CONCEPTS, draw) < 0.8 * before


def test_a_resumed_training_equals_an_unbroken_one(start: Path, tmp_path: Path) -> None:
    train(config(start), tmp_path / "whole")
    train(config(start, minutes=0.0), tmp_path / "broken")  # one step, then out of time
    assert torch.load(tmp_path / "broken" / "checkpoint.pt", weights_only=True)["step"] == 1
    train(config(start), tmp_path / "broken")
    whole, broken = (load_file(tmp_path / name / "weight-denoiser" / "denoiser.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_what_comes_out_is_used_like_what_went_in_and_says_where_it_is_from(start: Path, tmp_path: Path) -> None:
    train(config(start, steps=1), tmp_path)
    made = NeuralWeights.load({"base": start.parent / "translator", "checkpoint": tmp_path / "weight-denoiser"}, device="cpu")
    assert len(made([Request(CONCEPTS[0], 0)])) == 1
    assert (tmp_path / "weight-denoiser" / "concepts.txt").read_text() == (start / "concepts.txt").read_text()
    card, begun = (json.loads((folder / "card.json").read_text()) for folder in (tmp_path / "weight-denoiser", start))
    assert card["recipe"] == "weight_tuning"
    assert card["base_hash"] == begun["base_hash"]
    assert set(card["metrics"]) == {"error_before", "error"}


def test_pairs_of_one_s_own_are_read_by_name(start: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs"
    for concept in CONCEPTS:
        for side, shade in (("input", 40), ("target", 200)):
            (pairs / concept / side).mkdir(parents=True)
            for name in ("a", "b"):
                Image.new("RGB", (40, 20), (shade, 0, 0)).save(pairs / concept / side / f"{name}.png")
    Image.new("RGB", (8, 8)).save(pairs / CONCEPTS[0] / "input" / "alone.png")
    read = read_pairs(pairs, 16)
    assert read[CONCEPTS[0]].targets.shape == (1, 2, 3, 16, 16)
    assert int(read[CONCEPTS[0]].sources[0, 0, 0, 0, 0]) == 40
    train(config(start, data=pairs, steps=1), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "weight-denoiser" / "card.json").read_text())["metrics"] == {}  # it saw all of them
    (pairs / CONCEPTS[1]).rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="no pairs of"):
        train(config(start, data=pairs), tmp_path / "again")
    with pytest.raises(ValueError, match="holds no pairs"):
        read_pairs(start, 16)


def test_another_base_is_refused(start: Path, tmp_path: Path) -> None:
    with pytest.raises(ForeignBase):
        train(config(start, translator=str(tiny_translator(tmp_path / "other", seed=1))), tmp_path)
