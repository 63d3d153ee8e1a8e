"""Weights from text: a row is the text of a concept, what comes back is the LoRA of a translator for it, one file a row."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
from pydantic import Field

from pipelines import pictures
from pipelines.job_file import job_file
from pipelines.pipeline import Context, Kind, Params, Pipeline, Shown
from pipelines.rows import BadRow, row_seed
from pipelines.translators import resolve_denoiser, said
from workers.replica import Replica
from workers.stage import MapRows

if TYPE_CHECKING:  # torch is loaded by replicas, never by the driver
    from models.methods.neural_weights import Request, Result

ROWS = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("concept", pa.string(), nullable=False),  # in words that the translator's text encoder knows
        ("seed", pa.int64()),
    ]
)
MADE = pa.schema([("made", pa.binary()), ("seen", pa.binary()), ("base_hash", pa.string())])
MICRO_BATCH = 64  # concepts in one call: on a CPU more are no faster, and one needs about 1 MB for each of its blocks in flight
PREVIEWED = 1_900_000  # number of the drawn picture that previews are made of


class InitializeParams(Params):
    """Job parameters. How weights are grouped, and what is predicted, belongs to the denoiser and stands in its layout.json."""

    num_steps: int = Field(1, ge=1, le=1000)  # denoising steps; more than one: DDIM
    precision: Literal["float16", "float32"] = "float16"  # of the files
    preview: bool = True  # one drawn picture through every translator, for the review page


def initialize(params: InitializeParams, context: Context) -> Pipeline:
    """One row is one concept; what comes back is a safetensors file that says how it came about."""
    outputs = [
        *pictures.kept("weights", context.media),
        ("seed", pa.int64()),
        ("base_hash", pa.string()),
        *(pictures.kept("input", context.media) if params.preview else ()),
        *(pictures.kept("start", context.media) if params.preview else ()),
    ]
    return Pipeline(
        name="weights",
        rows=ROWS,
        stages=[
            MapRows("concept", check, adds=pa.schema([])),
            Replica(
                "initialize",
                partial(load, params, context),
                request=partial(request, params, context),
                columns=partial(columns, params),
                adds=MADE,
                micro_batch=context.micro_batch or MICRO_BATCH,
                gpus=1,
            ),
            MapRows(
                "encode",
                partial(encode, params, context),
                adds=pa.schema([field for field in pa.schema(outputs) if field.name != "base_hash"]),
                drops=("made", "seen"),
            ),
        ],
        outputs=pa.schema(outputs),
        shown=Shown(before="input" if params.preview else None, after="start", text=["concept"]),
        family="translators",
    )


def check(row: Mapping[str, Any]) -> dict[str, Any]:
    """What can be checked without the model. Raises BadRow."""
    if not row["concept"].strip():
        raise BadRow("concept is empty; write what the translator is to do, such as `sepia, ink outlines`")
    return {}


def load(params: InitializeParams, context: Context) -> Any:
    """The method with its networks; called in the replica's process."""
    from models.methods.neural_weights import NeuralWeights

    return NeuralWeights.load(context.model.sources, settings={"num_steps": params.num_steps})


def request(params: InitializeParams, context: Context, row: Mapping[str, Any]) -> Request:
    """A row as the method wants it, with what its file is to say beside the method's own."""
    from models.methods.neural_weights import Request

    seen = previewed(context.model.settings["image_size"]) if params.preview else None
    return Request(row["concept"], row_seed(row, context.seed), seen, said(row, context))


def columns(params: InitializeParams, result: Result) -> dict[str, Any]:
    """The weights as the bytes of their file, and the preview as uint8 pixels."""
    import torch

    from models.lora_files import lora_bytes

    return {
        "made": lora_bytes(result.lora, result.metadata, getattr(torch, params.precision)),
        "seen": None if result.picture is None else pictures.from_tensor(result.picture),
        "base_hash": result.metadata["base_hash"],
    }


def encode(params: InitializeParams, context: Context, row: Mapping[str, Any]) -> dict[str, Any]:
    """Write the weights and their preview; before the row is committed."""
    out = {"seed": row_seed(row, context.seed)}
    out |= pictures.keep_file(row["made"], "weights", row["row_id"], context, extension="safetensors")
    if params.preview:
        side = context.model.settings["image_size"]
        keep = partial(pictures.keep, row_id=row["row_id"], context=context, generated=True)
        out |= keep(pictures.to_pixels(pictures.from_tensor(previewed(side)), side, side), "input", label="input")
        out |= keep(pictures.to_pixels(row["seen"], side, side), "start", label="start")
    return out


@cache
def previewed(side: int) -> Any:
    """(3,side,side) in [-1, 1]: a drawn portrait that no model was trained on."""
    from models.lab.generation_scores import pixels
    from models.lab.world import draw, subject

    return pixels(draw(subject(PREVIEWED, "portrait"), PREVIEWED, side).image)


TEMPLATE = job_file(
    "weights from text. Each concept becomes the LoRA of an image translator, a safetensors file.",
    """
  # num_steps: 1               # denoising steps; one is what the method is about
  precision: float16           # of the files, or float32
  preview: true                # one drawn picture through every translator, to look at on the review page
""",
    kind="weights",
    mode="initialize",
    mode_is="a concept's weights from its text",
    name="concepts",
    manifest="calotype manifest weights --concepts FILE -o manifest.parquet",
    model="""
model: lab/weight-denoiser     # its translator is lab/translator; your own:
# model: {method: neural_weights, base: /models/translator, checkpoint: /models/weight-denoiser}
""",
    where='concept: ["sepia, ink outlines"]',
    media="weights and pictures",
    micro_batch="# micro_batch: 64            # concepts in one call of the denoiser",
)

INITIALIZE = Kind(
    name="weights",
    mode="initialize",
    params=InitializeParams,
    resolve=resolve_denoiser,
    build=initialize,
    template=TEMPLATE,
)
