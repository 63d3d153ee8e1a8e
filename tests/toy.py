"""A kind of job whose model is instant and whose rows misbehave on request, for tests of everything around the model."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import KINDS
from pipelines.pipeline import Context, Kind, Model, Params, Pipeline, Score, Shown
from workers.replica import Replica
from workers.rows import Retry
from workers.stage import MapRows


class ToyParams(Params):
    sleep_ms: float = 0.0  # model time of a row
    journal: str = ""  # folder where every executed row leaves a file
    factor: int = 2
    micro_batch: int = 4
    fail_load: bool = False


class ToyModel:
    """Multiplies numbers; a row's `action` says how it misbehaves."""

    def __init__(self, params: ToyParams) -> None:
        if params.fail_load:
            raise RuntimeError("the weights can't be loaded")
        self.params = params

    def __call__(self, rows: Sequence[dict[str, Any]]) -> list[int]:
        for row in rows:
            if self.params.journal:
                with open(Path(self.params.journal) / f"{os.getpid()}", "a") as file:
                    file.write(row["row_id"] + "\n")
            match row["action"]:
                case "raise":
                    raise ValueError(f"{row['row_id']} is bad")
                case "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "hang":
                    time.sleep(3600)
                case "oom" if len(rows) > 1:
                    raise MemoryError("only one at a time")
                case "huge":
                    raise MemoryError("never enough")
                case _:
                    pass
            time.sleep(self.params.sleep_ms / 1e3)
        return [row["number"] * self.params.factor for row in rows]


_TRIES: dict[str, int] = {}


def read(row: dict[str, Any]) -> dict[str, Any]:
    if row["action"] == "flaky":
        _TRIES[row["row_id"]] = _TRIES.get(row["row_id"], 0) + 1
        if _TRIES[row["row_id"]] < 3:
            raise ConnectionError("try again")
    if row["action"] == "missing":
        raise FileNotFoundError(f"{row['row_id']}.jpg is not there")
    return {"text": f"number {row['number']}"}


def build(params: ToyParams, context: Context) -> Pipeline:
    return Pipeline(
        name="toy",
        rows=pa.schema(
            [pa.field("row_id", pa.string(), nullable=False), pa.field("number", pa.int64(), nullable=False), ("action", pa.string())]
        ),
        outputs=pa.schema([("product", pa.int64()), ("text", pa.string())]),
        stages=[
            MapRows("read", read, adds=pa.schema([("text", pa.string())]), retry=Retry(tries=3, wait_s=0.01)),
            Replica(
                "model",
                partial(ToyModel, params),
                request=dict,
                columns=lambda product: {"product": product},
                adds=pa.schema([("product", pa.int64())]),
                micro_batch=params.micro_batch,
            ),
        ],
        shown=Shown(before="image", after="restored", scores=[Score("product", "Product")]),
        sort_by=["number"],
    )


TOY = Kind(
    name="toy",
    params=ToyParams,
    resolve=lambda model, accept: Model(name=str(model), method="toy", tier="lab", sources={}, revision="toy-1"),
    build=build,
    settle=lambda params, model: params,
    template="kind: toy\n",
)
KINDS["toy"] = TOY


def write_manifest(path: Path, rows: int, actions: dict[int, str] | None = None) -> Path:
    actions = actions or {}
    table = pa.table(
        {
            "row_id": [f"row-{i:04}" for i in range(rows)],
            "number": pa.array(range(rows), pa.int64()),
            "action": pa.array([actions.get(i, "ok") for i in range(rows)], pa.string()),
        }
    )
    pq.write_table(table, path)
    return path


def job(folder: Path, rows: int = 24, actions: dict[int, str] | None = None, **keys: Any) -> dict[str, Any]:
    """A job over a fresh manifest in `folder`, as the content of a job file."""
    manifest = folder / "manifest.parquet"
    if not manifest.exists():
        write_manifest(manifest, rows, actions)
    resources = {"block_rows": 4, **keys.pop("resources", {})}
    tracking = {"enabled": False, **keys.pop("tracking", {})}
    return {
        "kind": "toy",
        "name": "toy",
        "manifest": str(manifest),
        "output": str(folder / "out"),
        "model": "toy",
        "engine": "inline",
        **keys,
        "resources": resources,
        "tracking": tracking,
    }
