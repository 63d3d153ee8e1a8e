"""The translator: where its LoRA goes, that its base is known by its weights, and that it knows which words it knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from models.catalog import lab_path
from models.checkpoints import CheckpointMismatch
from models.nets.translator import Generator, PatchDiscriminator, Shape, Translator, UnknownWords, base_hash, lora_modules
from tests.models.methods.tiny_neural_weights import SHAPE, tiny_translator


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_translator(tmp_path_factory.mktemp("models") / "translator")


def test_lora_is_on_sampling_convolutions_and_the_transformer_and_on_no_residual_block() -> None:
    names = lora_modules(Generator(Shape()))
    assert {name.split(".")[0] for name in names} == {"down", "ds", "transformer", "us", "up"}
    assert sum(name.startswith("transformer.") for name in names) == 10


def test_the_full_shape_has_the_size_that_the_lab_proof_asks_for() -> None:
    assert 300_000 < sum(parameter.numel() for parameter in Generator(Shape()).parameters()) < 1_000_000
    base = Translator.load(lab_path("translator"))
    assert 5_000 <= sum(torch.Size(shape).numel() for _, shape in base.lora_layout) <= 20_000


def test_a_row_is_translated_the_same_alone_and_in_a_batch(folder: Path) -> None:
    base = Translator.load(folder)
    pictures = torch.rand(3, 3, 16, 16) * 2 - 1
    text = base.encode_text(["sepia, ink outlines", "golden, soft focus", "noir, relief"])
    with torch.no_grad():
        together = base.generator(pictures, text)
        alone = base.generator(pictures[1:2], text[1:2])
    assert together.shape == pictures.shape
    assert_close(together[1:2], alone, atol=1e-5, rtol=0)
    assert not torch.allclose(base.generator(pictures[1:2], text[:1]), alone, atol=1e-4)  # the text matters


def test_a_discriminator_judges_patches_of_a_translation_beside_its_source() -> None:
    judge = PatchDiscriminator(SHAPE)
    source, made = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    assert judge(source, made).shape[:2] == (2, 1)
    assert not torch.equal(judge(source, made), judge(made, source))


def test_a_base_is_known_by_its_weights(folder: Path, tmp_path: Path) -> None:
    base, other = Translator.load(folder), Translator.load(tiny_translator(tmp_path / "translator", seed=1))
    assert base.base_hash == base_hash(base.generator) != other.base_hash
    assert Translator.load(tiny_translator(tmp_path / "again")).base_hash == base.base_hash


def test_weights_that_are_not_those_of_the_card_are_refused(tmp_path: Path) -> None:
    folder = tiny_translator(tmp_path / "translator")
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, "base_hash": "0" * 64}))
    with pytest.raises(ValueError, match="its card says 000000000000"):
        Translator.load(folder)
    (folder / "discriminator.safetensors").write_bytes((folder / "generator.safetensors").read_bytes())
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointMismatch, match="discriminator"):
        Translator.load(folder)


@pytest.mark.parametrize(
    ("text", "why"), [("sepia, cubist angles", "'cubist', 'angles'"), ("", "takes 1 to 18 words"), ("ink " * 40, "takes 1 to 18 words")]
)
def test_a_text_outside_the_tower_s_words_is_refused_by_name(folder: Path, text: str, why: str) -> None:
    with pytest.raises(UnknownWords, match=why):
        Translator.load(folder).encode_text([text])


def test_every_start_is_the_same_and_changes_nothing(folder: Path) -> None:
    base = Translator.load(folder)
    start, again, other = base.start_lora(0), base.start_lora(0), base.start_lora(1)
    assert [(name, tuple(value.shape)) for name, value in start.items()] == list(base.lora_layout)
    assert all(torch.equal(start[name], again[name]) for name in start)
    assert not torch.equal(start["ds.lora_A"], other["ds.lora_A"])
    adapters = base.low_rank({name: value[None] for name, value in start.items()})
    assert all(not adapter.delta(0).any() for adapter in adapters.values())
