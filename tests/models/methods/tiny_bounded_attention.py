"""Bounded Attention on a random U-Net, small enough for any test."""

from __future__ import annotations

from typing import Any

from models.methods.bounded_attention import BoundedAttention, Request, Subject
from models.methods.bounded_settings import Settings
from tests.models.tiny_bases import tiny_unet_base

SETTINGS = Settings(
    num_inference_steps=5,
    guidance_steps=2,
    guidance_iterations=2,
    step_size=(2.0, 1.0),
    loss_threshold=0.0,
    refine_from=2,
    refine_every=2,
    kmeans_restarts=2,
)
LEFT, RIGHT = (0.0, 0.1, 0.5, 0.9), (0.5, 0.0, 1.0, 0.6)


def tiny_method(packed: bool | None = None, **options: Any) -> BoundedAttention:
    return BoundedAttention(tiny_unet_base(), SETTINGS.with_options(options), packed=packed)


def tiny_requests() -> list[Request]:
    """Two layouts of two, one of one, and a row without any, of another size."""
    star, circle = Subject(phrase="red star", box=LEFT), Subject(phrase="blue circle", box=RIGHT)
    prompt = "a red star and a blue circle"
    return [
        Request(prompt=prompt, subjects=[star, circle], seed=1),
        Request(prompt=prompt, subjects=[Subject(phrase="red star", box=RIGHT), Subject(phrase="blue circle", box=LEFT)], seed=2),
        Request(prompt="a dog on the left", subjects=[Subject(phrase="dog", box=LEFT)], seed=3, guidance_scale=1.0),
        Request(prompt="a cat", seed=4, height=24),
    ]
