"""Composing pictures with subjects in their places: from a prompt and a layout to a picture, or to several and the best of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipelines import pictures
from pipelines.base_models import check_size
from pipelines.candidates import Keep, Several, best_of, candidate_columns, rows_a_call
from pipelines.job_file import job_file
from pipelines.layouts import DRAWN, SUBJECT, drawn, indexed_png, packed_mask, placed_subjects, unpacked_mask
from pipelines.model_source import resolve_model
from pipelines.pipeline import Context, Kind, Model, Params, Pipeline, Score, Shown
from pipelines.reader_score import reader_revision, score_by_reader
from pipelines.rows import BadRow, candidate_seed, row_seed
from workers.replica import Replica
from workers.stage import MapRows

if TYPE_CHECKING:  # torch is loaded by replicas, never by the driver
    from models.methods.bounded_attention import Request, Result

ROWS = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),  # contains each subject's phrase
        ("negative_prompt", pa.string()),
        pa.field("subjects", pa.list_(SUBJECT), nullable=False),  # 1-8
        ("height", pa.int32()),  # pixels; the model's own size where null
        ("width", pa.int32()),
        ("guidance_scale", pa.float32()),
        ("seed", pa.int64()),
        ("reference_image_uris", pa.list_(pa.string())),  # of the subjects, for the review page only
        ("subject", pa.string()),  # for the page's filter only
    ]
)
CHECKED = pa.schema(
    [
        ("layout", DRAWN),
        ("occurrences", pa.list_(pa.int32())),
        ("masks", pa.list_(pa.binary())),
        ("height", pa.int32()),
        ("width", pa.int32()),
    ]
)
MADE = pa.schema(
    [
        ("candidate_pixels", pa.list_(pa.binary())),  # (H, W, 3) uint8 each
        ("candidate_losses", pa.list_(pa.float32())),
        ("candidate_iterations", pa.list_(pa.int32())),
        ("candidate_masks", pa.list_(pa.binary())),
        ("token_indices", pa.list_(pa.list_(pa.int32()))),
    ]
)
PAPER: Mapping[str, Any] = {
    "num_inference_steps": 50,
    "guidance_scale": 7.5,
    "guidance_steps": 15,
    "guidance_iterations": 5,
    "step_size": (8.0, 2.0),
    "loss_threshold": 0.2,
    "cross_loss_weight": 1.5,
    "self_loss_weight": 0.5,
    "mask_refinement": True,
    "refine_from": 15,
    "refine_every": 5,
    "clusters_per_subject": 3,
    "kmeans_restarts": 10,
    "overlap": "allow",
}
"""What the authors set, `step_size` for sd15; SDXL has (18, 5)."""


class ComposeParams(Params):
    """Job parameters; None: as the model was made (its card), else as the paper has it."""

    num_inference_steps: int | None = Field(None, ge=1, le=1000)
    guidance_scale: float | None = Field(None, ge=0)
    guidance_steps: int | None = Field(None, ge=0)
    guidance_iterations: int | None = Field(None, ge=0)
    step_size: tuple[float, float] | None = None  # at the first guided step, and where guidance ends
    loss_threshold: float | None = Field(None, ge=0)
    cross_loss_weight: float | None = Field(None, ge=0)
    self_loss_weight: float | None = Field(None, ge=0)
    mask_refinement: bool | None = None
    refine_from: int | None = Field(None, ge=0)
    refine_every: int | None = Field(None, ge=1)
    clusters_per_subject: int | None = Field(None, ge=1)
    kmeans_restarts: int | None = Field(None, ge=1)
    overlap: Literal["allow", "fail"] | None = None
    filter_words: tuple[str, ...] | None = None  # words that name nothing; None: those that came with calotype
    bounded_layers: dict[Literal["loss", "mask"], tuple[int, ...]] | None = None  # None: by the topology of the model's network
    compat: tuple[Literal["full_guidance", "authors_ddim", "raw_rounding"], ...] = ()
    image_size: int | None = Field(None, ge=16, le=4096)  # of rows that name no size
    images_per_row: int = Field(1, ge=1, le=64)
    score: Literal["auto", "none", "loss", "reader"] = "auto"
    keep: Keep = "best"
    return_refined_mask: bool = False
    format: Literal["png", "jpeg", "webp", "tiff"] = "png"
    size_unit: int | None = None  # of which sizes are multiples; the model decides
    reader_revision: str | None = None  # of the lab's reader where it scores; the installation decides


def compose(params: ComposeParams, context: Context) -> Pipeline:
    """One row is one prompt with its layout; what comes back is a picture, the best of `images_per_row`, and how well guidance went."""
    limit = context.micro_batch or 16
    several = params.images_per_row > 1
    outputs = [
        *pictures.kept("image", context.media),
        ("seed", pa.int64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("final_loss", pa.float32()),
        ("guidance_iterations_used", pa.int32()),
        ("token_indices", pa.list_(pa.list_(pa.int32()))),
        ("layout", DRAWN),
        *([("reader_score", pa.float32())] if params.score == "reader" else ()),
        *(pictures.kept("refined_mask", context.media) if params.return_refined_mask else ()),
        *(candidate_columns(params.keep, context.media) if several else ()),
    ]
    encoded = pa.schema([field for field in pa.schema(outputs) if field.name not in ("token_indices", "layout", "height", "width")])
    return Pipeline(
        name="compose",
        rows=ROWS,
        sort_by=["height", "width", "guidance_scale"],  # rows of one size share every call of the network
        stages=[
            MapRows("layout", partial(check, params, context), adds=CHECKED),
            Replica(
                "compose",
                partial(load, params, context, limit),
                request=partial(requests, params, context.seed),
                columns=columns,
                adds=MADE,
                drops=("masks",),
                micro_batch=rows_a_call(limit, params.images_per_row),
                gpus=1,
            ),
            MapRows(
                "encode",
                partial(encode, params, context),
                adds=encoded,
                drops=("candidate_pixels", "candidate_masks"),
                threads=1 if params.score == "reader" else 4,
            ),
        ],
        outputs=pa.schema(outputs),
        shown=Shown(
            before=None,
            after="image",
            references="reference_images",
            scores=_scores(params),
            group="subject",
            text=["prompt"],
            layout="layout",
            others="images" if several and params.keep == "all" else None,
        ),
    )


def check(params: ComposeParams, context: Context, row: Mapping[str, Any]) -> dict[str, Any]:
    """Size and layout of a row, all that can be checked without the model. Raises BadRow, and what reading a mask raises."""
    assert params.image_size is not None
    assert params.size_unit is not None
    if not row["prompt"].strip():
        raise BadRow("prompt is empty; it must contain each subject's phrase")
    size = (row.get("height") or params.image_size, row.get("width") or params.image_size)
    if any(side < params.size_unit or side % params.size_unit for side in size):
        raise BadRow(f"height {size[0]}, width {size[1]}: both must be multiples of {params.size_unit}")
    placed = placed_subjects(row, size, context.reader, context.max_pixels)
    return {
        "layout": drawn(placed),
        "occurrences": [subject.occurrence for subject in placed],
        "masks": [None if subject.mask is None else packed_mask(subject.mask) for subject in placed],
        "height": size[0],
        "width": size[1],
    }


def load(params: ComposeParams, context: Context, limit: int) -> Several:
    """The method with its networks; called in the replica's process."""
    from models.methods.bounded_attention import BoundedAttention

    settings = {name: getattr(params, name) for name in (*PAPER, "filter_words", "bounded_layers", "compat")}
    return Several(BoundedAttention.load(context.model.sources, settings=settings), limit)


