"""What both modes of kind translate share: a concept's pairs of pictures in, training, its weights and pictures of them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from pipelines import pictures
from pipelines.pipeline import Context, Params, Score, Shown
from pipelines.rows import BadRow, row_seed
from pipelines.translators import said
from workers.crops import resize_square
from workers.media import Pixels, decode_image

if TYPE_CHECKING:  # torch is loaded by replicas, never by the driver
    from models.training.translators import Result, Translators

COLUMNS = [
    pa.field("row_id", pa.string(), nullable=False),
    pa.field("concept", pa.string(), nullable=False),
    ("input_images", pa.list_(pa.binary())),  # source photographs; these with target_images, the uris of both, or pairs_uri
    ("input_image_uris", pa.list_(pa.string())),
    ("target_images", pa.list_(pa.binary())),  # the same, edited: same length, same order
    ("target_image_uris", pa.list_(pa.string())),
    ("pairs_uri", pa.string()),  # Parquet with columns input_image and target_image
    ("max_seconds", pa.float32()),  # of training, the row's share of its group's
    ("target_l1", pa.float32()),  # mean absolute error in 0..1 on held-out pairs
    ("seed", pa.int64()),
]
PAIRS = pa.schema([("source_pixels", pa.binary()), ("target_pixels", pa.binary()), ("pairs", pa.int32())])  # (P,S,S,3) uint8
MADE = pa.schema(
    [
        ("made", pa.binary()),
        ("shown", pa.list_(pa.binary())),
        ("l1_base", pa.float32()),
        ("l1_start", pa.float32()),
        ("l1_final", pa.float32()),
        ("steps", pa.int32()),
        ("generate_ms", pa.float32()),
        ("finetune_ms", pa.float32()),
        ("reached_target", pa.bool_()),
        ("curve", pa.list_(pa.float32())),
        ("curve_steps", pa.list_(pa.int32())),
        ("base_hash", pa.string()),
    ]
)
TOLD = pa.schema([field for field in MADE if field.name not in ("made", "shown")])  # how training went
FEWEST = 8  # pairs


class TrainingParams(Params):
    """Job parameters of both modes."""

    batch_size: int = Field(8, ge=1)  # pairs a step
    learning_rate: float = Field(2e-2, gt=0)  # of the up-projections; a tenth of it for the down-projections
    eval_fraction: float = Field(0.1, gt=0, lt=1)  # of a row's pairs, at least 4: checked on, not trained on
    group_size: int = Field(16, ge=1, le=512)  # rows trained in one forward pass; decides nothing but speed and memory
    precision: Literal["float32", "float16"] = "float32"  # of the files


def written(context: Context, columns: Sequence[str]) -> pa.Schema:
    """The columns of a row's weights, of the pictures in `columns`, and of its seed."""
    kept = [field for column in ("weights", *columns) for field in pictures.kept(column, context.media)]
    return pa.schema([*kept, ("seed", pa.int64())])


def shown(columns: Sequence[str]) -> Shown:
    """What the review page shows: the pictures in `columns` side by side, and the curve."""
    scores = [Score("l1_final", "Error at the end", higher_is_better=False)]
    return Shown(before="input", after="tuned", scores=scores, text=["concept"], strip=columns, curve=("curve_steps", "curve"))


def decode(context: Context, row: Mapping[str, Any]) -> dict[str, Any]:
    """Read a row's pairs; the middle square of each at the translator's size. Raises BadRow naming the picture."""
    if not row["concept"].strip():
        raise BadRow("concept is empty; write what the pairs show, such as `sepia, ink outlines`")
    sources, targets = _given(context, row)
    if len(sources) != len(targets):
        raise BadRow(f"{len(sources)} input images and {len(targets)} target images; they must be pairs, in the same order")
    if len(sources) < FEWEST:
        raise BadRow(f"{len(sources)} pairs; at least {FEWEST} are needed to train on and check with")
    side = context.model.settings["image_size"]
    parts = list[tuple[Pixels, Pixels]]()
    for number, (source, target) in enumerate(zip(sources, targets, strict=True)):
        before, after = (pixels(context, data, f"{what} image {number}") for what, data in (("input", source), ("target", target)))
        if before.shape != after.shape:
            raise BadRow(f"pair {number}: input is {before.shape[1]} x {before.shape[0]}, target {after.shape[1]} x {after.shape[0]}")
        parts.append((resize_square(before, side)[0], resize_square(after, side)[0]))
    stacked = [np.stack(part).tobytes() for part in zip(*parts, strict=True)]
    return {"source_pixels": stacked[0], "target_pixels": stacked[1], "pairs": len(parts)}


