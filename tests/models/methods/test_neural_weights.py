"""Neural weights: what makes them loadable by their translator and by no other, and that a concept's text decides them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.checkpoints import CheckpointMismatch
from models.lora_files import ForeignBase, lora_bytes, read_lora
from models.low_rank import attached
from models.methods.neural_weights import NeuralWeights, Request
from models.methods.weight_diffusion import Denoiser
from models.nets.translator import Translator, UnknownWords
from models.nets.weight_blocks import LayoutMismatch, concatenated
from tests.models.methods.tiny_neural_weights import tiny_denoiser_of, tiny_method, tiny_model, tiny_requests, tiny_translator


@pytest.fixture(scope="module")
def method() -> NeuralWeights:
    return tiny_method()


@pytest.fixture(scope="module")
def base(method: NeuralWeights) -> Translator:
    return method.base


def test_what_is_generated_is_a_lora_of_its_translator_that_says_what_it_is(method: NeuralWeights, base: Translator) -> None:
    made = method(tiny_requests())
    for result, request in zip(made, tiny_requests(), strict=True):
        assert {name: tuple(tensor.shape) for name, tensor in result.lora.items()} == dict(base.lora_layout)
        assert result.metadata["concept"] == request.concept
        assert result.metadata["base_hash"] == base.base_hash
        assert (result.metadata["state"], result.metadata["seed"]) == ("generated", str(request.seed))
    assert made[2].metadata["row_id"] == "c"


def test_text_and_seed_decide_and_nothing_else(method: NeuralWeights) -> None:
    def weights(concept: str, seed: int) -> torch.Tensor:
        (result,) = method([Request(concept, seed)])
        return torch.cat([tensor.flatten() for tensor in result.lora.values()])

    first = weights("sepia", 1)
    assert (weights("noir", 1) - first).abs().max() > 1e-3
    assert (weights("sepia", 2) - first).abs().max() > 1e-3
    assert torch.equal(weights("sepia", 1), first)


def test_the_same_seed_gives_the_same_file_byte_for_byte() -> None:
    request = Request("sepia, fog", 5)
    files = [lora_bytes(result.lora, result.metadata) for result in (tiny_method()([request])[0] for _ in range(2))]
    assert files[0] == files[1]


def test_the_preview_is_what_the_generated_file_does_to_the_picture(method: NeuralWeights, base: Translator) -> None:
    requests = tiny_requests()
    made = method(requests)
    assert [result.picture is None for result in made] == [False, True, False, True]
    for result, request in zip(made, requests, strict=True):
        if result.picture is not None and request.picture is not None:
            lora, _metadata = read_lora(lora_bytes(result.lora, result.metadata))
            with torch.no_grad(), attached(base.generator, base.low_rank(concatenated([lora])), torch.zeros(1, dtype=torch.int64)):
                alone = base.generator(request.picture[None], base.silence(1))[0]
            torch.testing.assert_close(result.picture, alone, atol=1e-5, rtol=0)
            assert (alone - base.generator(request.picture[None], base.silence(1))[0]).abs().max() > 1e-3


def test_a_lora_whose_up_is_zero_is_the_base_bit_for_bit_and_merging_is_the_same_as_attaching(
    method: NeuralWeights, base: Translator
) -> None:
    (result,) = method([Request("noir", 3)])
    picture, text = torch.zeros(1, 3, 16, 16), base.encode_text(["noir"])
    rows = torch.zeros(1, dtype=torch.int64)
    nothing = {name: tensor * (0 if name.endswith("lora_B") else 1) for name, tensor in result.lora.items()}
    with torch.no_grad():
        plain = base.generator(picture, text)
        with attached(base.generator, base.low_rank(concatenated([nothing])), rows):
            assert torch.equal(base.generator(picture, text), plain)
        adapters = base.low_rank(concatenated([result.lora]))
        with attached(base.generator, adapters, rows):
            through = base.generator(picture, text)
        weights = {name: base.generator.get_parameter(f"{name}.weight") for name in adapters}
        kept = {name: weight.clone() for name, weight in weights.items()}
        for name, weight in weights.items():
            weight += adapters[name].delta(0)
        merged = base.generator(picture, text)
        for name, weight in weights.items():
            weight.copy_(kept[name])
    torch.testing.assert_close(through, merged, atol=1e-5, rtol=1e-5)
    assert (through - plain).abs().max() > 1e-3


def test_more_steps_are_ddim_and_end_elsewhere(base: Translator) -> None:
    text = base.encode_text(["sepia", "noir"])
    for prediction in ("x0", "v", "eps"):
        denoiser = tiny_denoiser_of(base, prediction)
        one, many = denoiser.generate(text, [0, 1]), denoiser.generate(text, [0, 1], num_steps=5)
        assert many.isfinite().all()
        assert (one - many).abs().max() > 1e-3


def test_another_translator_is_refused_with_what_to_do(tmp_path: Path, base: Translator) -> None:
    folder = tiny_model(tmp_path / "weight-denoiser")
    other = tiny_translator(tmp_path / "other", seed=1)
    with pytest.raises(ForeignBase, match=r"This weight denoiser was made for the base .* Name the base that belongs to it"):
        NeuralWeights.load({"base": other, "checkpoint": folder})
    denoiser = tiny_denoiser_of(base)
    with pytest.raises(LayoutMismatch, match="names other tensors"):
        NeuralWeights(base, replace(denoiser, layout=replace(denoiser.layout, tensors=denoiser.layout.tensors[:-1])))


def test_a_denoiser_s_file_is_read_strictly(tmp_path: Path, base: Translator) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny_model(tmp_path / "weight-denoiser")
    file = folder / "denoiser.safetensors"
    save_file({**load_file(file), "more": torch.zeros(1)}, file)
    with pytest.raises(CheckpointMismatch, match="unknown more"):
        Denoiser.load(folder)


def test_a_concept_in_unknown_words_is_refused_by_name(method: NeuralWeights) -> None:
    with pytest.raises(UnknownWords, match="watercolour"):
        method([Request("watercolour", 0)])
