"""Equality with the authors' attention code, from a file of a tiny U-Net's weights, inputs and intermediate results (spec section 6).

Metadata of the file says what was set; cluster labels stand in for KMeans. Text is given encoded, so no text tower takes part.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.bases import Text
from models.checkpoints import load_strict
from models.methods.bounded_composition import Composition
from models.methods.bounded_layers import attached, attention_layers, layer_table
from models.methods.bounded_layout import Bounds, Layout
from models.methods.bounded_settings import Settings
from models.proofs import Comparison, GoldenFileError, check_names, compare, part, read_golden
from models.sampling import Request, Step, denoise_by_unet

LOSSES, LATENTS, MASKS = 1e-5, 1e-3, 0.0
"""Tolerances; latents reach 35.6."""
INPUTS = ("latents", "context", "timesteps", "cluster_labels")
OUTPUTS = ("losses", "latents_after_guidance", "latents_after_step", "refined_masks")
FACTS = (
    "config", "scheduler", "boxes", "subject_tokens", "filter_tokens", "leading_tokens", "eos_token", "loss_layers", "mask_layers", "steps",
    "guided_steps", "iterations_per_step", "step_size", "loss_threshold", "refine_from_step", "refine_every", "cfg_scale",
)  # fmt: skip


@torch.no_grad()
def prove_golden(file: Path) -> list[Comparison]:
    """Compare every stored tensor, with guidance on the conditional half and on both. Raises GoldenFileError if the file is not of this layout."""
    tensors, facts = read_golden(file), read_facts(file)
    names = [*(f"inputs/{name}" for name in INPUTS), *(f"outputs/{name}" for name in OUTPUTS)]
    check_names(file, [name for name in tensors if not name.startswith("weights/")], names)
    unet = UNet2DConditionModel(**facts["config"]).eval().requires_grad_(False)
    load_strict(unet, part(tensors, "weights/"), str(file))
    stored, comparisons = part(tensors, "outputs/"), []
    for half in ("conditional", "both"):
        computed = compose(unet, facts, part(tensors, "inputs/"), half)
        for name in OUTPUTS:
            tolerance = {"losses": LOSSES, "refined_masks": MASKS}.get(name, LATENTS)
            comparisons.append(compare(f"{name} (guidance on: {half})", computed[name], stored[name], tolerance))
    return comparisons


def read_facts(file: Path) -> dict[str, Any]:
    """The file's metadata, read as JSON. Raises GoldenFileError for one that lacks any of FACTS."""
    try:
        with safe_open(file, framework="pt") as opened:
            facts = {name: json.loads(value) for name, value in (opened.metadata() or {}).items()}
    except (SafetensorError, ValueError) as error:
        raise GoldenFileError(f"{file} has metadata that cannot be read ({error}).") from error
    if missing := [name for name in FACTS if name not in facts]:
        raise GoldenFileError(f"{file} is no golden file of bounded_attention: its metadata lacks {', '.join(missing)}.")
    return facts


def compose(unet: UNet2DConditionModel, facts: dict[str, Any], inputs: dict[str, Tensor], half: str) -> dict[str, Tensor]:
    """Run the file's inputs and return what it stores under outputs/, by name."""
    settings = Settings(
        num_inference_steps=facts["steps"],
        guidance_scale=facts["cfg_scale"],
        guidance_steps=facts["guided_steps"],
        guidance_iterations=facts["iterations_per_step"],
        loss_threshold=facts["loss_threshold"],
        refine_from=facts["refine_from_step"],
        refine_every=facts["refine_every"],
    ).with_options({"step_size": facts["step_size"], "guidance_half": half})
    layout = Layout(
        [tuple(box) for box in facts["boxes"]], facts["subject_tokens"], facts["leading_tokens"], facts["filter_tokens"], facts["eos_token"]
    )
    table = layer_table(attention_layers(unet), {"loss": facts["loss_layers"], "mask": facts["mask_layers"]})
    scheduler = DDIMScheduler(**{name: value for name, value in facts["scheduler"].items() if name != "kind"})
    scheduler.set_timesteps(facts["steps"])
    if scheduler.timesteps.tolist() != inputs["timesteps"].tolist():
        raise GoldenFileError(f"the file's timesteps are {inputs['timesteps'].tolist()}; its scheduler has {scheduler.timesteps.tolist()}.")
    labels = iter(inputs["cluster_labels"][:, 0])
    bounds = Bounds(layout)
    unconditional, conditional = (Text(states[None]) for states in inputs["context"])
    composition = Composition(
        unet, settings, table, [bounds], conditional, unconditional, [lambda _features: next(labels)], steps=facts["steps"]
    )
    before: list[Tensor] = []
    guided: list[Tensor] = []
    masks: list[Tensor] = []

    def recorded(step: Step) -> Tensor:
        before.append(step.latents.clone())
        guided.append(composition(step))
        if settings.refines_at(step.index):
            assert bounds.refined is not None
            masks.append(bounds.refined[None])
        return guided[-1]

    request = Request(prompt="", seed=0, steps=facts["steps"], guidance_scale=facts["cfg_scale"])
    with attached(unet, table.layers, composition.bounding):
        last = denoise_by_unet(unet, scheduler, [request], conditional, unconditional, inputs["latents"], before_step=recorded)
    return {
        "losses": torch.tensor(composition.guided[0].losses),
        "latents_after_guidance": torch.stack(guided),
        "latents_after_step": torch.stack([*before[1:], last]),
        "refined_masks": torch.stack(masks),
    }
