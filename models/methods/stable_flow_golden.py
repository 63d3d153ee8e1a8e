"""Equality with the authors' transformer, inversion and schedule, from a file of its weights, inputs and results (spec section 6)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from safetensors import safe_open
from torch import Tensor

from models.checkpoints import load_strict
from models.methods.flow_layers import Rows, layer_number, shared_layers, skipped_layers
from models.methods.flow_schedule import denoise, invert, sigmas
from models.proofs import Comparison, GoldenFileError, check_names, compare, part, read_golden

TOLERANCES = {"sigmas": 1e-7, "inversion_trajectory": 1e-4, "redenoised": 1e-4, "plain": 1e-3, "injected": 1e-3, "bypassed": 1e-3}
INPUTS = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "guidance", "img_ids")
FACTS = ("config", "inject_multimodal", "inject_single", "bypass_multimodal", "bypass_single", "steps", "mu", "nudge", "text_tokens")


@torch.inference_mode()
def prove_golden(file: Path) -> list[Comparison]:
    """Compare every stored result. Raises GoldenFileError or CheckpointMismatch if the file is not of this layout."""
    tensors = read_golden(file)
    facts = _facts(file)
    outside = [name for name in tensors if not name.startswith("weights/")]
    check_names(file, outside, [*(f"inputs/{name}" for name in INPUTS), *(f"outputs/{name}" for name in TOLERANCES)])
    try:
        transformer = FluxTransformer2DModel(**facts["config"]).eval()
    except (TypeError, ValueError) as error:
        raise GoldenFileError(f"{file}: its config is not that of a FLUX transformer ({error}).") from error
    load_strict(transformer, part(tensors, "weights/"), str(file))
    computed = _outputs(transformer, part(tensors, "inputs/"), facts)
    stored = part(tensors, "outputs/")
    return [compare(name, computed[name], stored[name], tolerance) for name, tolerance in TOLERANCES.items()]


def _outputs(transformer: FluxTransformer2DModel, inputs: dict[str, Tensor], facts: dict[str, Any]) -> dict[str, Tensor]:
    rows, text_tokens = inputs["hidden_states"].shape[0], facts["text_tokens"]
    if inputs["encoder_hidden_states"].shape[1] != text_tokens:
        raise GoldenFileError(f"text_tokens is {text_tokens}; the texts have {inputs['encoder_hidden_states'].shape[1]}.")

    def velocity_of(chosen: slice, guidance: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        def velocity(x_BNC: Tensor, timestep_B: Tensor) -> Tensor:
            return transformer(
                hidden_states=x_BNC,
                encoder_hidden_states=inputs["encoder_hidden_states"][chosen],
                pooled_projections=inputs["pooled_projections"][chosen],
                timestep=timestep_B,
                guidance=guidance,
                img_ids=inputs["img_ids"],
                txt_ids=torch.zeros(text_tokens, 3),
                return_dict=False,
            )[0]

        return velocity

    everyone, first = velocity_of(slice(None), inputs["guidance"]), velocity_of(slice(1), torch.ones(1))
    x_BNC, timestep_B = inputs["hidden_states"], inputs["timestep"]
    outputs = {"plain": everyone(x_BNC, timestep_B)}
    injected = layer_number(transformer, double=facts["inject_multimodal"], single=facts["inject_single"])
    with shared_layers(transformer, injected, Rows([0] * rows, text_tokens)):
        outputs["injected"] = everyone(x_BNC, timestep_B)
    with skipped_layers(transformer, layer_number(transformer, double=facts["bypass_multimodal"], single=facts["bypass_single"])):
        outputs["bypassed"] = everyone(x_BNC, timestep_B)

    schedule = sigmas(facts["steps"], facts["mu"])
    levels = invert(lambda x, sigma: first(x, torch.full((1,), sigma)), facts["nudge"] * x_BNC[:1], schedule)
    outputs["sigmas"] = torch.tensor(schedule)
    outputs["inversion_trajectory"] = torch.cat(levels[-2::-1])  # the authors' order: the cleanest first
    outputs["redenoised"] = denoise(lambda x, sigma: first(x, torch.full((1,), sigma)), levels[0], schedule)
    return outputs


def _facts(file: Path) -> dict[str, Any]:
    with safe_open(file, "pt") as stream:
        metadata = stream.metadata() or {}
    missing = sorted(set(FACTS) - metadata.keys())
    if missing:
        raise GoldenFileError(f"{file} is no golden file of this method: its metadata lacks {', '.join(missing)}.")
    try:
        return {name: json.loads(metadata[name]) for name in FACTS}
    except ValueError as error:
        raise GoldenFileError(f"{file}: its metadata is not JSON ({error}).") from error
