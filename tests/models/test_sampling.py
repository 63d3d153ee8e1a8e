"""Sampling: equal to diffusers' own pipelines, and a row alone is the row in any batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from torch import Tensor

from models.bases import FlowBase, UNetBase
from models.sampling import Request, Step, denoise, encode_prompts, noise, prompts_of, sample
from tests.models.tiny_bases import tiny_flow_base, tiny_unet_base

MIXED = [
    Request(prompt="a red star", seed=1, steps=4, guidance_scale=5.0),
    Request(prompt="a blue circle on the left", seed=2, steps=4, guidance_scale=1.0),
    Request(prompt="a small dog", negative_prompt="red", seed=3, steps=3, guidance_scale=2.5),
    Request(prompt="a red star", seed=4, steps=4, guidance_scale=5.0, height=24, width=16),
]


def by_diffusers(base: UNetBase | FlowBase, request: Request) -> Tensor:
    """The picture that diffusers' own pipeline makes, (3,H,W) in [-1, 1]."""
    height, width = request.height or base.image_size, request.width or base.image_size
    shared = {
        "num_inference_steps": request.steps,
        "generator": torch.Generator().manual_seed(request.seed),
        "height": height,
        "width": width,
    }
    if isinstance(base, UNetBase):
        pipeline = StableDiffusionPipeline(
            base.vae, base.text_encoder, base.tokenizer, base.unet, base.scheduler, None, None, requires_safety_checker=False
        )  # fmt: skip
        prompts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt, "guidance_scale": request.guidance_scale}
    else:
        pipeline = FluxPipeline(
            base.scheduler, base.vae, base.text_encoder, base.tokenizer, base.text_encoder_2, base.tokenizer_2, base.transformer
        )
        if base.transformer.config["guidance_embeds"]:
            guidance = {"guidance_scale": request.guidance_scale}
        else:
            guidance = {"true_cfg_scale": request.guidance_scale}
        text, negative = base.encode_text([request.prompt]), base.encode_text([request.negative_prompt])
        if base.text_encoder_2 is None:
            prompts = {"prompt_embeds": text.states, "pooled_prompt_embeds": text.pooled, **guidance}
            prompts |= {"negative_prompt_embeds": negative.states, "negative_pooled_prompt_embeds": negative.pooled}
        else:
            prompts = {
                "prompt": request.prompt,
                "negative_prompt": request.negative_prompt,
                "max_sequence_length": base.longest_text,
                **guidance,
            }
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(**prompts, **shared, output_type="pt").images[0] * 2 - 1


def furthest(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))


BASES = {
    "ddim": lambda: tiny_unet_base(),
    "dpm-solver": lambda: tiny_unet_base(DPMSolverMultistepScheduler(beta_schedule="scaled_linear", steps_offset=1)),
    "euler ancestral": lambda: tiny_unet_base(EulerAncestralDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1)),
    "heun": lambda: tiny_unet_base(HeunDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1)),
    "flow": lambda: tiny_flow_base(),
    "flow, shifted by size, T5": lambda: tiny_flow_base(t5=True, shifting=True),
    "flow, distilled": lambda: tiny_flow_base(t5=True, guidance_embeds=True, shifting=True),
}


@pytest.fixture(params=list(BASES))
def base(request: pytest.FixtureRequest) -> UNetBase | FlowBase:
    return BASES[request.param]()


def test_a_mixed_batch_gives_the_pictures_of_diffusers_own_pipeline(base: UNetBase | FlowBase) -> None:
    ours = sample(base, MIXED)
    theirs = [by_diffusers(base, request) for request in MIXED]
    assert furthest(ours, theirs) < 1e-4
    assert min(picture.std().item() for picture in ours) > 0.01  # else anything would be equal


def test_a_row_alone_is_the_row_in_a_batch(base: UNetBase | FlowBase) -> None:
    alone = [sample(base, [request])[0] for request in MIXED]
    assert furthest(sample(base, MIXED), alone) < 1e-5
    assert furthest(sample(base, MIXED[::-1])[::-1], alone) < 1e-5


def test_what_a_row_asks_for_changes_its_picture(base: UNetBase | FlowBase) -> None:
    first = sample(base, MIXED[2:3])
    for change in ({"prompt": "a cat"}, {"seed": 9}, {"steps": 2}, {"guidance_scale": 4.0}):
        assert furthest(first, sample(base, [replace(MIXED[2], **change)])) > 1e-4, change


def test_rows_of_different_step_counts_share_calls_and_guidance_of_one_needs_no_second_half() -> None:
    base, batches = tiny_unet_base(), []
    base.unet.register_forward_pre_hook(lambda _module, args: batches.append(args[0].shape[0]))
    sample(base, MIXED[:3])
    assert batches == [5, 5, 5, 3]  # guided rows twice; the row of three steps is gone in the fourth call


def test_a_prompt_is_encoded_once_a_call() -> None:
    base, texts = tiny_unet_base(), []
    base.text_encoder.register_forward_pre_hook(lambda _m, _args, kw: texts.append(kw["input_ids"].shape[0]), with_kwargs=True)
    sample(base, MIXED)
    assert texts == [5]  # three prompts, "" and "red"


def test_what_stands_before_a_step_may_change_the_latents() -> None:
    base = tiny_unet_base()
    text, at = encode_prompts(base, MIXED[:3])
    conditional, unconditional = (text.take([at[prompt] for prompt in prompts]) for prompts in prompts_of(MIXED[:3]))
    seen: list[Step] = []

    def shifted(step: Step) -> Tensor:
        seen.append(step)
        return step.latents + (1.0 if step.index == 1 else 0.0)

    plain = denoise(base, MIXED[:3], conditional, unconditional)
    same = denoise(base, MIXED[:3], conditional, unconditional, before_step=lambda step: step.latents)
    other = denoise(base, MIXED[:3], conditional, unconditional, before_step=shifted)
    assert torch.equal(plain, same)
    assert (plain - other).abs().amax((1, 2, 3)).min() > 0.01
    assert [(step.index, step.rows, step.unconditional) for step in seen] == [
        *((index, [0, 1, 2], [0, 2]) for index in range(3)),
        (3, [0, 1], [0]),
    ]


def test_sampling_leaves_the_scheduler_as_it_was() -> None:
    base = tiny_unet_base(HeunDiscreteScheduler())
    before = base.scheduler.timesteps.clone()
    sample(base, MIXED[:2])
    assert torch.equal(base.scheduler.timesteps, before)


def test_noise_comes_from_its_seed_alone() -> None:
    first = noise((4, 8, 8), seed=7)
    torch.manual_seed(99)
    assert torch.equal(first, noise((4, 8, 8), seed=7))
    assert not torch.equal(first, noise((4, 8, 8), seed=8))


@pytest.mark.parametrize("size", [(18, 16), (16, 2), (0, -4)])
def test_a_size_that_cannot_be_made_is_refused_with_what_can_be(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="must be multiples of 4"):
        sample(tiny_unet_base(), [Request(prompt="a dog", seed=0, height=size[0] or 3, width=size[1])])


def test_no_steps_are_refused_and_no_requests_have_no_pictures() -> None:
    with pytest.raises(ValueError, match="steps is 0"):
        Request(prompt="a dog", seed=0, steps=0)
    assert sample(tiny_unet_base(), []) == []