def requests(params: ComposeParams, seed: int, row: Mapping[str, Any]) -> list[Request]:
    """A row's pictures as the method wants them, each with its own seed."""
    import torch

    from models.methods.bounded_attention import Request, Subject

    def mask_of(data: bytes | None) -> Any:
        return None if data is None else torch.from_numpy(unpacked_mask(data, row["height"], row["width"]))

    subjects = [
        Subject(
            phrase=placed["phrase"],
            occurrence=occurrence,
            box=tuple(placed["box"]),
            mask=mask_of(mask),
            token_indices=given["token_indices"] or None,
        )
        for placed, occurrence, mask, given in zip(row["layout"], row["occurrences"], row["masks"], row["subjects"], strict=True)
    ]
    return [
        Request(
            prompt=row["prompt"],
            negative_prompt=row.get("negative_prompt") or "",
            subjects=subjects,
            height=row["height"],
            width=row["width"],
            guidance_scale=row.get("guidance_scale"),
            seed=candidate_seed(row_seed(row, seed), number),
        )
        for number in range(params.images_per_row)
    ]


def columns(results: Sequence[Result]) -> dict[str, Any]:
    """A row's pictures as uint8 pixels, with what guidance did to each."""
    return {
        "candidate_pixels": [pictures.from_tensor(result.image) for result in results],
        "candidate_losses": [result.final_loss for result in results],
        "candidate_iterations": [result.guidance_iterations_used for result in results],
        "candidate_masks": [None if r.refined_masks is None else indexed_png(r.refined_masks.cpu().numpy()) for r in results],
        "token_indices": [list(indices) for indices in results[0].token_indices],
    }


