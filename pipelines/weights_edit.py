"""People moved along attributes: a person's adapter and edits in, another adapter out; nothing of the person outside the space is lost."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from pipelines import pictures
from pipelines.job_file import job_file
from pipelines.people import EDITS, SPACE_IN_JOB_FILES, START, check_edits, edits_of, moved, person_file, resolve_space, start_of
from pipelines.pipeline import Context, Kind, Pipeline, Shown
from pipelines.rows import BadRow
from pipelines.weights_models import MADE, ModelParams, facts, of_model, settings_of, settle, shown, write, written
from workers.replica import Replica
from workers.stage import MapRows

if TYPE_CHECKING:  # torch is loaded by replicas, never by the driver
    from models.methods.weights2weights_models import Made, Models, Wanted

ROWS = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        *START,  # exactly one of the two
        pa.field("edits", EDITS, nullable=False),  # at least one; strength in standard deviations
        ("person_id", pa.string()),
    ]
)
CHECKED = pa.schema([("person_file", pa.binary())])
EDITED = pa.schema([*MADE, ("start_pixels", pa.binary())])


class EditParams(ModelParams):
    """Job parameters."""

    debias: Literal["joint", "sequential", "none"] | None = None  # how edits are freed of the space's other attributes
    compat: tuple[Literal["sequential_debias", "raw_directions"], ...] = ()


def edit(params: EditParams, context: Context) -> Pipeline:
    """One row is one person with their edits; what comes back is the edited model, and a picture before and after."""
    outputs = pa.schema([*written(context), *pictures.kept("start", context.media), ("moved", pa.string())])
    return Pipeline(
        name="weights",
        rows=ROWS,
        one_of=[("start_weights_uri", "start_coefficients")],
        stages=[
            MapRows("person", partial(check, context), adds=CHECKED),
            Replica(
                "edit",
                partial(load, params, context),
                request=partial(request, context),
                columns=partial(columns, params, context),
                adds=EDITED,
                drops=("person_file",),
                micro_batch=context.micro_batch or 32,
                gpus=1,
            ),
            MapRows("write", partial(_write, params, context), adds=outputs, drops=("weights_file", "tuned_pixels", "start_pixels")),
        ],
        outputs=pa.schema([*outputs, ("coefficients", pa.list_(pa.float32()))]),
        shown=Shown(before="start", after="tuned", group="person_id", text=["moved"]),
        family="people",
    )


def check(context: Context, row: Mapping[str, Any]) -> dict[str, Any]:
    """All of a row that can be checked without the model, and its person's file. Raises BadRow, and what reading raises."""
    if not row["edits"]:
        raise BadRow("edits is empty; give one or more, an attribute and a strength each")
    check_edits(row)
    return {"person_file": person_file(row, context.reader)}


def load(params: EditParams, context: Context) -> Models:
    """The maker of models; called in the replica's process."""
    from models.methods.weights2weights_models import Models

    assert params.prompt is not None
    return Models.load(context.model.sources, prompt=params.prompt, settings=settings_of(params))


def request(context: Context, row: Mapping[str, Any]) -> Wanted:
    """A row as the method wants it. Raises what reading the person's file raises."""
    from models.methods.weights2weights_models import Wanted

    start = start_of(row, row["person_file"], context.model)
    return Wanted(seed=0, start=start, edits=edits_of(row), facts=facts(row, context, "edited"))


def columns(params: EditParams, context: Context, made: Made) -> dict[str, Any]:
    """The edited model, and the person before."""
    return {**of_model(params, context.model, made), "start_pixels": pictures.from_tensor(made.before)}


def _write(params: EditParams, context: Context, row: Mapping[str, Any]) -> dict[str, Any]:
    return {**write(params.image_size, context, row), **shown(params.image_size, context, row, "start"), "moved": moved(row)}


TEMPLATE = job_file(
    "people's adapters moved along attributes (older, with a beard), a LoRA each.",
    """
  weights_format: peft         # or coefficients: a small file that needs the space, and keeps only what lies in it
  # debias: joint              # edits are freed of the space's other attributes; or sequential, none
  # n_components: 1000         # of the space, the first ones
  # prompt: sks person         # of the pictures that show each model; this and all below: as the model was made
  # num_inference_steps: 50
  # guidance_scale: 3.0
  # negative_prompt: low quality, blurry, unfinished, cartoon
""",
    kind="weights",
    mode="edit",
    name="edited-people",
    manifest="calotype manifest edit-people PEOPLE --edits E -o manifest.parquet",
    model=SPACE_IN_JOB_FILES,
    seed="",
    where="person_id: [ada]",
    media="adapters and pictures",
    micro_batch="# micro_batch: 32            # models in one call",
    roots="/people",
)

EDIT_WEIGHTS = Kind(name="weights", mode="edit", params=EditParams, resolve=resolve_space, build=edit, settle=settle, template=TEMPLATE)
