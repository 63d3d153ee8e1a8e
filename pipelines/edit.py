"""Editing pictures by prompts, the rest kept: one row is one edit of one source, a real picture or one that is generated from its prompt."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from PIL import Image
from pydantic import Field

from models.methods.vital_layers import find_vital_layers
from pipelines import pictures
from pipelines.base_models import check_size
from pipelines.job_file import job_file
from pipelines.model_source import resolve_model
from pipelines.pipeline import Context, Kind, Model, Params, Pipeline, Score, Shown
from pipelines.rows import BadRow, hashed_seed
from workers.media import Picture, decode_image
from workers.replica import Replica
from workers.stage import MapRows

if TYPE_CHECKING:  # torch is loaded by replicas, never by the driver
    from models.methods.stable_flow import Request, Result, StableFlow

ROWS = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("source_prompt", pa.string(), nullable=False),  # describes the source
        pa.field("edit_prompt", pa.string(), nullable=False),  # describes the wanted picture
        ("image", pa.binary()),  # the source, at most one of the two; neither: it is generated
        ("image_uri", pa.string()),
        ("source_seed", pa.int64()),  # noise that all edits of a source share
        ("height", pa.int32()),  # pixels; the picture's own fitted to the job's area where null
        ("width", pa.int32()),
        ("guidance_scale", pa.float32()),
        ("seed", pa.int64()),  # no part in the noise; see source_seed
    ]
)
DECODED = pa.schema(
    [
        ("pixels", pa.binary()),  # (H, W, 3) uint8 of a real source
        ("real", pa.bool_()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("source_seed", pa.int64()),
        ("source_key", pa.string()),  # rows with equal keys share their source's computation
        ("icc_profile", pa.binary()),
    ]
)
EDITED = pa.schema([("edited_pixels", pa.binary()), ("reference_pixels", pa.binary()), ("inversion_psnr", pa.float32())])
PAPER: Mapping[str, Any] = {
    "num_inference_steps": 15,
    "inversion_steps": 50,
    "guidance_scale": 3.5,
    "real_guidance_scale": 3.0,
    "nudge": 1.15,
    "injection_steps": 1.0,
    "realignment": "aligned",
    "text_padding": "max_length",
    "undo_nudge": False,
}
SCHNELL_STEPS = 4  # of a generated source; the base was distilled for few


class EditParams(Params):
    """Job parameters; None: as the model was made (its card), else as the paper has it."""

    num_inference_steps: int | None = Field(None, ge=1, le=1000)  # of a generated source and its edits
    inversion_steps: int | None = Field(None, ge=1, le=1000)  # of a real source, there and back
    guidance_scale: float | None = Field(None, ge=0)  # of edits of a generated source
    real_guidance_scale: float | None = Field(None, ge=0)  # of edits of a real one
    nudge: float | None = Field(None, gt=0)
    undo_nudge: bool | None = None
    vital_layers: tuple[int, ...] | None = None  # counted through both kinds of blocks; None: as measured for the base
    injection_steps: float | None = Field(None, ge=0, le=1)  # share of the steps, from the first
    realignment: Literal["aligned", "authors_index"] | None = None
    text_padding: Literal["max_length", "packed"] | None = None
    true_cfg: bool | None = None  # guidance by a second pass where the base has no input for it
    compat: tuple[Literal["authors_index"], ...] = ()
    max_edits_per_pass: int = Field(8, ge=1)
    image_size: int | None = Field(None, ge=16, le=4096)  # side of the square whose area a source gets where its row names no size
    return_reference: bool = False
    measure_inversion: bool = True  # of a real source, at the price of one more row
    format: Literal["png", "jpeg", "webp", "tiff"] = "png"
    size_unit: int | None = None  # of which sizes are multiples; the model decides


def edit(params: EditParams, context: Context) -> Pipeline:
    """One row is one edit; what comes back is the edited picture, and how well the source came back from its noise where it was real."""
    outputs = pa.schema(
        [
            *pictures.kept("edited", context.media),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("source_seed", pa.int64()),
            ("source_key", pa.string()),
            ("inversion_psnr", pa.float32()),
            *(pictures.kept("reference_image", context.media) if params.return_reference else ()),
        ]
    )
    encoded = pa.schema([field for field in outputs if field.name.startswith(("edited", "reference_image"))])
    return Pipeline(
        name="edit",
        rows=ROWS,
        sort_by=["source_prompt", "image_uri", "source_seed", "height", "width"],  # the edits of a source are computed together
        stages=[
            MapRows("decode", partial(decode, params, context), adds=DECODED, drops=("image",)),
            Replica(
                "edit",
                partial(load, params, context),
                request=partial(request, params),
                columns=columns,
                adds=EDITED,
                drops=("pixels",),
                micro_batch=context.micro_batch or 16,
                gpus=1,
            ),
            MapRows("encode", partial(encode, params, context), adds=encoded, drops=("edited_pixels", "reference_pixels")),
        ],
        outputs=outputs,
        shown=Shown(
            before="reference_image" if params.return_reference else "image",
            after="edited",
            scores=[Score("inversion_psnr", "Inversion, dB")],
            group="source_prompt",
            text=["source_prompt", "edit_prompt"],
        ),
    )


def decode(params: EditParams, context: Context, row: Mapping[str, Any]) -> dict[str, Any]:
    """Read a real source and fit it, or decide a generated one's size; both get their key. Raises BadRow and what reading raises."""
    for name in ("source_prompt", "edit_prompt"):
        if not row[name].strip():
            raise BadRow(f"{name} is empty; say what the picture shows")
    data = pictures.given(row, "image", context.reader)
    picture = None if data is None else decode_image(data, max_pixels=context.max_pixels)
    height, width = _size(params, row, picture)
    pixels = None if picture is None else _fitted(picture, height, width)
    origin = f"seed {row.get('source_seed')}" if pixels is None else f"image {hashlib.sha256(pixels).hexdigest()}"
    key = hashlib.sha256(f"{row['source_prompt']}\0{height}x{width}\0{origin}".encode()).hexdigest()
    return {
        "pixels": pixels,
        "real": pixels is not None,
        "height": height,
        "width": width,
        "source_seed": hashed_seed(context.seed, key) if row.get("source_seed") is None else row["source_seed"],
        "source_key": key,
        "icc_profile": None if picture is None else picture.icc_profile,
    }


