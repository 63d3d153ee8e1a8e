"""New people: each row is one model drawn from the space of adapters by its seed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pydantic import Field

from pipelines.job_file import job_file
from pipelines.people import SPACE_IN_JOB_FILES, resolve_space
from pipelines.pipeline import Context, Kind, Pipeline, Shown
from pipelines.rows import BadRow, row_seed
from pipelines.weights_models import MADE, ModelParams, facts, of_model, settings_of, settle, write, written
from workers.replica import Replica
from workers.stage import MapRows

if TYPE_CHECKING:  # torch is loaded by replicas, never by the driver
    from models.methods.weights2weights_models import Models, Wanted

ROWS = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        ("seed", pa.int64()),  # null: a hash of row_id and the job's seed
        ("person_id", pa.string()),  # a name for the new person; the row's id where null
    ]
)


class SampleParams(ModelParams):
    """Job parameters."""

    std_factor: float = Field(1.0, ge=0)  # f of N(mean, f * std): below 1 nearer to the mean, above it farther out


def sample(params: SampleParams, context: Context) -> Pipeline:
    """One row is one seed; what comes back is a model of somebody new, and a picture made with it."""
    return Pipeline(
        name="weights",
        rows=ROWS,
        stages=[
            Replica(
                "sample",
                partial(load, params, context),
                request=partial(request, context),
                columns=partial(of_model, params, context.model),
                adds=MADE,
                micro_batch=context.micro_batch or 32,
                gpus=1,
            ),
            MapRows(
                "write",
                partial(_write, params, context),
                adds=pa.schema([*written(context), ("seed", pa.int64())]),
                drops=("weights_file", "tuned_pixels"),
            ),
        ],
        outputs=pa.schema([*written(context), ("coefficients", pa.list_(pa.float32())), ("seed", pa.int64())]),
        shown=Shown(before=None, after="tuned", group="person_id"),
        family="people",
    )


def load(params: SampleParams, context: Context) -> Models:
    """The maker of models; called in the replica's process."""
    from models.methods.weights2weights_models import Models

    assert params.prompt is not None
    return Models.load(context.model.sources, prompt=params.prompt, settings=settings_of(params), std_factor=params.std_factor)


def request(context: Context, row: Mapping[str, Any]) -> Wanted:
    """A row as the method wants it. Raises BadRow for a seed that is none."""
    from models.methods.weights2weights_models import Wanted

    if (row.get("seed") or 0) < 0:
        raise BadRow(f"seed is {row['seed']}; give 0 or more, or leave it out")
    return Wanted(seed=row_seed(row, context.seed), facts=facts(row, context, "sampled"))


def _write(params: SampleParams, context: Context, row: Mapping[str, Any]) -> dict[str, Any]:
    return {**write(params.image_size, context, row), "seed": row_seed(row, context.seed)}


TEMPLATE = job_file(
    "people who do not exist, drawn from the space of adapters; a LoRA each.",
    """
  std_factor: 1.0              # how far from the mean; below 1 more ordinary, above 1 more unusual
  weights_format: peft         # or coefficients: a small file that needs the space
  # n_components: 1000         # of the space, the first ones
  # prompt: sks person         # of the picture that shows each model; this and all below: as the model was made
  # num_inference_steps: 50
  # guidance_scale: 3.0
  # negative_prompt: low quality, blurry, unfinished, cartoon
""",
    kind="weights",
    mode="sample",
    name="new-people",
    manifest="calotype manifest sample --seeds N -o manifest.parquet",
    model=SPACE_IN_JOB_FILES,
    where="person_id: [ada]",
    media="adapters and pictures",
    micro_batch="# micro_batch: 32            # models in one call",
)

SAMPLE = Kind(name="weights", mode="sample", params=SampleParams, resolve=resolve_space, build=sample, settle=settle, template=TEMPLATE)
