"""One photograph to one model: its coefficients in the space of adapters; photographs of a batch are inverted together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipelines import pictures
from pipelines.job_file import job_file
from pipelines.people import SPACE_IN_JOB_FILES, resolve_space
from pipelines.pipeline import Context, Kind, Model, Pipeline, Score, Shown
from pipelines.rows import BadRow, row_seed
from pipelines.weights_models import MADE, TOLD, ModelParams, facts, of_model, settings_of, write, written
from pipelines.weights_models import settle as settle_model
from workers.crops import resize_square
from workers.media import decode_image
from workers.replica import Replica
from workers.stage import MapRows

if TYPE_CHECKING:  # torch is loaded by replicas, never by the driver
    from models.methods.weights2weights_models import Inverted, InvertedModels, Made

ROWS = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        ("image", pa.binary()),  # exactly one of the two; its middle square is inverted
        ("image_uri", pa.string()),
        ("mask", pa.binary()),  # white: what counts, of the photograph's aspect; none: all of it
        ("mask_uri", pa.string()),
        ("seed", pa.int64()),  # of times and noises
        ("consent", pa.string()),  # a note, copied to the output
        ("person_id", pa.string()),
    ]
)
DECODED = pa.schema([("pixels", pa.binary()), ("mask_pixels", pa.binary())])
PAPER: Mapping[str, Any] = {"num_steps": 400, "learning_rate": 0.1, "weight_decay": 1e-10, "noises": 1}
MOST_OFF = 0.02  # of a mask's aspect from the photograph's


class InvertParams(ModelParams):
    """Job parameters; None: as the model was made (its card), else as the authors have it."""

    num_steps: int | None = Field(None, ge=1, le=100_000)
    learning_rate: float | None = Field(None, gt=0)
    weight_decay: float | None = Field(None, ge=0)
    noises: int | None = Field(None, ge=1, le=256)  # of each photograph a step


def invert(params: InvertParams, context: Context) -> Pipeline:
    """One row is one photograph; what comes back is a model of its person, a picture made with it, and how the loss fell."""
    kept = pa.schema([*written(context), ("seed", pa.int64()), ("consent_given", pa.string())])
    return Pipeline(
        name="weights",
        rows=ROWS,
        one_of=[("image", "image_uri")],
        stages=[
            MapRows("decode", partial(decode, params, context), adds=DECODED, drops=("image", "mask")),
            Replica(
                "invert",
                partial(load, params, context),
                request=partial(request, params, context),
                columns=partial(columns, params, context),
                adds=pa.schema([*MADE, *TOLD]),
                drops=("pixels", "mask_pixels"),
                micro_batch=context.micro_batch or 16,
                gpus=1,
            ),
            MapRows("write", partial(_write, params, context), adds=kept, drops=("weights_file", "tuned_pixels")),
        ],
        outputs=pa.schema([*kept, ("coefficients", pa.list_(pa.float32())), *TOLD]),
        shown=Shown(
            before="image",
            after="tuned",
            scores=[Score("final_loss", "Last loss", higher_is_better=False)],
            group="person_id",
            curve=("curve_steps", "curve"),
        ),
        family="people",
    )


def decode(params: InvertParams, context: Context, row: Mapping[str, Any]) -> dict[str, Any]:
    """The photograph's middle square at the base's size, and its mask's. Raises BadRow, ImageBroken, ImageTooLarge, OSError."""
    assert params.image_size is not None
    photograph = decode_image(pictures.needed(row, "image", context.reader), max_pixels=context.max_pixels).pixels
    found: dict[str, Any] = {"pixels": resize_square(photograph, params.image_size)[0].tobytes(), "mask_pixels": None}
    data = pictures.given(row, "mask", context.reader)
    if data is not None:
        mask = decode_image(data, max_pixels=context.max_pixels).pixels
        aspects = [pixels.shape[1] / pixels.shape[0] for pixels in (mask, photograph)]
        if abs(aspects[0] / aspects[1] - 1) > MOST_OFF:
            raise BadRow(f"the mask's aspect is {aspects[0]:.2f}, the photograph's {aspects[1]:.2f}; give a mask of the whole photograph")
        white = resize_square(mask, params.image_size)[0][..., 0] > 127
        if not white.any():
            raise BadRow("the mask is empty in the middle square of the photograph; mark the face in white, or leave the mask out")
        found["mask_pixels"] = white.astype(np.uint8).tobytes()
    return found


