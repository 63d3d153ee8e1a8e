"""People in as photographs, adapters out: one row is one person, what comes back is one rank-1 LoRA of the base; many people train together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pydantic import Field

from models.catalog import ModelNotFound
from pipelines import pictures
from pipelines.base_models import check_size
from pipelines.job_file import job_file
from pipelines.model_source import resolve_model
from pipelines.pipeline import Accept, Context, Kind, Model, Params, Pipeline, Score, Shown
from pipelines.rows import BadRow
from pipelines.weights_models import TOLD, write, written
from workers.crops import resize_square
from workers.media import decode_image
from workers.replica import Replica
from workers.stage import MapRows

if TYPE_CHECKING:  # torch is loaded by replicas, never by the driver
    from models.training.identities import Identities, Request, Result

ROWS = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        ("reference_images", pa.list_(pa.binary())),  # photographs of one person; exactly one of the two
        ("reference_image_uris", pa.list_(pa.string())),
        ("person_id", pa.string()),
        ("seed", pa.int64()),  # of times and noises; null: the job's, which all people share, as a space of them needs it
    ]
)
DECODED = pa.schema([("reference_pixels", pa.list_(pa.binary())), ("n_pictures", pa.int32())])  # (S, S, 3) uint8 each
TRAINED = pa.schema([("weights_file", pa.binary()), ("tuned_pixels", pa.binary()), *TOLD])
LAB: Mapping[str, Any] = {
    "prompt": "a portrait of a person",
    "num_steps": 80,
    "learning_rate": 1.5e-3,
    "batch": 4,
    "falling": 0.3,
    "noisy_share": 0.4,
    "num_inference_steps": 20,
    "guidance_scale": 3.0,
}
"""On lab/unet; measured on 32 drawn people (docs/proofs/weights2weights.md)."""
PAPER: Mapping[str, Any] = {
    "prompt": "sks person",
    "num_steps": 800,
    "learning_rate": 1e-4,
    "batch": 1,
    "falling": 0.0,
    "noisy_share": 0.0,
    "num_inference_steps": 50,
    "guidance_scale": 3.0,
}
MAX_PHOTOS = 64


class IdentityParams(Params):
    """Job parameters; None: as measured for lab bases, else as the authors have it."""

    prompt: str | None = Field(None, min_length=1)  # under which all people are learned
    num_steps: int | None = Field(None, ge=1, le=100_000)
    learning_rate: float | None = Field(None, gt=0)
    batch: int | None = Field(None, ge=1, le=256)  # photographs of a person a step
    falling: float | None = Field(None, ge=0, le=1)  # last share of the steps, over which the learning rate falls to zero
    noisy_share: float | None = Field(None, ge=0, le=1)  # of the photographs, shown at the noisiest tenth of the times
    rank: int = Field(1, ge=1, le=64)
    alpha: float = Field(27.0, gt=0)
    start_seed: int = 0  # of what all people begin with; a space needs one for all
    num_inference_steps: int | None = Field(None, ge=1, le=1000)  # of the picture that shows what was learned
    guidance_scale: float | None = Field(None, ge=0)
    image_size: int | None = Field(None, ge=8, le=4096)  # pixels a side; the base's own where None


def identity(params: IdentityParams, context: Context) -> Pipeline:
    """One row is one person; what comes back is the adapter, a picture made with it, and the curve of its training."""
    kept = pa.schema([*written(context), ("seed", pa.int64())])
    return Pipeline(
        name="weights",
        rows=ROWS,
        one_of=[("reference_images", "reference_image_uris")],
        stages=[
            MapRows("decode", partial(decode, params, context), adds=DECODED, drops=("reference_images",)),
            Replica(
                "train",
                partial(load, params, context),
                request=partial(request, params, context.seed),
                columns=columns,
                adds=TRAINED,
                drops=("reference_pixels",),
                micro_batch=context.micro_batch or 32,
                gpus=1,
            ),
            MapRows("write", partial(_write, params, context), adds=kept, drops=("weights_file", "tuned_pixels")),
        ],
        outputs=pa.schema([*kept, ("n_pictures", pa.int32()), *TOLD]),
        shown=Shown(
            before=None,
            after="tuned",
            references="reference_images",
            scores=[Score("final_loss", "Last loss", higher_is_better=False)],
            group="person_id",
            curve=("curve_steps", "curve"),
        ),
        family="people",
    )


def decode(params: IdentityParams, context: Context, row: Mapping[str, Any]) -> dict[str, Any]:
    """Read a person's photographs; the middle square of each at the base's size. Raises BadRow, ImageBroken, ImageTooLarge, OSError."""
    assert params.image_size is not None
    pixels = []
    for number, given in enumerate(_photographs(row)):
        try:
            data = context.reader.read(given) if isinstance(given, str) else given
            picture = decode_image(data, max_pixels=context.max_pixels)
        except (ValueError, FileNotFoundError) as error:
            raise BadRow(f"photograph {number}: {error}") from error
        pixels.append(resize_square(picture.pixels, params.image_size)[0].tobytes())
    return {"reference_pixels": pixels, "n_pictures": len(pixels)}


def _photographs(row: Mapping[str, Any]) -> Sequence[bytes | str]:
    """Bytes or URIs. Raises BadRow for none, both, gaps or too many."""
    data, uris = row.get("reference_images"), row.get("reference_image_uris")
    if data and uris:
        raise BadRow("give either reference_images or reference_image_uris, not both")
    found = data or uris
    if not found or any(one is None for one in found):
        raise BadRow("a person needs one photograph or more, in reference_images or reference_image_uris, none of them null")
    if len(found) > MAX_PHOTOS:
        raise BadRow(f"{len(found)} photographs of one person; give {MAX_PHOTOS} at most")
    return found


def load(params: IdentityParams, context: Context) -> Identities:
    """The trainer with its frozen base; called in the replica's process."""
    from models.training.identities import Identities

    settings = params.model_dump(exclude={"image_size"})
    return Identities.load(base_folder(context.model), settings)


