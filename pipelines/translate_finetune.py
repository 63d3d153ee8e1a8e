"""Translators finished: a row is a concept with pairs and a start, generated from its text or given; what comes back is its tuned LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipelines import pictures, translate
from pipelines.job_file import job_file
from pipelines.pipeline import Context, Kind, Pipeline
from pipelines.translators import resolve_translator
from workers.crops import resize_square
from workers.replica import Replica
from workers.stage import MapRows

if TYPE_CHECKING:  # torch is loaded by replicas, never by the driver
    from models.training.translators import Request, Result, Translators

ROWS = pa.schema(
    [
        *translate.COLUMNS,
        ("start_weights_uri", pa.string()),  # a LoRA of the same base; null: generated from the concept, or what all trainings begin with
        ("apply_images", pa.list_(pa.binary())),  # photographs to translate with the result
        ("apply_image_uris", pa.list_(pa.string())),
    ]
)
SHOWN = ("input", "start", "tuned", "target")
BESIDE = pa.schema([("start_file", pa.binary()), ("apply_pixels", pa.binary()), ("applies", pa.int32())])
APPLIED = pa.schema([("applied", pa.list_(pa.binary()))])


class FinetuneParams(translate.TrainingParams):
    """Job parameters."""

    learning_rate: float = Field(1e-2, gt=0)  # as of a collection, at half its rate: weights that are near already would be thrown back
    max_epochs: int = Field(10, ge=1)  # over a row's pairs
    check_every: int = Field(5, ge=1)  # steps; a row ends at the first check where its target or its seconds are reached
    target_l1: float | None = Field(None, gt=0, le=1)  # of rows that name none


def finetune(params: FinetuneParams, context: Context) -> Pipeline:
    """One row is one concept; what comes back is its weights, errors before and after, the curve, and pictures of one held-out pair."""
    written = pa.schema([*translate.written(context, SHOWN), *pictures.kept_list("images", context.media)])
    return Pipeline(
        name="translate",
        rows=ROWS,
        stages=[
            MapRows(
                "decode",
                partial(decode, context),
                adds=pa.schema([*translate.PAIRS, *BESIDE]),
                drops=("input_images", "target_images", "apply_images"),
            ),
            Replica(
                "train",
                partial(load, params, context),
                request=partial(request, params, context),
                columns=partial(columns, params),
                adds=pa.schema([*translate.MADE, *APPLIED]),
                drops=("source_pixels", "target_pixels", "start_file", "apply_pixels"),
                micro_batch=context.micro_batch or params.group_size,
                gpus=1,
            ),
            MapRows("encode", partial(encode, context), adds=written, drops=("made", "shown", "applied")),
        ],
        outputs=pa.schema([*written, *translate.TOLD]),
        shown=translate.shown(SHOWN),
        family="translators",
    )


def decode(context: Context, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row's pairs, the file that it begins with, and the photographs to translate. Raises BadRow, and what reading raises."""
    side = context.model.settings["image_size"]
    given = pictures.given_list(row, "apply_images", context.reader)
    found = [resize_square(translate.pixels(context, data, f"image {n} to apply to"), side)[0] for n, data in enumerate(given)]
    start = row.get("start_weights_uri")
    return {
        **translate.decode(context, row),
        "start_file": None if start is None else context.reader.read(start),
        "apply_pixels": np.stack(found).tobytes() if found else None,
        "applies": len(found),
    }


def load(params: FinetuneParams, context: Context) -> Translators:
    """The base and, where the model is a denoiser, what generates starts; called in the replica's process."""
    return translate.trainer(
        params, context.model.sources, state="tuned", steps=None, epochs=params.max_epochs, check_every=params.check_every
    )


def request(params: FinetuneParams, context: Context, row: Mapping[str, Any]) -> Request:
    """A row as the trainer wants it. Raises UnreadableCheckpoint for a start that is no file of weights."""
    from models.lora_files import read_lora
    from models.training.translators import Request

    asked = translate.asked(context, row)
    start = None if row["start_file"] is None else read_lora(row["start_file"])
    apply = translate.stacked(row["apply_pixels"], row["applies"], context) if row["applies"] else None
    target = asked["target_l1"] if asked["target_l1"] is not None else params.target_l1
    return Request(**{**asked, "target_l1": target}, start=start, apply=apply)


def columns(params: FinetuneParams, result: Result) -> dict[str, Any]:
    """A tuned concept as columns. Raises Diverged, which fails its row."""
    applied = None if result.applied is None else [pictures.from_tensor(picture) for picture in result.applied]
    return {**translate.columns(params.precision, result), "applied": applied}


def encode(context: Context, row: Mapping[str, Any]) -> dict[str, Any]:
    """Write weights and pictures; before the row is committed."""
    side = context.model.settings["image_size"]
    kept = [
        pictures.keep(pictures.to_pixels(data, side, side), "image", row["row_id"], context, label=str(number))
        for number, data in enumerate(row["applied"] or [])
    ]
    none = dict.fromkeys(pictures.kept_list("images", context.media).names)
    return {**translate.encode(context, SHOWN, row), **(pictures.as_list(kept, "images") if kept else none)}


TEMPLATE = job_file(
    "translators finished on pairs of pictures, each from weights that its text gave.",
    """
  max_epochs: 10               # over a row's pairs
  batch_size: 8                # pairs a step
  learning_rate: 0.01          # from generated weights; 0.02 where rows begin with nothing (lab/translator)
  check_every: 5               # steps; a row ends at the first check where its target is reached
  eval_fraction: 0.1           # of a row's pairs, at least 4: checked on, not trained on
  group_size: 16               # rows trained in one forward pass
  # precision: float32         # of the files, or float16
  # target_l1: 0.08            # mean absolute error in 0..1 at which a row ends; a row's own column wins
""",
    kind="translate",
    mode="finetune",
    mode_is="collect makes the points that a denoiser learns from",
    name="finetune",
    manifest="calotype manifest translate --pairs FOLDER -o FOLDER",
    model="""
model: lab/weight-denoiser     # generates the start of rows that name none; lab/translator: they begin with nothing. Your own:
# model: {method: neural_weights, base: /models/translator, checkpoint: /models/weight-denoiser}
""",
    where='concept: ["sepia, ink outlines"]',
    media="weights and pictures",
)

FINETUNE = Kind(
    name="translate",
    mode="finetune",
    params=FinetuneParams,
    resolve=resolve_translator,
    build=finetune,
    template=TEMPLATE,
)
