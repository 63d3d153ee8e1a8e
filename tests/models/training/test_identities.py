"""Many people's adapters in one forward pass: each as if trained alone, all from one start."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.lora_files import lora_bytes
from models.methods.weights2weights_files import adapter_metadata, read_start
from models.training.identities import Identities, Request, Settings, starting_weights
from tests.models.tiny_bases import tiny_unet_base

SETTINGS = Settings(prompt="a dog", num_steps=3, learning_rate=1e-3, batch=2, num_inference_steps=2)


def person(number: int, count: int = 3) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(number)) * 2 - 1


@pytest.fixture(scope="module")
def trainer() -> Identities:
    return Identities(tiny_unet_base(), SETTINGS, "a" * 64)


def test_people_trained_together_get_what_each_gets_alone(trainer: Identities) -> None:
    wanted = [Request(person(number, count), seed=7, name=str(number)) for number, count in ((0, 3), (1, 2), (2, 3))]
    together = trainer(wanted)
    for request, one in zip(wanted, together, strict=True):
        (alone,) = trainer([request])
        for key, tensor in alone.adapter.items():
            assert (one.adapter[key] - tensor).abs().max() < 1e-5
        assert one.final_loss == pytest.approx(alone.final_loss, abs=1e-5)
        assert (one.picture - alone.picture).abs().max() < 1e-4
    a, b = (trainer.layout.flatten(result.adapter) for result in together[:2])
    assert (a - b).abs().max() > 1e-5  # else nobody was learned


def test_everybody_begins_at_the_base(trainer: Identities) -> None:
    start = trainer.layout.unflatten(starting_weights(trainer.layout, 0))
    assert all(not tensor.any() for key, tensor in start.items() if ".lora_B." in key)
    assert all(tensor.any() for key, tensor in start.items() if ".lora_A." in key)
    assert not torch.equal(starting_weights(trainer.layout, 0), starting_weights(trainer.layout, 1))


def test_an_adapter_s_file_is_read_back_by_a_space_of_its_base(trainer: Identities) -> None:
    (result,) = trainer([Request(person(0), seed=0, name="ada")])
    start = read_start(lora_bytes(result.adapter, result.metadata), trainer.layout)
    assert start.weights_n is not None
    assert torch.equal(start.weights_n, trainer.layout.flatten(result.adapter))
    assert (result.metadata["person"], result.metadata["steps"]) == ("ada", "3")
    assert result.metadata.items() >= adapter_metadata(trainer.layout).items()  # else stock diffusers would take another scale


def test_longer_training_fits_the_pictures_better() -> None:
    longer = replace(SETTINGS, num_steps=60, learning_rate=3e-3)
    (result,) = Identities(tiny_unet_base(), longer)([Request(person(3, 1).expand(4, -1, -1, -1), seed=1)])
    assert result.curve[-1] < result.curve[0]
    assert result.curve_steps[-1] == 60


def test_the_base_is_given_back_untouched_and_nobody_without_pictures_is_trained(trainer: Identities) -> None:
    trainer([Request(person(0), seed=0)])
    assert not any(module._forward_hooks for module in trainer.base.unet.modules())
    with pytest.raises(ValueError, match="without pictures"):
        trainer([Request(torch.empty(0, 3, 32, 32), seed=0)])
    assert trainer([]) == []
