"""Pictures of people from their adapters: a prompt and a person in, pictures out; every row has its own adapter, all in one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
from pydantic import Field

from pipelines import pictures
from pipelines.base_models import check_size
from pipelines.candidates import Several
from pipelines.job_file import job_file
from pipelines.people import (
    EDITS,
    PAPER,
    SPACE_IN_JOB_FILES,
    START,
    check_edits,
    check_prompt,
    edits_of,
    moved,
    person_file,
    resolve_space,
    start_of,
)
from pipelines.pipeline import Context, Kind, Model, Params, Pipeline, Shown
from pipelines.rows import BadRow, candidate_seed, row_seed
from workers.replica import Replica
from workers.stage import MapRows

if TYPE_CHECKING:  # torch is loaded by replicas, never by the driver
    from models.methods.weights2weights import Request, Result

ROWS = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),  # names the person by the words that the adapters were trained with
        ("negative_prompt", pa.string()),
        *START,  # exactly one of the two
        ("edits", EDITS),
        ("start_timestep", pa.int32()),  # T, 0-1000: edited from t <= T on; null: throughout
        ("num_images", pa.int32()),  # each with its own seed; null: one
        ("seed", pa.int64()),
        ("person_id", pa.string()),  # for the page's filter only
    ]
)
CHECKED = pa.schema([("person_file", pa.binary())])
MADE = pa.schema([("made_pixels", pa.list_(pa.binary()))])  # (S, S, 3) uint8 each
MOST_IMAGES = 64


class PersonalizeParams(Params):
    """Job parameters; None: as the model was made (its card), else as the paper has it."""

    num_inference_steps: int | None = Field(None, ge=1, le=1000)
    guidance_scale: float | None = Field(None, ge=0)
    negative_prompt: str | None = None  # of rows that name none
    debias: Literal["joint", "sequential", "none"] | None = None  # how edits are freed of the space's other attributes
    compat: tuple[Literal["sequential_debias", "raw_directions"], ...] = ()
    n_components: int | None = Field(None, ge=1)  # of the space, the first ones; None: all
    identity_token: str | None = Field(None, min_length=1)  # the words that every prompt must contain
    image_size: int | None = Field(None, ge=8, le=4096)  # pixels a side
    format: Literal["png", "jpeg", "webp", "tiff"] = "png"
    size_unit: int | None = None  # of which sizes are multiples; the model decides


def personalize(params: PersonalizeParams, context: Context) -> Pipeline:
    """One row is one prompt with one person; what comes back are `num_images` pictures."""
    limit = context.micro_batch or 32
    kept = [*pictures.kept("image", context.media), *pictures.kept_list("images", context.media)]
    written = pa.schema([*kept, ("seed", pa.int64()), ("moved", pa.string())])
    return Pipeline(
        name="personalize",
        rows=ROWS,
        one_of=[("start_weights_uri", "start_coefficients")],
        stages=[
            MapRows("person", partial(check, params, context), adds=CHECKED),
            Replica(
                "personalize",
                partial(load, params, context, limit),
                request=partial(requests, params, context),
                columns=columns,
                adds=MADE,
                drops=("person_file",),
                micro_batch=limit,
                gpus=1,
            ),
            MapRows("encode", partial(encode, params, context), adds=written, drops=("made_pixels",)),
        ],
        outputs=written,
        shown=Shown(before=None, after="image", others="images", group="person_id", text=["prompt", "moved"]),
    )


def check(params: PersonalizeParams, context: Context, row: Mapping[str, Any]) -> dict[str, Any]:
    """All of a row that can be checked without the model, and its person's file. Raises BadRow, and what reading raises."""
    assert params.identity_token is not None
    check_prompt(row["prompt"], params.identity_token)
    check_edits(row)
    images = row.get("num_images")
    if images is not None and not 1 <= images <= MOST_IMAGES:
        raise BadRow(f"num_images is {images}; a row makes 1 to {MOST_IMAGES} (weights alone come from kind weights, mode edit)")
    return {"person_file": person_file(row, context.reader)}


def load(params: PersonalizeParams, context: Context, limit: int) -> Several:
    """The method with its networks and space; called in the replica's process."""
    from models.methods.weights2weights import Weights2Weights

    settings = {name: getattr(params, name) for name in (*PAPER, "n_components", "compat")}
    return Several(Weights2Weights.load(context.model.sources, settings=settings), limit)


def requests(params: PersonalizeParams, context: Context, row: Mapping[str, Any]) -> list[Request]:
    """A row's pictures as the method wants them, each with its own seed. Raises what reading the person's file raises."""
    from models.methods.weights2weights import Request

    start, edits = start_of(row, row["person_file"], context.model), edits_of(row)
    return [
        Request(
            prompt=row["prompt"],
            negative_prompt=row.get("negative_prompt"),
            start=start,
            edits=edits,
            start_timestep=row.get("start_timestep"),
            height=params.image_size,
            width=params.image_size,
            seed=candidate_seed(row_seed(row, context.seed), number),
        )
        for number in range(row.get("num_images") or 1)
    ]


def columns(results: Sequence[Result]) -> dict[str, Any]:
    """A row's pictures as uint8 pixels."""
    return {"made_pixels": [pictures.from_tensor(result.image) for result in results]}


def encode(params: PersonalizeParams, context: Context, row: Mapping[str, Any]) -> dict[str, Any]:
    """The pictures as files that say how they came about; before the row is committed."""
    assert params.image_size is not None
    keep = partial(pictures.keep, row_id=row["row_id"], context=context, format=params.format, generated=True)
    many = [pictures.to_pixels(data, params.image_size, params.image_size) for data in row["made_pixels"]]
    kept = [keep(pixels, "image", label=str(number) if number else "") for number, pixels in enumerate(many)]
    return {**kept[0], **pictures.as_list(kept, "images"), "seed": row_seed(row, context.seed), "moved": moved(row)}


def settle(params: PersonalizeParams, model: Model) -> PersonalizeParams:
    """The parameters with nothing left open. Raises ValueError where the model can't do what is asked."""
    settled = params.settled({**PAPER, **model.settings})
    check_size(settled.image_size, model)
    return settled


TEMPLATE = job_file(
    "pictures of people from their adapters, each row with a person of its own.",
    """
  format: png                  # or jpeg, webp, tiff
  # debias: joint              # edits are freed of the space's other attributes; or sequential, none
  # identity_token: sks person # the words that every prompt must contain; this and all below: as the model was made
  # num_inference_steps: 50
  # guidance_scale: 3.0
  # negative_prompt: low quality, blurry, unfinished, cartoon
  # n_components: 1000         # of the space, the first ones
""",
    kind="personalize",
    name="people",
    manifest="calotype manifest personalize PEOPLE --prompts P -o manifest.parquet",
    model=SPACE_IN_JOB_FILES,
    where="person_id: [ada]",
    micro_batch="# micro_batch: 32            # pictures in one call of the model",
    roots="/archive",
)

PERSONALIZE = Kind(
    name="personalize",
    params=PersonalizeParams,
    resolve=resolve_space,
    build=personalize,
    settle=settle,
    template=TEMPLATE,
)
