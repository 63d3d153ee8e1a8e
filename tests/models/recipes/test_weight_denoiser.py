"""The weight denoiser's recipe on a tiny translator: it learns concepts to the letter, and a resumed training is an unbroken one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.lora_files import ForeignBase, lora_bytes
from models.low_rank import attached
from models.methods.neural_weights import NeuralWeights, Request
from models.nets.translator import Translator
from models.nets.weight_blocks import Layout, concatenated
from models.recipes.weight_denoiser import Config, build, loss, prepare, principal_directions, train, ways_to_say
from tests.models.methods.tiny_neural_weights import tiny_translator

CONCEPTS = ("sepia, ink outlines", "noir, soft focus", "golden, fog", "noir, fog")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a few LoRAs, as a translate job leaves them, and its translator."""
    folder = tmp_path_factory.mktemp("job")
    base = Translator.load(tiny_translator(folder / "translator"))
    for seed, concept in enumerate(CONCEPTS):
        file = folder / "artifacts" / "aa" / f"{seed}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(lora_bytes(trained(base, seed), {"concept": concept, "base_hash": base.base_hash, "state": "trained"}))
    return folder


def trained(base: Translator, seed: int) -> dict[str, torch.Tensor]:
    """What a training might have made of the common start."""
    generator = torch.Generator().manual_seed(seed)
    return {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in base.start_lora().items()}


def config(job: Path, **changes: object) -> Config:
    tiny = Config(
        data=job, translator=str(job / "translator"), validation=1, block_size=256, patch=32, widths=(8, 8, 16), heads=(2, 2, 2),
        directions=4, batch=3, drawn=None, steps=6, save_every=2, warmup=1, paraphrases=1, text_dropout=0.0, noisiest=0.5,
    )  # fmt: skip
    return replace(tiny, **changes)  # pyright: ignore[reportArgumentType]


def test_concepts_that_it_saw_come_back_to_the_letter(job: Path, tmp_path: Path) -> None:
    cfg = config(job, steps=220, lr=8e-3, noisiest=1.0, average=0.9, save_every=1000)
    train(cfg, tmp_path)
    base = Translator.load(job / "translator")
    data = prepare(cfg, base)
    method = NeuralWeights.load({"base": job / "translator", "checkpoint": tmp_path / "weight-denoiser"}, device="cpu")
    made = method([Request(concept, seed=9) for concept in data.concepts])
    blocks = (data.layout.to_blocks(concatenated([result.lora for result in made])) - data.mean) / data.std
    assert (blocks - data.blocks)[:, data.layout.mask].square().mean() < 1e-3
    picture, text = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)), base.encode_text(data.concepts[:1])
    wanted = trained(base, CONCEPTS.index(data.concepts[0]))
    pictures = []
    for lora in (made[0].lora, wanted):
        with torch.no_grad(), attached(base.generator, base.low_rank(concatenated([lora])), torch.zeros(1, dtype=torch.int64)):
            pictures.append(base.generator(picture, text))
    assert (pictures[0] - pictures[1]).abs().mean() < 1e-2


def test_a_resumed_training_equals_an_unbroken_one(job: Path, tmp_path: Path) -> None:
    train(config(job), tmp_path / "whole")
    train(config(job, minutes=0.0), tmp_path / "broken")  # one step, then out of time
    assert torch.load(tmp_path / "broken" / "checkpoint.pt", weights_only=True)["step"] == 1
    train(config(job), tmp_path / "broken")
    whole, broken = (load_file(tmp_path / name / "weight-denoiser" / "denoiser.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_a_step_sees_as_many_blocks_as_it_is_told_to(job: Path) -> None:
    base = Translator.load(job / "translator")
    seen = []
    for drawn in (2, None):
        cfg = config(job, drawn=drawn)
        data = prepare(cfg, base)
        network = build(cfg, data)
        network.register_forward_pre_hook(lambda _module, given: seen.append(given[0].shape[1]))
        loss(cfg, network, data, 0)
    assert seen == [2, data.layout.blocks]


def test_what_it_saw_and_for_whom_stands_beside_it(job: Path, tmp_path: Path) -> None:
    train(config(job, grouping="padded", steps=1), tmp_path)
    folder = tmp_path / "weight-denoiser"
    base = Translator.load(job / "translator")
    seen = (folder / "concepts.txt").read_text().splitlines()
    assert len(seen) == 3
    assert set(seen) < set(CONCEPTS)
    layout, card = (json.loads((folder / name).read_text()) for name in ("layout.json", "card.json"))
    assert layout["base_hash"] == card["base_hash"] == base.base_hash
    assert layout["grouping"] == "padded"
    assert Layout.from_json(layout).tensors == base.lora_layout
    assert card["method"] == "neural_weights"


def test_data_that_is_missing_too_little_or_another_s_is_refused(job: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--data JOB is missing"):
        train(config(job, data=None), tmp_path)
    with pytest.raises(ValueError, match="two must be left to train on"):
        train(config(job, validation=3), tmp_path)
    other = tiny_translator(tmp_path / "other", seed=1)
    with pytest.raises(ForeignBase):
        train(config(job, translator=str(other)), tmp_path)


def test_a_concept_of_the_lab_is_said_in_several_ways_and_another_in_its_own() -> None:
    ways = ways_to_say("sepia, ink outlines", 8, 0)
    assert ways[0] == "sepia, ink outlines"
    assert len(set(ways)) > 3
    assert ways_to_say("like a dream", 2, 0) == ["like a dream"] * 3


def test_along_principal_directions_concepts_have_a_deviation_of_one() -> None:
    blocks = torch.randn(12, 3, 8, generator=torch.Generator().manual_seed(0))
    blocks = blocks - blocks.mean(0)
    found = principal_directions(blocks, 4)
    coordinates = blocks.flatten(1) @ torch.linalg.pinv(found.flatten(1))
    torch.testing.assert_close(coordinates.square().mean(0), torch.ones(4))
    assert len(principal_directions(blocks, 50)) == 12
