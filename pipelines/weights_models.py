"""What the modes of kind weights share that make models of people: their files and pictures, and the parameters of those in a space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pyarrow as pa
from pydantic import Field

from pipelines import pictures
from pipelines.base_models import check_size
from pipelines.people import PAPER, layout_of
from pipelines.pipeline import Context, Model, Params

if TYPE_CHECKING:  # torch is loaded by replicas, never by the driver
    from models.methods.weights2weights_models import Made

MADE = pa.schema([("weights_file", pa.binary()), ("coefficients", pa.list_(pa.float32())), ("tuned_pixels", pa.binary())])
TOLD = pa.schema([("final_loss", pa.float32()), ("curve", pa.list_(pa.float32())), ("curve_steps", pa.list_(pa.int32()))])
"""How a training went."""


class ModelParams(Params):
    """Job parameters of every mode that makes models in a space; None: as the model was made (its card), else as the paper has it."""

    weights_format: Literal["peft", "coefficients"] = "peft"  # what a row's file holds
    n_components: int | None = Field(None, ge=1)  # of the space, the first ones; None: all
    prompt: str | None = Field(None, min_length=1)  # of the picture that shows a model
    num_inference_steps: int | None = Field(None, ge=1, le=1000)  # of that picture, and below
    guidance_scale: float | None = Field(None, ge=0)
    negative_prompt: str | None = None
    image_size: int | None = Field(None, ge=8, le=4096)  # pixels a side


P = TypeVar("P", bound=ModelParams)


def settle(params: P, model: Model) -> P:
    """The parameters with nothing left open. Raises ValueError for a size that the base can't make."""
    token = model.settings["identity_token"]
    prompt = f"a portrait of a {token}" if model.tier == "lab" else token
    settled = params.settled({**PAPER, "prompt": prompt, **model.settings})
    check_size(settled.image_size, model)
    return settled


def written(context: Context) -> pa.Schema:
    """The columns of a model's file and its picture."""
    return pa.schema([*pictures.kept("weights", context.media), *pictures.kept("tuned", context.media)])


def of_model(params: ModelParams, model: Model, made: Made) -> dict[str, Any]:
    """A model as MADE has it; in the replica."""
    from models.methods.weights2weights_files import adapter_bytes, coefficient_bytes

    layout = layout_of(model)
    if params.weights_format == "peft":
        file = adapter_bytes(layout, made.weights_n, made.facts)
    else:
        file = coefficient_bytes(layout, made.coefficients_k, made.facts)
    return {"weights_file": file, "coefficients": made.coefficients_k.tolist(), "tuned_pixels": pictures.from_tensor(made.picture)}


def facts(row: Mapping[str, Any], context: Context, state: str) -> dict[str, str]:
    """What a model's file says of itself beside its layout: state, whose it is, the row and the job."""
    known = {"state": state, "person": row.get("person_id") or row["row_id"], "row_id": row["row_id"], "job": context.job}
    return {**known, "space": context.model.name, "space_revision": context.model.revision}


def settings_of(params: ModelParams) -> dict[str, Any]:
    """What Weights2Weights is told, of every mode."""
    names = ("num_inference_steps", "guidance_scale", "negative_prompt", "n_components", "debias", "compat")
    return {name: getattr(params, name) for name in names if hasattr(params, name)}


def write(side: int | None, context: Context, row: Mapping[str, Any]) -> dict[str, Any]:
    """A model's file and picture, `side` pixels wide, as files of its row; before the row is committed."""
    return {
        **pictures.keep_file(row["weights_file"], "weights", row["row_id"], context, extension="safetensors"),
        **shown(side, context, row, "tuned"),
    }


def shown(side: int | None, context: Context, row: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The picture in `<name>_pixels` as a file."""
    assert side is not None
    pixels = pictures.to_pixels(row[f"{name}_pixels"], side, side)
    return pictures.keep(pixels, name, row["row_id"], context, label=name, generated=True)
