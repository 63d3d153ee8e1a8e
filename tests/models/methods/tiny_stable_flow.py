"""Stable Flow on a random base, and requests to it."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from models.bases import FlowBase
from models.methods.stable_flow import Request, Settings, StableFlow
from tests.models.tiny_bases import tiny_flow_base

SIDE = 16
LAYERS = (0, 2)  # the double block and the last single one


def tiny_method(base: FlowBase | None = None, **settings: Any) -> StableFlow:
    chosen = {"vital_layers": LAYERS, "num_inference_steps": 4, "inversion_steps": 4, "max_edits_per_pass": 3, **settings}
    return StableFlow(base or tiny_flow_base(guidance_embeds=True), Settings(**chosen), backend="sdpa")


def generated(edit: str, source: str = "a red star", seed: int = 1, **fields: Any) -> Request:
    return Request(source_prompt=source, edit_prompt=edit, source_seed=seed, **fields)


def real(edit: str, source: str = "a red star", seed: int = 1, side: int = SIDE, **fields: Any) -> Request:
    image = torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    key = hashlib.sha256(image.numpy().tobytes()).hexdigest()
    return Request(source_prompt=source, edit_prompt=edit, image=image, image_key=key, **fields)


def tiny_requests() -> list[Request]:
    """Two edits of one generated source, one of another, one of a real picture."""
    return [
        generated("a blue star"),
        generated("a green circle", guidance_scale=2.0),
        generated("a blue square and a dog", source="a red cat", seed=2),
        real("a blue star"),
    ]
