"""Two kinds of job that exist to be measured: portraits through a small convolutional net of a chosen cost, and numbers that cost nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import KINDS
from pipelines.pipeline import Context, Kind, Model, Params, Pipeline, Score, Shown
from workers.media import decode_image, encode_image
from workers.replica import Replica
from workers.stage import MapRows

SIDE = 64  # pixels of a portrait's side
MICRO_BATCH = 16
CHANNELS = 32


class PortraitParams(Params):
    depth: int = 1  # 3x3 convolutions of 32 channels at full resolution: the model's cost


class ConvNet:
    """pixels (N,64,64,3) uint8 -> the same shape, through `depth` 3x3 convolutions with fixed random weights. Real work, no meaning."""

    def __init__(self, depth: int) -> None:
        import torch

        generator = torch.Generator().manual_seed(0)
        self.inner = [torch.randn(CHANNELS, CHANNELS, 3, 3, generator=generator) / (9 * CHANNELS) ** 0.5 for _ in range(depth)]
        self.first = torch.randn(CHANNELS, 3, 3, 3, generator=generator) / 27**0.5
        self.last = torch.randn(3, CHANNELS, 3, 3, generator=generator) / (9 * CHANNELS) ** 0.5

    def __call__(self, pixels: Sequence[np.ndarray]) -> list[np.ndarray]:
        import torch
        from torch.nn.functional import conv2d

        with torch.inference_mode():
            x_N3HW = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 127.5 - 1
            h_NCHW = conv2d(x_N3HW, self.first, padding=1)
            for weight in self.inner:
                h_NCHW = conv2d(h_NCHW, weight, padding=1).relu_()
            y_N3HW = conv2d(h_NCHW, self.last, padding=1).tanh()
            return list(y_N3HW.add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).contiguous().numpy())


def decode(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row's picture as pixels."""
    return {"pixels": decode_image(row["image"]).pixels.tobytes()}


def to_array(row: Mapping[str, Any]) -> np.ndarray:
    """What the net takes of a row: (64,64,3) uint8."""
    return np.frombuffer(row["pixels"], np.uint8).reshape(SIDE, SIDE, 3)


def encode(row: Mapping[str, Any]) -> dict[str, Any]:
    """The net's pixels as the bytes of a JPEG."""
    return {"restored": encode_image(np.frombuffer(row["made"], np.uint8).reshape(SIDE, SIDE, 3), "jpeg")}


def portraits(params: PortraitParams, context: Context) -> Pipeline:
    return Pipeline(
        name="bench-portraits",
        rows=pa.schema([pa.field("row_id", pa.string(), nullable=False), pa.field("image", pa.binary(), nullable=False)]),
        outputs=pa.schema([("restored", pa.binary())]),
        stages=[
            MapRows("decode", decode, adds=pa.schema([("pixels", pa.binary())]), drops=("image",)),
            Replica(
                "model",
                partial(ConvNet, params.depth),
                request=to_array,
                columns=lambda made: {"made": made.tobytes()},
                adds=pa.schema([("made", pa.binary())]),
                drops=("pixels",),
                micro_batch=MICRO_BATCH,
            ),
            MapRows("encode", encode, adds=pa.schema([("restored", pa.binary())]), drops=("made",)),
        ],
        shown=Shown(before="image", after="restored"),
    )


def write_portraits(path: Path, rows: int, different: int = 32) -> None:
    """A manifest of drawn people as JPEGs of 64 px, `different` of them over and over."""
    import torch

    from models.lab.people import random_identity, random_view
    from models.lab.portraits import draw_portrait

    generator = torch.Generator().manual_seed(0)
    drawn = [draw_portrait(random_identity(generator), random_view(generator), SIDE).image for _ in range(different)]
    pictures = [encode_image(np.asarray(image.convert("RGB")), "jpeg") for image in drawn]
    ids = [f"portrait-{i:06}" for i in range(rows)]
    pq.write_table(pa.table({"row_id": ids, "image": pa.array([pictures[i % different] for i in range(rows)], pa.binary())}), path)


class NumberParams(Params):
    pass


def square(row: Mapping[str, Any]) -> dict[str, Any]:
    """The cheapest row there is."""
    return {"squared": row["number"] ** 2}


def numbers(params: NumberParams, context: Context) -> Pipeline:
    return Pipeline(
        name="bench-numbers",
        rows=pa.schema(
            [
                pa.field("row_id", pa.string(), nullable=False),
                pa.field("number", pa.int64(), nullable=False),
                ("group", pa.string()),  # null in some manifests, as person_id may be
            ]
        ),
        outputs=pa.schema([("squared", pa.int64())]),
        stages=[MapRows("square", square, adds=pa.schema([("squared", pa.int64())]), threads=1)],
        shown=Shown(before="image", after="restored", scores=[Score("squared", "Square")]),
        sort_by=["group"],
    )


def write_numbers(path: Path, rows: int, *, groups: bool, batch: int = 50_000) -> None:
    """A manifest of numbers, written batch by batch; eight rows a group, or no group at all."""
    schema = pa.schema([("row_id", pa.string()), ("number", pa.int64()), ("group", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, batch):
            span = range(start, min(start + batch, rows))
            group = [f"group-{i // 8:07}" if groups else None for i in span]
            writer.write_table(pa.table({"row_id": [f"row-{i:08}" for i in span], "number": list(span), "group": group}, schema=schema))


def _kind(name: str, params: type[Params], build: Any) -> Kind:
    return Kind(
        name=name,
        params=params,
        resolve=lambda model, accept: Model(name=str(model), method=name, tier="lab", sources={}, revision=f"{name}-1"),
        build=build,
        settle=lambda asked, model: asked,
        template=f"kind: {name}\n",
    )


KINDS["bench-portraits"] = _kind("bench-portraits", PortraitParams, portraits)
KINDS["bench-numbers"] = _kind("bench-numbers", NumberParams, numbers)