def encode(params: ComposeParams, context: Context, row: Mapping[str, Any]) -> dict[str, Any]:
    """Choose the best picture and write it, or all of them, as files that say how they came about; before the row is committed."""
    many = [pictures.to_pixels(data, row["height"], row["width"]) for data in row["candidate_pixels"]]
    read = score_by_reader(np.stack(many), row["layout"]) if params.score == "reader" else [None] * len(many)
    scores = read if params.score == "reader" else row["candidate_losses"]
    best = 0 if params.score == "none" else best_of(scores, higher_is_better=params.score == "reader")
    keep = partial(pictures.keep, row_id=row["row_id"], context=context, format=params.format, generated=True)
    out: dict[str, Any] = {
        "seed": candidate_seed(row_seed(row, context.seed), best),
        "final_loss": row["candidate_losses"][best],
        "guidance_iterations_used": row["candidate_iterations"][best],
        "reader_score": read[best],
        "candidate_scores": scores,
        "best": best,
    }
    if params.images_per_row > 1 and params.keep == "all":
        kept = [keep(pixels, "image", label=str(number)) for number, pixels in enumerate(many)]
        out |= {**kept[best], **pictures.as_list(kept, "images")}
    else:
        out |= keep(many[best], "image")
    if params.return_refined_mask:
        mask = row["candidate_masks"][best]
        out |= _kept_mask(mask, row["row_id"], context)
    return out


def _kept_mask(mask: bytes | None, row_id: str, context: Context) -> dict[str, Any]:
    if mask is None:
        return dict.fromkeys(pictures.kept("refined_mask", context.media).names)
    return pictures.keep_file(mask, "refined_mask", row_id, context, extension="png", label="mask")


def _scores(params: ComposeParams) -> list[Score]:
    loss = [Score("final_loss", "Layout loss", higher_is_better=False)]
    return [Score("reader_score", "Reader"), *loss] if params.score == "reader" else loss


def settle(params: ComposeParams, model: Model) -> ComposeParams:
    """The parameters with nothing left open. Raises ValueError where the model can't do what is asked."""
    by_family = {"step_size": (18.0, 5.0)} if model.settings["family"] == "sdxl" else {}
    score = params.score
    if score == "auto":
        score = "reader" if model.tier == "lab" and reader_revision() is not None else "loss"
    elif score == "reader" and reader_revision() is None:
        raise ValueError("params.score: reader needs the lab's reader, which did not come with this calotype; choose loss or none")
    settled = params.settled(
        {**PAPER, **by_family, **model.settings},
        score=score,
        reader_revision=reader_revision() if score == "reader" else None,
        size_unit=model.settings["size_unit"],
    )
    check_size(settled.image_size, model)
    return settled


TEMPLATE = job_file(
    "pictures from prompts, each subject in its own place.",
    """
  images_per_row: 1            # pictures of one row, each with its own seed
  score: auto                  # which is best: loss (of the layout, lower is better), reader (lab models), none (the first)
  keep: best                   # or all
  overlap: allow               # or fail: boxes that share a word or a cell fail the row
  return_refined_mask: false
  format: png                  # or jpeg, webp, tiff
  # num_inference_steps: 50    # this and all below: as the model was made, else as the paper has it
  # guidance_scale: 7.5
  # guidance_steps: 15         # steps in which the layout pulls at the picture, guidance_iterations times each
  # guidance_iterations: 5
  # step_size: [8, 2]          # how hard, at the first and the last of them
  # mask_refinement: true
""",
    kind="compose",
    mode="layout",
    mode_is="each subject has a box or a mask",
    name="catalog",
    manifest="calotype manifest compose --subjects S --prompts P --layouts L -o manifest.parquet",
    model="""
model: lab/unet                # calotype models lists them; a full-size one:
# model: {method: bounded_attention, base: /models/stable-diffusion-v1-5}
""",
    where="subject: [star]",
    roots="/masks",
)

COMPOSE = Kind(
    name="compose",
    params=ComposeParams,
    resolve=partial(resolve_model, "compose/layout"),
    build=compose,
    settle=settle,
    template=TEMPLATE,
    mode="layout",
)