def load(params: InvertParams, context: Context) -> InvertedModels:
    """The inversion with its networks and space; called in the replica's process."""
    from models.methods.weights2weights_models import OF_INVERSION, InvertedModels

    settings = {**settings_of(params), **{name: getattr(params, name) for name in OF_INVERSION}}
    return InvertedModels.load(context.model.sources, settings=settings)


def request(params: InvertParams, context: Context, row: Mapping[str, Any]) -> Inverted:
    """A row as the method wants it."""
    import torch

    from models.methods.weights2weights_inversion import Request
    from models.methods.weights2weights_models import Inverted

    assert params.image_size is not None
    side, mask = params.image_size, row["mask_pixels"]
    photograph = Request(
        image=pictures.to_tensor(row["pixels"], side, side),
        mask=None if mask is None else torch.from_numpy(np.frombuffer(mask, np.uint8).reshape(side, side).copy()).float(),
        seed=row_seed(row, context.seed),
    )
    consent = {"consent": row["consent"]} if row.get("consent") else {}
    return Inverted(photograph, {**facts(row, context, "inverted"), **consent})


def columns(params: InvertParams, context: Context, made: Made) -> dict[str, Any]:
    """The model and its loss. Raises BadRow where the inversion diverged."""
    assert made.final_loss is not None
    if not math.isfinite(made.final_loss) or not bool(made.coefficients_k.isfinite().all()):
        raise BadRow("the inversion diverged; lower params.learning_rate, or look at this photograph")
    told = {"final_loss": made.final_loss, "curve": list(made.curve), "curve_steps": list(made.curve_steps)}
    return {**of_model(params, context.model, made), **told}


def _write(params: InvertParams, context: Context, row: Mapping[str, Any]) -> dict[str, Any]:
    return {**write(params.image_size, context, row), "seed": row_seed(row, context.seed), "consent_given": row.get("consent")}


def settle(params: InvertParams, model: Model) -> InvertParams:
    """The parameters with nothing left open."""
    return settle_model(params.settled({**PAPER, **{key: model.settings[key] for key in PAPER if key in model.settings}}), model)


TEMPLATE = job_file(
    "one photograph of a person in, a LoRA of that person out. Face models are personal data: ask first.",
    """
  weights_format: peft         # or coefficients: a small file that needs the space
  # num_steps: 400             # this and all below: as the model was made, else as the authors have it
  # learning_rate: 0.1
  # weight_decay: 1.0e-10
  # noises: 1                  # of each photograph a step
  # n_components: 10000        # of the space, the first ones
  # prompt: sks person         # under which the photograph is inverted and the picture made
  # num_inference_steps: 50
  # guidance_scale: 3.0
  # negative_prompt: low quality, blurry, unfinished, cartoon
""",
    kind="weights",
    mode="invert",
    name="inverted",
    manifest="calotype manifest invert PHOTOS -o manifest.parquet; a photograph a person",
    model=SPACE_IN_JOB_FILES,
    seed="of times and noises; a row without a seed of its own gets one from its id and this",
    where="person_id: [ada]",
    media="adapters and pictures",
    micro_batch="# micro_batch: 16            # photographs inverted together",
    roots="/people",
)

INVERT = Kind(name="weights", mode="invert", params=InvertParams, resolve=resolve_space, build=invert, settle=settle, template=TEMPLATE)
