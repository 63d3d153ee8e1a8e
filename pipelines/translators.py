"""The models of jobs about translators: a weight denoiser and the base translator that it belongs to, found without loading either."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from models.catalog import ModelNotFound, read_card
from pipelines.model_source import base_beside, folder_of, named_parts, of_parts
from pipelines.pipeline import Accept, Context, Model

METHOD = "neural_weights"


def resolve_denoiser(model: str | Mapping[str, str], accept: Accept) -> Model:
    """A lab denoiser by name or folder, whose card names its base; or {method: neural_weights, base: translator, checkpoint: denoiser}.

    `sources` are `base` and `checkpoint`, settings `image_size`. Raises ModelNotFound where one of them is missing, is something else, or
    where the denoiser was made for another base.
    """
    if isinstance(model, str):
        folder = folder_of(model)
        name, tier = read_card(folder).name, read_card(folder).tier
        parts = {"base": base_beside(folder, "lab/translator", "card.json"), "checkpoint": folder}
    else:
        parts = named_parts(model, METHOD, "weights of mode initialize are made by", "a weight denoiser")
        name, tier = f"{METHOD} ({model['checkpoint']})", "full"
    checkpoint = parts["checkpoint"]
    card = read_card(parts["base"])
    layout = checkpoint / "layout.json"
    if not layout.is_file():
        what = read_card(checkpoint).method
        raise ModelNotFound(
            f"model: {checkpoint} is a model for {what}, no weight denoiser (it has no layout.json); name lab/weight-denoiser"
        )
    made_for, is_hash = json.loads(layout.read_text()).get("base_hash", ""), card.facts.get("base_hash", "")
    if made_for != is_hash:
        raise ModelNotFound(
            f"model: the weight denoiser {checkpoint.name} was made for the base {made_for[:12]}, {parts['base'].name} is {is_hash[:12]}. "
            "Name the translator that belongs to it, or train a denoiser for this one: calotype train weight-denoiser"
        )
    return of_parts(name, METHOD, tier, parts, {"image_size": int(card.facts["image_size"])})


def resolve_translator(model: str | Mapping[str, str], accept: Accept) -> Model:
    """A base translator, as lab/translator or {method: neural_weights, base: folder}; or a weight denoiser with its base, for generated starts.

    `sources` are `base`, and `checkpoint` where there is a denoiser. Raises ModelNotFound.
    """
    if isinstance(model, str):
        folder = folder_of(model)
        name, tier = read_card(folder).name, read_card(folder).tier
    else:
        parts = named_parts(model, METHOD, "translators are trained by")
        if "checkpoint" in parts:
            return resolve_denoiser(model, accept)
        folder, name, tier = parts["base"], f"{METHOD} ({model['base']})", "full"
    if (folder / "layout.json").is_file():
        return resolve_denoiser(str(folder), accept)
    card = read_card(folder)
    if not (folder / "generator.safetensors").is_file():
        raise ModelNotFound(f"model: {folder} is a model for {card.method}, no translator; name lab/translator or lab/weight-denoiser")
    return of_parts(name, METHOD, tier, {"base": folder}, {"image_size": int(card.facts["image_size"])})


def said(row: Mapping[str, Any], context: Context) -> dict[str, str]:
    """What a translator's file says of where it comes from: row, job and model."""
    return {"row_id": row["row_id"], "job": context.job, "model": context.model.name, "model_revision": context.model.revision}
