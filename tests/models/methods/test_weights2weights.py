"""Every row its own adapter in one batch, edits early and late, and a base that never knows (spec weights2weights, section 6)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from torch.testing import assert_close

from models.catalog import model_revision
from models.lora_files import ForeignBase
from models.methods.weights2weights import Request, Settings, Weights2Weights
from models.methods.weights2weights_directions import Edit, UnknownAttribute, edit_direction
from models.methods.weights2weights_files import Start
from models.methods.weights2weights_layout import Layout, LayoutMismatch
from models.sampling import Request as Sampled
from models.sampling import sample
from tests.models.methods.tiny_space import tiny_space
from tests.models.methods.tiny_weights2weights import tiny_method, tiny_person, tiny_requests
from tests.models.tiny_bases import save, tiny_unet_base


@pytest.fixture(scope="module")
def method() -> Weights2Weights:
    return tiny_method()


def image(method: Weights2Weights, request: Request) -> torch.Tensor:
    return method([request])[0].image


def test_every_row_of_a_mixed_batch_is_what_peft_makes_of_its_adapter_alone(method: Weights2Weights) -> None:
    requests = [replace(request, start_timestep=None) for request in tiny_requests()]
    _, weights_Bn = method.weights(requests)
    for request, w_n, result in zip(requests, weights_Bn, method(requests), strict=True):
        base = tiny_unet_base()
        plain = Sampled(
            prompt=request.prompt, negative_prompt=request.negative_prompt or "", seed=request.seed, steps=3,
            guidance_scale=3.0, height=request.height,
        )  # fmt: skip
        without = sample(base, [plain])[0]
        tensors = {f"unet.{key.removeprefix('base_model.model.')}": t for key, t in method.space.layout.unflatten(w_n).items()}
        base.unet.load_lora_adapter(
            tensors, prefix="unet", metadata={"unet.r": 1, "unet.lora_alpha": 27, "unet.target_modules": ["to_q", "to_v"]}
        )
        assert_close(result.image, sample(base, [plain])[0], atol=1e-5, rtol=0)
        assert (result.image - without).abs().max() > 1e-2


def test_an_edit_that_begins_below_every_timestep_changes_nothing_and_one_above_all_is_an_edit_throughout(method: Weights2Weights) -> None:
    plain = Request(prompt="a dog", seed=1, start=tiny_person(0))
    edited = replace(plain, edits=[Edit("tall", 4.0)])
    assert torch.equal(image(method, replace(edited, start_timestep=0)), image(method, plain))
    assert torch.equal(image(method, replace(edited, start_timestep=1000)), image(method, edited))
    late = image(method, replace(edited, start_timestep=400))
    assert (late - image(method, plain)).abs().max() > 1e-4
    assert (late - image(method, edited)).abs().max() > 1e-4


def test_an_edit_of_strength_0_is_none(method: Weights2Weights) -> None:
    plain = Request(prompt="a dog", seed=1, start=tiny_person(0))
    assert torch.equal(image(method, replace(plain, edits=[Edit("tall", 0.0)])), image(method, plain))


def test_what_lies_outside_the_space_survives_an_edit(method: Weights2Weights) -> None:
    person = tiny_person(2)
    assert person.weights_n is not None
    start_Bn, edited_Bn = method.weights([Request(prompt="", seed=0, start=person, edits=[Edit("round", 2.0)])])
    assert torch.equal(start_Bn[0], person.weights_n)
    assert_close(edited_Bn - start_Bn, method.space.shift(2 * edit_direction(method.space, "round")[None]), atol=1e-6, rtol=0)
    assert (start_Bn - method.space.unproject(method.space.project(start_Bn))).abs().max() > 1e-3


def test_coefficients_and_the_weights_that_they_stand_for_draw_the_same_person(method: Weights2Weights) -> None:
    p_k = method.space.proj_std_k
    by_coefficients = Request(prompt="a cat", seed=4, start=Start(coefficients_k=p_k), edits=[Edit("tall", 1.0)])
    by_weights = replace(by_coefficients, start=Start(weights_n=method.space.unproject(p_k[None])[0]))
    assert_close(image(method, by_coefficients), image(method, by_weights), atol=1e-5, rtol=0)


def test_the_mean_model_is_everyone_s_zero(method: Weights2Weights) -> None:
    start_Bn, _ = method.weights([Request(prompt="", seed=0, start=Start(coefficients_k=torch.zeros(2)))])
    assert torch.equal(start_Bn[0], method.space.mean_n)


def test_the_authors_ways_of_editing_are_options_that_change_the_result() -> None:
    request = Request(prompt="a dog", seed=1, start=tiny_person(0), edits=[Edit("tall", 2.0)])
    ours = image(tiny_method(), request)
    for option in ({"compat": ["sequential_debias", "raw_directions"]}, {"compat": ["raw_directions"]}, {"debias": "none"}):
        assert not torch.equal(image(tiny_method(**option), request), ours)
    with pytest.raises(ValueError, match="no compat 'abs_std'; it knows sequential_debias, raw_directions"):
        Settings().with_options({"compat": ["abs_std"]})
    with pytest.raises(ValueError, match="no setting 'k'; it has num_inference_steps"):
        Settings().with_options({"k": 3})


def test_the_base_is_given_back_untouched_also_after_an_exception(method: Weights2Weights) -> None:
    plain = [Sampled(prompt="a dog", seed=1, steps=2)]
    before = sample(method.base, plain)[0]
    method(tiny_requests())
    assert torch.equal(sample(method.base, plain)[0], before)
    decode, method.base.decode = method.base.decode, lambda _latents: 1 / 0  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ZeroDivisionError):
        method(tiny_requests())
    method.base.decode = decode  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.equal(sample(method.base, plain)[0], before)


def test_a_scheduler_that_remembers_and_calls_once_more_than_steps_is_served() -> None:
    scheduler = PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1)
    method = tiny_method(scheduler, num_inference_steps=6)
    together = method(tiny_requests())
    for request, result in zip(tiny_requests(), together, strict=True):
        assert_close(image(method, request), result.image, atol=1e-5, rtol=0)


def test_a_base_in_half_precision_draws_nearly_the_same() -> None:
    full, half = tiny_method(), tiny_method()
    half.base.to("cpu", torch.bfloat16)
    for a, b in zip(full(tiny_requests()), half(tiny_requests()), strict=True):
        assert b.image.dtype == torch.float32
        assert (a.image - b.image).abs().mean() < 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": Start()}, "give one of them"),
        ({"start": Start(weights_n=torch.zeros(5))}, r"\(5,\) weights were given"),
        ({"start": Start(coefficients_k=torch.zeros(11))}, "11 coefficients were given; this space has 10"),
        ({"start": Start(coefficients_k=torch.tensor([float("nan")]))}, "not all finite"),
        ({"edits": [Edit("small", 1.0)]}, "it has round, tall"),
        ({"height": 17}, "must be multiples of 4"),
    ],
)
def test_a_request_that_cannot_be_is_refused_with_its_reason(method: Weights2Weights, change: dict[str, object], message: str) -> None:
    request = replace(Request(prompt="a dog", seed=1, start=tiny_person(0)), **change)
    with pytest.raises((ValueError, LayoutMismatch, UnknownAttribute), match=message):
        method([request])


def test_it_loads_from_folders_and_a_space_of_another_base_is_refused(tmp_path: Path) -> None:
    base = tiny_unet_base()
    sources = {"base": save(base, tmp_path / "base"), "checkpoint": tmp_path / "space"}
    digest = model_revision(tmp_path / "base" / "unet")
    space = replace(tiny_space(base), layout=Layout.of(base.unet, base_hash=digest))
    space.save(sources["checkpoint"], dtype=torch.float32)
    loaded = Weights2Weights.load(sources, settings={"num_inference_steps": 3, "negative_prompt": "", "debias": None}, device="cpu")
    request = tiny_requests()[2]
    assert torch.equal(image(loaded, request), image(tiny_method(), request))
    assert Weights2Weights.load(sources, settings={"n_components": 4}, device="cpu").space.components == 4
    replace(space, layout=replace(space.layout, base_hash="another")).save(sources["checkpoint"])
    with pytest.raises(ForeignBase, match="was made for the base another"):
        Weights2Weights.load(sources, device="cpu")