def _size(params: EditParams, row: Mapping[str, Any], picture: Picture | None) -> tuple[int, int]:
    """Height and width of the source, which all its edits have: as the row says, else the picture's shape on the job's area."""
    assert params.image_size is not None
    assert params.size_unit is not None
    unit, height, width = params.size_unit, row.get("height"), row.get("width")
    if (height is None) != (width is None):
        raise BadRow("give both height and width, or neither")
    if height is not None and width is not None:
        if height < unit or width < unit or height % unit or width % unit:
            raise BadRow(f"height {height}, width {width}: both must be multiples of {unit}")
        if picture is not None and (picture.height, picture.width) != (height, width):
            raise BadRow(
                f"the picture has {picture.width} x {picture.height} pixels, width and height say {width} x {height}; leave them out to have it fitted"
            )
        return height, width
    shape = 1.0 if picture is None else math.sqrt(picture.height / picture.width)
    return (max(unit, unit * round(params.image_size * shape / unit)), max(unit, unit * round(params.image_size / shape / unit)))


def _fitted(picture: Picture, height: int, width: int) -> bytes:
    if (picture.height, picture.width) == (height, width):
        return picture.pixels.tobytes()
    return np.asarray(Image.fromarray(picture.pixels).resize((width, height), Image.Resampling.LANCZOS)).tobytes()


def load(params: EditParams, context: Context) -> StableFlow:
    """The method with its networks; called in the replica's process."""
    from models.methods.stable_flow import StableFlow

    own = ("vital_layers", "true_cfg", "compat", "max_edits_per_pass", "return_reference", "measure_inversion")
    names = [name for name in (*PAPER, *own) if name != "real_guidance_scale"]  # that one comes with each request
    accepted = context.model.tier == "full"  # resolving the model has asked for it
    return StableFlow.load(context.model.sources, settings={name: getattr(params, name) for name in names}, accept_noncommercial=accepted)


