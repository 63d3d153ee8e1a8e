"""What both modes of kind translate share: a concept's pairs of pictures in, its trained weights and pictures of them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.catalog import ModelNotFound, read_card
from pipelines import pictures
from pipelines.model_source import fetch, revision_of
from pipelines.pipeline import Accept, Context, Model
from pipelines.rows import BadRow, row_seed
from pipelines.translators import METHOD, folder_of, resolve_denoiser
from workers.crops import resize_square
from workers.media import Pixels, decode_image

if TYPE_CHECKING:  # torch is loaded by replicas, never by the driver
    from models.training.translators import Result

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
KEPT_OF_MADE = tuple(name for name in MADE.names if name not in ("made", "shown"))
FEWEST = 8  # pairs


def outputs(media: str, shown: Sequence[str]) -> pa.Schema:
    """The columns that a row adds: its weights, the pictures in `shown`, and how training went."""
    kept = [field for column in ("weights", *shown) for field in pictures.kept(column, media)]
    return pa.schema([*kept, ("seed", pa.int64()), *(MADE.field(name) for name in KEPT_OF_MADE)])


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
        before, after = (_pixels(context, what, data, number) for what, data in (("input", source), ("target", target)))
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
    if row.get("input_images") is not None:
        return row["input_images"], row.get("target_images") or []
    read = context.reader.read
    return [read(uri) for uri in row["input_image_uris"]], [read(uri) for uri in row.get("target_image_uris") or []]


def _pixels(context: Context, what: str, data: bytes, number: int) -> Pixels:
    try:
        return decode_image(data, max_pixels=context.max_pixels).pixels
    except (ValueError, TypeError) as error:
        raise BadRow(f"{what} image {number}: {error}") from error


def asked(context: Context, row: Mapping[str, Any]) -> dict[str, Any]:
    """What a request of either mode holds."""
    return {
        "concept": row["concept"],
        "sources": stacked(row["source_pixels"], row["pairs"], context),
        "targets": stacked(row["target_pixels"], row["pairs"], context),
        "seed": row_seed(row, context.seed),
        "target_l1": row.get("target_l1"),
        "max_seconds": row.get("max_seconds"),
        "said": {"row_id": row["row_id"], "job": context.job, "model": context.model.name, "model_revision": context.model.revision},
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


def encode(context: Context, shown: Sequence[str], row: Mapping[str, Any]) -> dict[str, Any]:
    """Write weights and pictures; before the row is committed. `shown`: which of input, start, tuned and target."""
    side = context.model.settings["image_size"]
    out: dict[str, Any] = {"seed": row_seed(row, context.seed)}
    out |= pictures.keep_file(row["made"], "weights", row["row_id"], context, extension="safetensors")
    for column, data in zip(("input", "start", "tuned", "target"), row["shown"], strict=True):
        if column in shown:
            out |= pictures.keep(pictures.to_pixels(data, side, side), column, row["row_id"], context, label=column)
    return out


def resolve_translator(model: str | Mapping[str, str], accept: Accept) -> Model:
    """A base translator, as lab/translator or {method: neural_weights, base: folder}; or a weight denoiser with its base, for generated starts.

    `sources` are `base`, and `checkpoint` where there is a denoiser. Raises ModelNotFound.
    """
    if not isinstance(model, str) and model.get("checkpoint") is not None:
        return resolve_denoiser(model, accept)
    if isinstance(model, str):
        folder, tier = folder_of(model), read_card(folder_of(model)).tier
    else:
        if str(model["method"]).replace("-", "_") != METHOD:
            raise ModelNotFound(f"model.method: translators are trained by {METHOD}, not {model['method']}")
        if unused := sorted(model.keys() - {"method", "base", "checkpoint"}):
            raise ModelNotFound(f"model.{unused[0]}: {METHOD} takes base and checkpoint; leave it out")
        folder, tier = fetch(model["base"]), "full"
    if (folder / "layout.json").is_file():
        return resolve_denoiser(str(folder), accept)
    card = read_card(folder)
    if not (folder / "generator.safetensors").is_file():
        raise ModelNotFound(f"model: {folder} is a model for {card.method}, no translator; name lab/translator or lab/weight-denoiser")
    sources: dict[str, Path] = {"base": folder}
    return Model(
        name=card.name if isinstance(model, str) else f"{METHOD} ({model['base']})",
        method=METHOD,
        tier=tier,
        sources={key: str(path) for key, path in sources.items()},
        revision=revision_of(sources),
        settings={"image_size": int(card.facts["image_size"])},
    )
