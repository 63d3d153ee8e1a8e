"""weights2weights on a random U-Net and a random space, small enough for any test."""

from __future__ import annotations

from typing import Any

from models.methods.weights2weights import Request, Settings, Weights2Weights
from models.methods.weights2weights_directions import Edit
from models.methods.weights2weights_files import Start
from tests.models.methods.tiny_space import tiny_space, tiny_weights
from tests.models.tiny_bases import tiny_unet_base


def tiny_method(scheduler: object | None = None, **options: Any) -> Weights2Weights:
    base = tiny_unet_base(scheduler)
    return Weights2Weights(base, tiny_space(base), Settings(num_inference_steps=3, negative_prompt="").with_options(options))


def tiny_person(number: int) -> Start:
    """Someone as weights; not one of those that the space was made of."""
    return Start(weights_n=tiny_weights(tiny_space(tiny_unet_base()).layout, models=number + 1, seed=7)[number])


def tiny_requests() -> list[Request]:
    """Someone as weights, someone edited late, someone as coefficients, and someone of another size."""
    space = tiny_space(tiny_unet_base())
    p_k = space.proj_std_k
    return [
        Request(prompt="a dog", seed=1, start=tiny_person(0)),
        Request(prompt="a dog", seed=1, start=tiny_person(1), edits=[Edit("tall", 3.0)], start_timestep=400),
        Request(prompt="a red cat", seed=2, start=Start(coefficients_k=p_k[:4])),
        Request(prompt="a cat", seed=3, start=Start(coefficients_k=-p_k), edits=[Edit("round", -2.0)], height=24, negative_prompt="red"),
    ]
