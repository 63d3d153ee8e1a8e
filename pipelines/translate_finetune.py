"""Translators finished: a row is a concept with pairs and a start, generated from its text or given; what comes back is its tuned LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipelines import pictures, translate
from pipelines.job_file import running
from pipelines.pipeline import Context, Kind, Model, Params, Pipeline, Score, Shown
from pipelines.rows import BadRow
from workers.crops import resize_square
from workers.media import decode_image
from workers.replica import Replica
from workers.stage import MapRows

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


class FinetuneParams(Params):
    """Job parameters."""

    max_epochs: int = Field(10, ge=1)  # over a row's pairs
    batch_size: int = Field(8, ge=1)  # pairs a step
    learning_rate: float = Field(2e-2, gt=0)  # of the up-projections; a tenth of it for the down-projections
    check_every: int = Field(5, ge=1)  # steps; a row ends at the first check where its target or its seconds are reached
    eval_fraction: float = Field(0.1, gt=0, lt=1)  # of a row's pairs, at least 4: checked on, not trained on
    target_l1: float | None = Field(None, gt=0, le=1)  # of rows that name none
    group_size: int = Field(16, ge=1, le=512)  # rows trained in one forward pass; decides nothing but speed and memory
    precision: Literal["float32", "float16"] = "float32"  # of the files


def finetune(params: FinetuneParams, context: Context) -> Pipeline:
    """One row is one concept; what comes back is its weights, errors before and after, the curve, and pictures of one held-out pair."""
    outputs = pa.schema([*translate.outputs(context.media, SHOWN), *pictures.kept_list("images", context.media)])
    written = pa.schema([field for field in outputs if field.name not in translate.MADE.names])
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
        outputs=outputs,
        shown=Shown(
            before="input", after="tuned", scores=[Score("l1_final", "Error at the end", higher_is_better=False)], text=["concept"],
            strip=SHOWN, curve=("curve_steps", "curve"),
        ),
        family="translators",
    )  # fmt: skip


def decode(context: Context, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row's pairs, the file that it begins with, and the photographs to translate. Raises BadRow, and what reading raises."""
    side = context.model.settings["image_size"]
    if row.get("apply_images") is not None and row.get("apply_image_uris") is not None:
        raise BadRow("give either apply_images or apply_image_uris, not both")
    read = context.reader.read
    given = row.get("apply_images") or [read(uri) for uri in row.get("apply_image_uris") or []]
    found = list[np.ndarray]()
    for number, data in enumerate(given):
        try:
            found.append(resize_square(decode_image(data, max_pixels=context.max_pixels).pixels, side)[0])
        except (ValueError, TypeError) as error:
            raise BadRow(f"image {number} to apply to: {error}") from error
    start = row.get("start_weights_uri")
    return {
        **translate.decode(context, row),
        "start_file": None if start is None else read(start),
        "apply_pixels": np.stack(found).tobytes() if found else None,
        "applies": len(found),
    }


def load(params: FinetuneParams, context: Context) -> Any:
    """The base and, where the model is a denoiser, what generates starts; called in the replica's process."""
    from models.training.translations import Settings
    from models.training.translators import Plan, Translators

    plan = Plan(
        steps=None,
        epochs=params.max_epochs,
        check_every=params.check_every,
        settings=Settings(batch=params.batch_size, lr=params.learning_rate),
        eval_fraction=params.eval_fraction,
    )
    return Translators.load(context.model.sources, plan, state="tuned")


def request(params: FinetuneParams, context: Context, row: Mapping[str, Any]) -> Any:
    """A row as the trainer wants it. Raises UnreadableCheckpoint for a start that is no file of weights."""
    from models.lora_files import read_lora
    from models.training.translators import Request

    asked = translate.asked(context, row)
    start = None if row["start_file"] is None else read_lora(row["start_file"])
    apply = translate.stacked(row["apply_pixels"], row["applies"], context) if row["applies"] else None
    target = asked["target_l1"] if asked["target_l1"] is not None else params.target_l1
    return Request(**{**asked, "target_l1": target}, start=start, apply=apply)


def columns(params: FinetuneParams, result: Any) -> dict[str, Any]:
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


def settle(params: FinetuneParams, model: Model) -> FinetuneParams:
    """Nothing is left open."""
    return params


TEMPLATE = """\
# A calotype job: translators finished on pairs of pictures, each from weights that its text gave.
# calotype check job.yaml    what will happen, measured on a few rows
# calotype run job.yaml      runs it; the same command goes on after an interruption
kind: translate
mode: finetune                 # collect makes the points that a denoiser learns from
name: finetune                 # the job folder is <output>/<name>-<fingerprint>
manifest: manifest.parquet     # calotype manifest translate --pairs FOLDER -o FOLDER
output: runs                   # a folder or s3://bucket/prefix
model: lab/weight-denoiser     # generates the start of rows that name none; lab/translator: they begin with nothing. Your own:
# model: {method: neural_weights, base: /models/translator, checkpoint: /models/weight-denoiser}
seed: 0

params:
  max_epochs: 10               # over a row's pairs
  batch_size: 8                # pairs a step
  learning_rate: 0.02
  check_every: 5               # steps; a row ends at the first check where its target is reached
  eval_fraction: 0.1           # of a row's pairs, at least 4: checked on, not trained on
  group_size: 16               # rows trained in one forward pass
  # precision: float32         # of the files, or float16
  # target_l1: 0.08            # mean absolute error in 0..1 at which a row ends; a row's own column wins

# reuse: last                  # leave out rows that were ok in the last job of this name under the same settings
# limit: 100                   # only the first rows
media: files                   # or columns: weights and pictures inside the Parquet files
on_bad_source: fail            # or skip: run without manifest files that can't be read

""" + running()

FINETUNE = Kind(
    name="translate",
    mode="finetune",
    params=FinetuneParams,
    resolve=translate.resolve_translator,
    build=finetune,
    settle=settle,
    template=TEMPLATE,
)