def request(params: EditParams, row: Mapping[str, Any]) -> Request:
    """A row as the method wants it; what guides it depends on whether its source is real."""
    from models.methods.stable_flow import Request

    real = row["real"]
    guidance_scale = row.get("guidance_scale")
    if guidance_scale is None:
        guidance_scale = params.real_guidance_scale if real else params.guidance_scale
    return Request(
        source_prompt=row["source_prompt"],
        edit_prompt=row["edit_prompt"],
        image=pictures.to_tensor(row["pixels"], row["height"], row["width"]) if real else None,
        image_key=row["source_key"] if real else "",
        source_seed=row["source_seed"],
        height=row["height"],
        width=row["width"],
        guidance_scale=guidance_scale,
    )


def columns(result: Result) -> dict[str, Any]:
    """The edited picture, and the source as the model makes it, as uint8 pixels."""
    reference = None if result.reference is None else pictures.from_tensor(result.reference)
    return {"edited_pixels": pictures.from_tensor(result.edited), "reference_pixels": reference, "inversion_psnr": result.inversion_psnr}


def encode(params: EditParams, context: Context, row: Mapping[str, Any]) -> dict[str, Any]:
    """The edited picture as a file that says how it came about; written before the row is committed."""
    size = (row["height"], row["width"])
    keep = partial(
        pictures.keep,
        row_id=row["row_id"],
        context=context,
        format=params.format,
        source=row.get("image_uri"),
        generated=not row["real"],
        icc_profile=row["icc_profile"],
    )
    out = keep(pictures.to_pixels(row["edited_pixels"], *size), "edited")
    if params.return_reference:
        out |= keep(pictures.to_pixels(row["reference_pixels"], *size), "reference_image", label="reference")
    return out


def settle(params: EditParams, model: Model) -> EditParams:
    """The parameters with nothing left open. Raises ValueError where the model can't do what is asked.

    Without `vital_layers` of its own a job takes the measured ones; where there are none for just this base it is refused with the command
    that measures them (VitalLayersUnknown).
    """
    few = {"num_inference_steps": SCHNELL_STEPS} if model.tier == "full" and model.settings["family"] == "flux-schnell" else {}
    decided: dict[str, Any] = {"size_unit": model.settings["size_unit"]}
    if "authors_index" in params.compat:
        decided["realignment"] = "authors_index"
    if params.vital_layers is None:
        folder = Path(model.sources["base"] if "base" in model.sources else model.sources["folder"])
        decided["vital_layers"] = find_vital_layers(folder, Path(file) if (file := model.sources.get("vital_layers")) else None)
    settled = params.settled({**PAPER, **few, "true_cfg": model.tier == "lab", **model.settings}, **decided)
    check_size(settled.image_size, model)
    return settled


TEMPLATE = job_file(
    "pictures edited by prompts, everything else kept. Sources are pictures of yours, or are generated from their prompts.",
    """
  return_reference: false      # true: also the source as the model makes it
  max_edits_per_pass: 8        # edits of a source that share one pass with it
  format: png                  # or jpeg, webp, tiff
  # vital_layers: [0, 1, 17]   # layers that share keys and values; else as `calotype train vital-layers` measured them
  # injection_steps: 1.0       # share of the steps in which they do; less lets an edit change more
  # num_inference_steps: 15    # of generated sources; this and all below: as the model was made, else as the paper has it
  # inversion_steps: 50        # of real ones, there and back
  # guidance_scale: 3.5
  # real_guidance_scale: 3.0
  # nudge: 1.15                # factor of a real source's latents
  # image_size: 1024           # side of the square whose area a source without height and width gets
""",
    kind="edit",
    name="edits",
    manifest="calotype manifest edit --sources S --edits E -o manifest.parquet",
    model="""
model: lab/mmdit               # calotype models lists them; a full-size one:
# model: {method: stable_flow, base: /models/FLUX.1-schnell}
# accept_noncommercial: true   # FLUX.1-dev and what is made from it may be used for nothing else
""",
    seed="a generated source without source_seed gets one from its prompt, size and this",
    where="source_prompt: [a red star]",
    roots="/archive",
)

EDIT = Kind(
    name="edit",
    params=EditParams,
    resolve=partial(resolve_model, "edit"),
    build=edit,
    settle=settle,
    template=TEMPLATE,
)