def _given(context: Context, row: Mapping[str, Any]) -> tuple[Sequence[bytes], Sequence[bytes]]:
    """The bytes of all pictures. Raises BadRow unless a row gives its pairs in exactly one way."""
    ways = [row.get("input_images"), row.get("input_image_uris"), row.get("pairs_uri")]
    if sum(way is not None for way in ways) != 1:
        raise BadRow("give input_images and target_images, input_image_uris and target_image_uris, or pairs_uri: one of the three")
    if row.get("pairs_uri") is not None:
        table = pq.read_table(pa.BufferReader(context.reader.read(row["pairs_uri"])))
        if missing := {"input_image", "target_image"} - set(table.column_names):
            raise BadRow(f"{row['pairs_uri']} has no column {', '.join(sorted(missing))}")
        return table["input_image"].to_pylist(), table["target_image"].to_pylist()
    return pictures.given_list(row, "input_images", context.reader), pictures.given_list(row, "target_images", context.reader)


def pixels(context: Context, data: bytes, what: str) -> Pixels:
    """(H,W,3) uint8 of a picture's bytes. Raises BadRow that begins with `what` the picture is."""
    try:
        return decode_image(data, max_pixels=context.max_pixels).pixels
    except (ValueError, TypeError) as error:
        raise BadRow(f"{what}: {error}") from error


def trainer(params: TrainingParams, sources: Mapping[str, str], *, state: str, **plan: Any) -> Translators:
    """The base, ready to train groups, and what generates starts where `sources` hold it; called in the replica's process."""
    from models.training.translations import Settings
    from models.training.translators import Plan, Translators

    settings = Settings(batch=params.batch_size, lr=params.learning_rate)
    return Translators.load(sources, Plan(settings=settings, eval_fraction=params.eval_fraction, **plan), state=state)


def asked(context: Context, row: Mapping[str, Any]) -> dict[str, Any]:
    """What a request of either mode holds."""
    return {
        "concept": row["concept"],
        "sources": stacked(row["source_pixels"], row["pairs"], context),
        "targets": stacked(row["target_pixels"], row["pairs"], context),
        "seed": row_seed(row, context.seed),
        "target_l1": row.get("target_l1"),
        "max_seconds": row.get("max_seconds"),
        "said": said(row, context),
    }


def stacked(data: bytes, count: int, context: Context) -> Any:
    """(N,3,S,S) uint8 of the raw bytes of N pictures between two stages."""
    import torch

    side = context.model.settings["image_size"]
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).reshape(count, side, side, 3).permute(0, 3, 1, 2)


def columns(precision: str, result: Result) -> dict[str, Any]:
    """A trained concept as columns. Raises Diverged, which fails its row."""
    import torch

    from models.lora_files import lora_bytes
    from models.training.translators import Diverged

    trained = result.trained
    if trained.diverged:
        raise Diverged("training left all bounds, at half the learning rate too; set params.learning_rate lower or look at the pairs")
    return {
        "made": lora_bytes(result.lora, result.metadata, getattr(torch, precision)),
        "shown": [pictures.from_tensor(picture) for picture in result.shown],
        "l1_base": result.l1_base,
        "l1_start": trained.curve[0],
        "l1_final": trained.curve[-1],
        "steps": trained.steps,
        "generate_ms": result.generate_ms,
        "finetune_ms": 1e3 * trained.seconds,
        "reached_target": trained.reached,
        "curve": trained.curve,
        "curve_steps": trained.curve_steps,
        "base_hash": result.metadata["base_hash"],
    }


def encode(context: Context, columns: Sequence[str], row: Mapping[str, Any]) -> dict[str, Any]:
    """Write weights and pictures; before the row is committed. `columns`: which of input, start, tuned and target."""
    side = context.model.settings["image_size"]
    out: dict[str, Any] = {"seed": row_seed(row, context.seed)}
    out |= pictures.keep_file(row["made"], "weights", row["row_id"], context, extension="safetensors")
    for column, data in zip(("input", "start", "tuned", "target"), row["shown"], strict=True):
        if column in columns:
            out |= pictures.keep(pictures.to_pixels(data, side, side), column, row["row_id"], context, label=column)
    return out
