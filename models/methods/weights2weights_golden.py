"""Equality with the authors' adapters, from a file of a tiny U-Net's weights, a space, and outputs without and with a person (spec section 6)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.checkpoints import load_strict
from models.low_rank import attached
from models.methods.weights2weights_layout import Layout
from models.methods.weights2weights_space import Space
from models.proofs import Comparison, GoldenFileError, check_names, compare, part, read_golden

TOLERANCE = 1e-5
INPUTS, SPACE, OUTPUTS = ("latents", "timestep", "context"), ("V", "mean", "std", "proj"), ("base", "with_identity")
FACTS = ("config", "targets", "rank", "alpha", "order")
ORDER = "sorted PEFT keys"


@torch.no_grad()
def prove_golden(file: Path) -> list[Comparison]:
    """Compare the U-Net's outputs without an adapter and with the space's person. Raises GoldenFileError if the file is not of this layout."""
    tensors, facts = read_golden(file), read_facts(file)
    names = [
        f"{group}/{name}" for group, group_names in (("inputs", INPUTS), ("space", SPACE), ("outputs", OUTPUTS)) for name in group_names
    ]
    check_names(file, [name for name in tensors if not name.startswith("weights/")], names)
    unet = UNet2DConditionModel(**json.loads(facts["config"])).eval().requires_grad_(False)
    load_strict(unet, part(tensors, "weights/"), str(file))
    layout = Layout.of(unet, targets=json.loads(facts["targets"]), rank=int(facts["rank"]), alpha=float(facts["alpha"]))
    space_of = part(tensors, "space/")
    k = space_of["V"].shape[1]
    space = Space(layout, space_of["mean"], space_of["std"], space_of["V"], torch.zeros(k), torch.ones(k))
    given = part(tensors, "inputs/")
    rows_B = torch.zeros(len(given["latents"]), dtype=torch.long)
    outputs = {"base": _predict(unet, given)}
    with attached(unet, layout.adapters(space.unproject(space_of["proj"])), rows_B):
        outputs["with_identity"] = _predict(unet, given)
    return [compare(name, outputs[name], tensors[f"outputs/{name}"], TOLERANCE) for name in OUTPUTS]


def read_facts(file: Path) -> dict[str, str]:
    """The file's metadata. Raises GoldenFileError for one that lacks any of FACTS, or whose weights are in another order."""
    try:
        with safe_open(file, framework="pt") as opened:
            facts: dict[str, str] = dict(opened.metadata() or {})
    except SafetensorError as error:
        raise GoldenFileError(f"{file} has metadata that cannot be read ({error}).") from error
    if missing := [name for name in FACTS if name not in facts]:
        raise GoldenFileError(f"{file} is no golden file of weights2weights: its metadata lacks {', '.join(missing)}.")
    if facts["order"] != ORDER:
        raise GoldenFileError(f"{file} has its weights in the order of {facts['order']}; this method's is that of the {ORDER}.")
    return facts


def _predict(unet: Any, given: dict[str, Tensor]) -> Tensor:
    return unet(given["latents"], given["timestep"], encoder_hidden_states=given["context"], return_dict=False)[0]