def base_folder(model: Model) -> Path:
    """Where a job's base lies, of the lab or full-size."""
    return Path(model.sources["base"] if "base" in model.sources else model.sources["folder"])


def request(params: IdentityParams, seed: int, row: Mapping[str, Any]) -> Request:
    """A row as the trainer wants it."""
    import torch

    from models.training.identities import Request

    assert params.image_size is not None
    size = (params.image_size, params.image_size)
    return Request(
        pictures=torch.stack([pictures.to_tensor(data, *size) for data in row["reference_pixels"]]),
        seed=seed_of(row, seed),
        name=name_of(row),
    )


def seed_of(row: Mapping[str, Any], job_seed: int) -> int:
    """The row's seed, else the job's own: people who see the same noise differ by their photographs alone."""
    return job_seed if row.get("seed") is None else int(row["seed"])


def name_of(row: Mapping[str, Any]) -> str:
    """Under which name an adapter is found: the person's, else the row's id."""
    return row.get("person_id") or row["row_id"]


def columns(result: Result) -> dict[str, Any]:
    """The adapter as a file. Raises BadRow where the training diverged: the others of its batch are none the worse."""
    from models.lora_files import lora_bytes

    if not math.isfinite(result.final_loss):
        raise BadRow("the training diverged; lower params.learning_rate, or look at this person's photographs")
    return {
        "weights_file": lora_bytes(result.adapter, result.metadata),
        "tuned_pixels": pictures.from_tensor(result.picture),
        "final_loss": result.final_loss,
        "curve": result.curve,
        "curve_steps": result.curve_steps,
    }


def _write(params: IdentityParams, context: Context, row: Mapping[str, Any]) -> dict[str, Any]:
    return {**write(params.image_size, context, row), "seed": seed_of(row, context.seed)}


def resolve(model: str | Mapping[str, str], accept: Accept) -> Model:
    """The base that people are learned on. Raises ModelNotFound for a model that is no text-to-image base of Stable Diffusion's topology."""
    found = resolve_model("weights/identity", model, accept)
    if not (base_folder(found) / "unet").is_dir():
        raise ModelNotFound(f"model: {found.name} is no base but made for one; people are learned on a base, such as lab/unet")
    return found


def settle(params: IdentityParams, model: Model) -> IdentityParams:
    """The parameters with nothing left open. Raises ValueError for a size that the base can't make."""
    settled = params.settled({**(LAB if model.tier == "lab" else PAPER), "image_size": model.settings["image_size"]})
    check_size(settled.image_size, model)
    return settled


TEMPLATE = job_file(
    "people in as photographs, a rank-1 LoRA each out. Many people train together, in one forward pass.",
    """
  rank: 1                      # of every adapter; a space is made of adapters of one rank
  alpha: 27.0
  start_seed: 0                # what all adapters begin with; never mix adapters of different starts in one space
  # prompt: sks person         # under which people are learned; this and all below: as measured for lab bases, else as the authors have it
  # num_steps: 800
  # learning_rate: 1.0e-4
  # batch: 1                   # photographs of a person a step
  # falling: 0.0               # last share of the steps, over which the learning rate falls to zero
  # noisy_share: 0.0           # of the photographs, shown at the noisiest tenth of the times
  # num_inference_steps: 50    # of the picture that shows what was learned
  # guidance_scale: 3.0
  # image_size: 512            # pixels a side
""",
    kind="weights",
    mode="identity",
    name="people",
    manifest="calotype manifest identity PHOTOS -o manifest.parquet; a folder a person",
    model="""
model: lab/unet                # the base; a full-size one of Stable Diffusion 1.5's layout:
# model: {method: weights2weights, base: /models/realistic-vision-v51}
""",
    seed="of the times and noises, which all people share",
    where="person_id: [anna, boris]",
    media="adapters and pictures",
    block_rows="32",
    rows_together="rows committed together; people of a block train together",
    micro_batch="micro_batch: 32              # people in one forward pass",
    roots="/people",
)

IDENTITY = Kind(
    name="weights",
    mode="identity",
    params=IdentityParams,
    resolve=resolve,
    build=identity,
    settle=settle,
    template=TEMPLATE,
)
