"""Points to learn from: a row is a concept with pairs, what comes back is its LoRA, trained from the start that all share for equally many steps."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from pipelines import translate
from pipelines.job_file import running
from pipelines.pipeline import Context, Kind, Model, Params, Pipeline, Score, Shown
from workers.replica import Replica
from workers.stage import MapRows

ROWS = pa.schema(translate.COLUMNS)
SHOWN = ("input", "tuned", "target")


class CollectParams(Params):
    """Job parameters. All rows begin alike, draw alike and train equally long, as a denoiser that learns from them needs it."""

    steps: int = Field(40, ge=1)
    batch_size: int = Field(8, ge=1)  # pairs a step
    learning_rate: float = Field(2e-2, gt=0)  # of the up-projections; a tenth of it for the down-projections
    eval_fraction: float = Field(0.1, gt=0, lt=1)  # of a row's pairs, at least 4: checked on, not trained on
    group_size: int = Field(16, ge=1, le=512)  # rows trained in one forward pass; decides nothing but speed and memory
    data_seed: int = 0  # of the order in which pairs are drawn, the same for all rows
    precision: Literal["float32", "float16"] = "float32"  # of the files


def collect(params: CollectParams, context: Context) -> Pipeline:
    """One row is one concept; what comes back is a file of weights, the error before and after, and pictures."""
    outputs = translate.outputs(context.media, SHOWN)
    written = pa.schema([field for field in outputs if field.name not in translate.MADE.names])
    return Pipeline(
        name="translate",
        rows=ROWS,
        stages=[
            MapRows(
                "decode", partial(translate.decode, context), adds=translate.PAIRS,
                drops=("input_images", "target_images"),
            ),
            Replica(
                "train",
                partial(load, params, context),
                request=partial(request, params, context),
                columns=partial(translate.columns, params.precision),
                adds=translate.MADE,
                drops=("source_pixels", "target_pixels"),
                micro_batch=context.micro_batch or params.group_size,
                gpus=1,
            ),
            MapRows("encode", partial(translate.encode, context, SHOWN), adds=written, drops=("made", "shown")),
        ],
        outputs=outputs,
        shown=Shown(
            before="input", after="tuned", scores=[Score("l1_final", "Error at the end", higher_is_better=False)], text=["concept"],
            strip=SHOWN, curve=("curve_steps", "curve"),
        ),
        family="translators",
    )  # fmt: skip


def load(params: CollectParams, context: Context) -> Any:
    """The base, ready to train groups; called in the replica's process."""
    from models.training.translations import Settings
    from models.training.translators import Plan, Translators

    plan = Plan(
        steps=params.steps,
        check_every=max(1, -(-params.steps // 2)),
        settings=Settings(batch=params.batch_size, lr=params.learning_rate),
        eval_fraction=params.eval_fraction,
    )
    return Translators.load({"base": context.model.sources["base"]}, plan, state="trained")


def request(params: CollectParams, context: Context, row: Mapping[str, Any]) -> Any:
    """A row as the trainer wants it: all draw alike, whatever their seeds."""
    from models.training.translators import Request

    return Request(**{**translate.asked(context, row), "seed": params.data_seed})


def settle(params: CollectParams, model: Model) -> CollectParams:
    """Nothing is left open."""
    return params


TEMPLATE = """\
# A calotype job: one LoRA a concept, all from one start: what a denoiser of weights learns from (calotype train weight-denoiser --data JOB).
# calotype check job.yaml    what will happen, measured on a few rows
# calotype run job.yaml      runs it; the same command goes on after an interruption
kind: translate
mode: collect                  # points to learn from; finetune finishes single translators
name: collect                  # the job folder is <output>/<name>-<fingerprint>
manifest: manifest.parquet     # calotype manifest translate PHOTOS --concepts FILE -o FOLDER
output: runs                   # a folder or s3://bucket/prefix
model: lab/translator          # the base; your own:
# model: {method: neural_weights, base: /models/translator}
seed: 0

params:
  steps: 40                    # for every concept
  batch_size: 8                # pairs of a concept a step
  learning_rate: 0.02
  eval_fraction: 0.1           # of a concept's pairs, at least 4: checked on, not trained on
  group_size: 16               # concepts trained in one forward pass
  # precision: float32         # of the files, or float16

# reuse: last                  # leave out rows that were ok in the last job of this name under the same settings
# limit: 100                   # only the first rows
media: files                   # or columns: weights and pictures inside the Parquet files
on_bad_source: fail            # or skip: run without manifest files that can't be read

""" + running()

COLLECT = Kind(
    name="translate",
    mode="collect",
    params=CollectParams,
    resolve=translate.resolve_translator,
    build=collect,
    settle=settle,
    template=TEMPLATE,
)
