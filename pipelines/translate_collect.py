"""Points to learn from: a row is a concept with pairs, what comes back is its LoRA, trained from the start that all share for equally many steps."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pydantic import Field

from pipelines import translate
from pipelines.job_file import job_file
from pipelines.pipeline import Context, Kind, Pipeline
from pipelines.translators import resolve_translator
from workers.replica import Replica
from workers.stage import MapRows

if TYPE_CHECKING:  # torch is loaded by replicas, never by the driver
    from models.training.translators import Request, Translators

ROWS = pa.schema(translate.COLUMNS)
SHOWN = ("input", "tuned", "target")


class CollectParams(translate.TrainingParams):
    """Job parameters. All rows begin alike, draw alike and train equally long, as a denoiser that learns from them needs it."""

    steps: int = Field(40, ge=1)
    data_seed: int = 0  # of the order in which pairs are drawn, the same for all rows


def collect(params: CollectParams, context: Context) -> Pipeline:
    """One row is one concept; what comes back is a file of weights, the error before and after, and pictures."""
    written = translate.written(context, SHOWN)
    return Pipeline(
        name="translate",
        rows=ROWS,
        stages=[
            MapRows("decode", partial(translate.decode, context), adds=translate.PAIRS, drops=("input_images", "target_images")),
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
        outputs=pa.schema([*written, *translate.TOLD]),
        shown=translate.shown(SHOWN),
        family="translators",
    )


def load(params: CollectParams, context: Context) -> Translators:
    """The base, ready to train groups; called in the replica's process."""
    only_base = {"base": context.model.sources["base"]}
    return translate.trainer(params, only_base, state="trained", steps=params.steps, check_every=max(1, -(-params.steps // 2)))


def request(params: CollectParams, context: Context, row: Mapping[str, Any]) -> Request:
    """A row as the trainer wants it: all draw alike, whatever their seeds."""
    from models.training.translators import Request

    return Request(**{**translate.asked(context, row), "seed": params.data_seed})


TEMPLATE = job_file(
    "one LoRA a concept, all from one start: what a denoiser of weights learns from (calotype train weight-denoiser --data JOB).",
    """
  steps: 40                    # for every concept
  batch_size: 8                # pairs of a concept a step
  learning_rate: 0.02
  eval_fraction: 0.1           # of a concept's pairs, at least 4: checked on, not trained on
  group_size: 16               # concepts trained in one forward pass
  # precision: float32         # of the files, or float16
""",
    kind="translate",
    mode="collect",
    mode_is="points to learn from; finetune finishes single translators",
    name="collect",
    manifest="calotype manifest translate PHOTOS --concepts FILE -o FOLDER",
    model="""
model: lab/translator          # the base; your own:
# model: {method: neural_weights, base: /models/translator}
""",
    seed="",
    where='concept: ["sepia, ink outlines"]',
    media="weights and pictures",
)

COLLECT = Kind(
    name="translate",
    mode="collect",
    params=CollectParams,
    resolve=resolve_translator,
    build=collect,
    template=TEMPLATE,
)
