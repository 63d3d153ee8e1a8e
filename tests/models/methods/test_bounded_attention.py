"""Bounded Attention as a whole on a random U-Net: equal where it must be, different where a setting says so, errors that help."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from models.methods.bounded_attention import BoundedAttention, OverlappingSubjects, Request, Result, Subject
from models.methods.bounded_ddim import AuthorsDDIM
from models.methods.bounded_guidance import NonFiniteLoss
from models.methods.bounded_layout import BadRegion
from models.methods.bounded_settings import Settings
from models.phrases import PhraseNotFound
from models.sampling import Request as Sampled
from models.sampling import sample
from tests.models.methods.tiny_bounded_attention import LEFT, RIGHT, SETTINGS, tiny_method, tiny_requests
from tests.models.tiny_bases import save, tiny_unet_base

ONE = tiny_requests()[:1]
NEAR = 1e-3  # of pixels in [-1, 1]; what the spec allows latents


def furthest(ones: list[Result], others: list[Result]) -> float:
    return max((a.image - b.image).abs().max().item() for a, b in zip(ones, others, strict=True))


def test_without_subjects_it_is_plain_sampling() -> None:
    requests = [replace(request, subjects=()) for request in tiny_requests()]
    plain = sample(
        tiny_unet_base(),
        [
            Sampled(
                prompt=r.prompt, seed=r.seed, steps=SETTINGS.num_inference_steps, guidance_scale=r.guidance_scale or 7.5, height=r.height
            )
            for r in requests
        ],
    )  # fmt: skip
    results = tiny_method()(requests)
    assert max((result.image - picture).abs().max().item() for result, picture in zip(results, plain, strict=True)) < 1e-5
    assert [(r.final_loss, r.guidance_iterations_used, r.refined_masks, r.token_indices) for r in results] == [(None, 0, None, [])] * 4


def test_guidance_on_the_conditional_half_is_guidance_on_both() -> None:
    assert furthest(tiny_method()(tiny_requests()), tiny_method(compat=["full_guidance"])(tiny_requests())) < NEAR


def test_packed_rows_are_masked_rows() -> None:
    assert furthest(tiny_method(packed=True)(tiny_requests()), tiny_method(packed=False)(tiny_requests())) < NEAR


@pytest.mark.parametrize(
    "options",
    [
        {"guidance_steps": 0},
        {"guidance_iterations": 1},
        {"step_size": (1.0, 1.0)},
        {"loss_threshold": 10.0},
        {"cross_loss_weight": 0.1},
        {"self_loss_weight": 5.0},
        {"self_mask": False},
        {"cross_mask": False},
        {"bounded_layers": {"loss": [10, 11], "mask": [10, 11]}},
        {"filter_words": ["red"]},
        {"guidance_scale": 3.0},
        {"num_inference_steps": 4},
    ],
    ids=str,
)
def test_every_setting_has_an_effect(options: dict[str, Any]) -> None:
    assert furthest(tiny_method()(ONE), tiny_method(**options)(ONE)) > 1e-4


def test_refinement_has_its_own_settings_and_reports_its_masks() -> None:
    (refined,), (plain,) = tiny_method()(ONE), tiny_method(mask_refinement=False)(ONE)
    assert plain.refined_masks is None
    assert refined.refined_masks is not None
    assert refined.refined_masks.shape == (2, 16, 16)
    assert refined.refined_masks.flatten(1).any(1).all()
    assert SETTINGS.with_options({"refine_from": 3, "refine_every": 4}).refines_at(7)
    assert [index for index in range(8) if SETTINGS.refines_at(index)] == [2, 4, 6]
    assert tiny_method(refine_from=9)(ONE)[0].refined_masks is None


def test_what_guidance_did_is_told() -> None:
    (result,) = tiny_method()(ONE)
    assert result.guidance_iterations_used == SETTINGS.guidance_steps * SETTINGS.guidance_iterations
    assert result.final_loss is not None
    assert 0 < result.final_loss < 2
    assert result.token_indices == [[2, 3], [6, 7]]
    assert tiny_method(loss_threshold=10.0)(ONE)[0].guidance_iterations_used == 0


def test_guidance_lowers_the_loss() -> None:
    one, many = (tiny_method(guidance_steps=1, guidance_iterations=n, step_size=(20.0, 20.0))(ONE)[0].final_loss for n in (1, 6))
    assert one is not None
    assert many is not None
    assert many < one


def test_boxes_and_the_masks_of_the_same_cells_make_the_same_picture() -> None:
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[:, :8] = True
    box, drawn = Subject(phrase="dog", box=(0, 0, 0.5, 1)), Subject(phrase="dog", mask=mask)
    method = tiny_method()
    a, b = (method([Request(prompt="a dog", seed=0, subjects=[subject])]) for subject in (box, drawn))
    assert furthest(a, b) == 0


def test_the_base_is_given_back_as_it_was_also_after_an_error() -> None:
    base = tiny_unet_base()
    before, timesteps = dict(base.unet.attn_processors), base.scheduler.timesteps.clone()
    method = BoundedAttention(base, SETTINGS)
    method(ONE)
    assert base.unet.attn_processors == before
    with pytest.raises(NonFiniteLoss):
        BoundedAttention(base, replace(SETTINGS, step_size=(float("inf"), 1.0)))(ONE)
    assert base.unet.attn_processors == before
    assert base.scheduler.timesteps.equal(timesteps)
    assert not any(parameter.requires_grad for parameter in base.unet.parameters())


PROMPT = "a red star and a blue circle"


@pytest.mark.parametrize(
    ("subjects", "error", "message"),
    [
        (
            [Subject(phrase="green star", box=LEFT)],
            PhraseNotFound,
            "'green star' does not stand in the prompt 'a red star and a blue circle'",
        ),
        ([Subject(phrase="red star")], ValueError, "'red star' has neither box nor mask"),
        ([Subject(phrase="red star", box=(0.5, 0, 0.4, 1))], BadRegion, "of 'red star' is none"),
        ([Subject(phrase="red star", mask=torch.zeros(16, 16))], BadRegion, "empty"),
        ([Subject(phrase="star", box=LEFT, token_indices=[40])], ValueError, "token 40 of the phrase 'star' lies beyond"),
    ],
)
def test_a_request_that_cannot_be_is_refused_by_name(subjects: list[Subject], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tiny_method()([Request(prompt=PROMPT, seed=0, subjects=subjects)])


def test_shared_words_and_cells_are_warned_of_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    words = [Subject(phrase="red star", box=LEFT), Subject(phrase="star", box=RIGHT)]
    cells = [Subject(phrase="red star", box=(0, 0, 0.7, 1)), Subject(phrase="blue circle", box=(0.3, 0, 1, 1))]
    for subjects, what in ((words, "share words"), (cells, "regions overlap")):
        request = Request(prompt=PROMPT, seed=0, subjects=subjects)
        with pytest.raises(OverlappingSubjects, match=what):
            tiny_method(overlap="fail")([request])
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            tiny_method(guidance_steps=0, mask_refinement=False)([request])
        assert what in caplog.text


def test_token_indices_stand_in_place_of_the_phrase() -> None:
    given = [Subject(phrase="star", box=LEFT, token_indices=[2, 3]), Subject(phrase="circle", box=RIGHT, token_indices=[6, 7])]
    assert furthest(tiny_method()(ONE), tiny_method()([replace(ONE[0], subjects=given)])) == 0


def test_settings_know_their_names_and_limits() -> None:
    with pytest.raises(ValueError, match="no setting 'guidance'"):
        Settings().with_options({"guidance": 1})
    with pytest.raises(ValueError, match="no compat 'exact'; it knows full_guidance, authors_ddim, raw_rounding"):
        Settings().with_compat(["exact"])
    with pytest.raises(ValueError, match="refine_every is 0; the least is 1"):
        Settings(refine_every=0)
    with pytest.raises(ValueError, match="choose allow or fail"):
        Settings().with_options({"overlap": "maybe"})
    compat = Settings().with_options({"step_size": [18, 5], "compat": ["full_guidance", "authors_ddim", "raw_rounding"]})
    assert (compat.step_size, compat.guidance_half, compat.ddim, compat.min_cells) == ((18, 5), "both", "authors", 0)


def test_a_loaded_method_takes_what_the_card_says_and_then_what_is_asked(tmp_path: Path) -> None:
    folder = save(tiny_unet_base(), tmp_path)
    (folder / "card.json").write_text(
        json.dumps({"method": "text_to_image", "tier": "lab", "settings": {"step_size": [3, 1], "guidance_steps": 4}})
    )
    method = BoundedAttention.load({"folder": folder}, settings={"guidance_steps": 2, "refine_from": None}, device="cpu")
    assert (method.settings.step_size, method.settings.guidance_steps, method.settings.refine_from) == ((3, 1), 2, 15)


def stepped(scheduler: DDIMScheduler) -> torch.Tensor:
    scheduler.set_timesteps(10)
    z = torch.ones(1, 1, 2, 2)
    for timestep in scheduler.timesteps:
        z = scheduler.step(0.5 * z, timestep, z, return_dict=False)[0]  # pyright: ignore[reportArgumentType]
    return z


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_authors_step_differs_only_where_the_next_timestep_is_zero(kind: str) -> None:
    options: dict[str, Any] = {"beta_schedule": "scaled_linear", "clip_sample": False, "prediction_type": kind}
    same = {**options, "set_alpha_to_one": False}
    assert torch.allclose(stepped(AuthorsDDIM(**same)), stepped(DDIMScheduler(**same)), atol=1e-5)
    other = {**options, "set_alpha_to_one": True}
    assert not torch.allclose(stepped(AuthorsDDIM(**other)), stepped(DDIMScheduler(**other)), atol=1e-5)


def test_the_authors_step_is_what_compat_takes() -> None:
    assert isinstance(tiny_method(compat=["authors_ddim"]).scheduler, AuthorsDDIM)
    assert furthest(tiny_method()(ONE), tiny_method(compat=["authors_ddim"])(ONE)) < NEAR
