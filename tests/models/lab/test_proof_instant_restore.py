"""The lab proof compares what it says, pairs people, and can fail."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from models.lab.proof_instant_restore import attention_mass
from models.lab.restoration_scores import compare, restored, score, sharpened
from models.methods.instant_restore import InstantRestore
from models.recipes.instant_restore import Config, new_model, settings
from models.training.photographs import Person, drawn_person

TINY = Config(data="", channels=(16, 16), heads=2, side=32, reference_scale=0.5)


@pytest.fixture(scope="module")
def method() -> InstantRestore:
    model = new_model(TINY)
    torch.nn.init.normal_(model.unet.conv_out.weight, std=0.02, generator=torch.Generator().manual_seed(0))
    return InstantRestore(model.eval().networks(TINY.unshuffle), settings(TINY))


@pytest.fixture(scope="module")
def people() -> list[Person]:
    return [drawn_person(i, 3, side=32) for i in range(4)]


def mean_colour(pictures_B3HW: torch.Tensor) -> torch.Tensor:
    return pictures_B3HW.mean((2, 3))


def test_every_arm_sees_the_same_damage_and_the_references_it_is_named_for(method: InstantRestore, people: list[Person]) -> None:
    result = compare(method, people, "strong", mean_colour, counts=(0, 2))
    assert list(result.arms) == ["input", "classical", "0 references", "2 references", "another's 2"]
    damaged = result.arms["input"].pictures
    assert_close(result.arms["classical"].pictures[0], sharpened(damaged[0]), atol=0, rtol=0)
    assert_close(result.arms["0 references"].pictures, restored(method, damaged, [[]] * 4))
    right = restored(method, damaged[:1], [result.references[0]])
    another = restored(method, damaged[:1], [result.references[1]])
    assert_close(result.arms["2 references"].pictures[:1], right, atol=1e-5, rtol=0)
    assert_close(result.arms["another's 2"].pictures[:1], another, atol=1e-5, rtol=0)
    assert (right - another).abs().max() > 1e-3


def test_a_gain_is_positive_for_the_better_arm_of_every_measure(method: InstantRestore, people: list[Person]) -> None:
    result = compare(method, people, "strong", mean_colour, counts=(0,), classical=False)
    perfect = score(result.originals, result.originals + 0, result.original_embeddings, mean_colour)
    near = score(result.originals + 0.0005, result.originals, result.original_embeddings, mean_colour)
    assert float(perfect.scores["identity"].max()) == 0
    better = replace(result, arms={**result.arms, "near": near})
    for measure in ("psnr", "ssim", "gmsd", "identity"):
        assert better.gain("near", "input", measure).low > 0
        assert better.gain("input", "near", measure).high < 0


def test_attention_mass_of_an_untaught_network_is_about_a_random_share(method: InstantRestore, people: list[Person]) -> None:
    result = compare(method, people, "medium", mean_colour, counts=(0, 1), classical=False)
    assert 0 < attention_mass(method, result) < 0.5
