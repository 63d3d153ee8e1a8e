"""Training translators: many concepts together are each alone, a training makes its error smaller, and each ends when it is to end."""

from __future__ import annotations

import pytest
import torch

from models.lab.concepts import find_concept
from models.nets.translator import Translator
from models.nets.weight_blocks import concatenated
from models.training.translations import Pairs, Settings, Trained, absolute_errors, lora_training, scratch_training, train_loras
from tests.models.methods.tiny_neural_weights import tiny_translator

CONCEPTS = ("sepia, ink outlines", "cold teal, soft focus", "negative colours, crisp edges")
FAST = Settings(batch=4, lr=2e-2)
GENTLE = Settings(batch=4, lr=1e-3)  # Adam magnifies rounding where a gradient is next to nothing, in proportion to the rate


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Translator:
    return Translator.load(tiny_translator(tmp_path_factory.mktemp("base")))


def pairs(count: int = 12, seed: int = 0) -> Pairs:
    """One set of smooth pictures under every concept."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    sources = torch.nn.functional.interpolate(coarse, size=16, mode="bilinear") * 2 - 1
    return Pairs(sources[None], torch.stack([find_concept(concept).apply(sources) for concept in CONCEPTS]))


def starts(base: Translator, count: int) -> dict[str, torch.Tensor]:
    return concatenated([base.start_lora()] * count)


def only(whole: Pairs, concept: int) -> Pairs:
    return Pairs(whole.sources, whole.targets[[concept]])


def test_concepts_trained_in_one_forward_pass_are_each_trained_alone(base: Translator) -> None:
    given, seeds = pairs(), [1, 2, 3]
    together, lora = lora_training(base, given, starts(base, 3), seeds=seeds, settings=GENTLE)
    for _ in range(3):
        together.step()
    for concept in range(len(CONCEPTS)):
        alone, own = lora_training(base, only(given, concept), starts(base, 1), seeds=seeds[concept : concept + 1], settings=GENTLE)
        for _ in range(3):
            alone.step()
        for name, value in own.items():
            torch.testing.assert_close(lora[name][concept], value[0], atol=1e-5, rtol=0)
    moved = max((value - starts(base, 3)[name]).abs().max().item() for name, value in lora.items())
    assert moved > 1e-3
    assert not torch.equal(lora["down.0.lora_B"][0], lora["down.0.lora_B"][1])


def test_training_a_lora_lowers_its_held_out_error_and_leaves_the_base_alone(base: Translator) -> None:
    before = {name: value.clone() for name, value in base.generator.state_dict().items()}
    training, lora = lora_training(base, pairs(), starts(base, 3), settings=FAST)
    ended = train_loras(training, lora, pairs(seed=1), steps=40, check_every=20)
    for one in ended:
        assert one.curve_steps == [0, 20, 40]
        assert one.curve[-1] < 0.8 * one.curve[0]
        assert (one.steps, one.reached, one.diverged) == (40, False, False)
    assert all(torch.equal(value, before[name]) for name, value in base.generator.state_dict().items())
    assert not any(value.requires_grad for value in base.generator.parameters())


def test_a_scratch_training_learns_too_and_another_seed_is_another_one(base: Translator) -> None:
    one, other = (scratch_training(base, only(pairs(), 0), seed=seed, settings=Settings(batch=4, lr=3e-3, eps=1e-8)) for seed in (0, 1))
    held = only(pairs(seed=1), 0)
    first = one.errors(held).item()
    for _ in range(30):
        one.step()
    assert one.errors(held).item() < 0.9 * first
    assert other.errors(held).item() != pytest.approx(first, abs=1e-4)


def test_each_concept_ends_at_its_target_or_its_time_and_is_kept_as_it_was_then(base: Translator) -> None:
    held = pairs(seed=1)

    def run(**how: list[float | None]) -> list[Trained]:
        training, lora = lora_training(base, pairs(), starts(base, 3), settings=FAST)
        return train_loras(training, lora, held, steps=12, check_every=4, **how)

    free = run()
    target = free[1].curve[1]
    some = run(targets=[None, target, None], max_seconds=[None, None, 0.0])
    assert [one.steps for one in some] == [12, 4, 0]
    assert [one.reached for one in some] == [False, True, False]
    assert torch.equal(some[2].lora["up.1.lora_A"], base.start_lora()["up.1.lora_A"])
    torch.testing.assert_close(some[0].lora["up.1.lora_B"], free[0].lora["up.1.lora_B"])
    made = lora_training(base, only(pairs(), 1), concatenated([some[1].lora]))[0]
    assert made.errors(only(held, 1)).item() == pytest.approx(target, abs=1e-5)


def test_one_that_diverges_ends_alone(base: Translator) -> None:
    start = starts(base, 3)
    start["up.1.lora_B"][1] = torch.nan
    training, lora = lora_training(base, pairs(), start, settings=FAST)
    ended = train_loras(training, lora, pairs(seed=1), steps=4, check_every=2)
    assert [one.diverged for one in ended] == [False, True, False]
    assert ended[0].curve[-1] < ended[0].curve[0]


def test_errors_count_all_pixels_or_those_that_the_edit_changes() -> None:
    sources = torch.zeros(1, 1, 3, 4, 4)
    targets = sources.clone()
    targets[..., :2, :] = 1.0
    held = Pairs(sources, targets)
    assert absolute_errors(sources, held).item() == pytest.approx(0.25)
    assert absolute_errors(sources, held, changed_only=True).item() == pytest.approx(0.5)
    half = Pairs(((sources + 1) * 127.5).byte(), ((targets + 1) * 127.5).byte())
    assert absolute_errors(sources, half).item() == pytest.approx(0.25, abs=0.01)


def test_sources_and_targets_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="are not the same pairs"):
        Pairs(torch.zeros(2, 4, 3, 8, 8), torch.zeros(3, 4, 3, 8, 8))
