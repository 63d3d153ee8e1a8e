"""A small job folder of the documented layout, with pictures, made without an engine: what tracking reads."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from orchestration import finalize
from orchestration.folder import JobFolder
from orchestration.ledger import BlockWriter
from pipelines.pipeline import Pipeline, Score, Shown
from workers import storage
from workers.artifacts import artifact_name
from workers.guard import CONTRACT

OUTPUTS = pa.schema([("restored_uri", pa.string()), ("identity_similarity", pa.float32())])
PIPELINE = Pipeline(
    name="restore",
    rows=pa.schema([pa.field("row_id", pa.string(), nullable=False)]),
    outputs=OUTPUTS,
    stages=[],
    shown=Shown("image", "restored", "reference_images", scores=[Score("identity_similarity", "Identity similarity")]),
    facts={"attention": "sdpa"},
)
FINGERPRINT = "ab" * 32


def picture(color: tuple[int, int, int], side: int = 24) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (side, side), color).save(sink, "PNG")
    return sink.getvalue()


class JobInTheMaking:
    """Rows 0, 1, … of which every `failing`-th fails; `commit` ends rows, `point` notes progress, `seal` finishes the job."""

    def __init__(self, output: str, rows: int = 20, failing: int = 10, **spec: Any) -> None:
        self.folder = JobFolder(storage.join(output, f"night-{FINGERPRINT[:12]}"))
        self.rows, self.failing, self.points, self.ended = rows, failing, list[dict[str, Any]](), 0
        self.job: dict[str, Any] = {
            "spec": {
                "kind": "restore",
                "name": "night",
                "manifest": f"{output}/night.parquet",
                "output": output,
                "model": "lab/instant-restore",
                "engine": "inline",
                "seed": 7,
                "resources": {"replicas": "auto"},
                **spec,
            },
            "fingerprint": FINGERPRINT,
            "parts": {"params": {"timestep": 249}, "model_revision": "c0ffee", "manifest": "d1" * 32, "code": "0.1.0+abc"},
            "created": "2026-11-24T00:00:00+00:00",
            "plans": [],
            "attempts": [],
        }
        self.plan([self.row_id(i) for i in range(rows)])

    def row_id(self, index: int) -> str:
        return f"row-{index:03}"

    def plan(self, row_ids: list[str]) -> None:
        reference = picture((40, 120, 200))
        table = pa.table(
            {
                "row_id": row_ids,
                "image": [picture((90, 60, 30)) for _ in row_ids],
                "reference_images": pa.array([[reference, reference] for _ in row_ids], pa.list_(pa.binary())),
            }
        )
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        generation = len(self.job["plans"])
        name = self.folder.join(f"plan/gen-{generation}/part-000.parquet")
        storage.write_atomic(self.folder.fs, name, sink.getvalue().to_pybytes())
        self.job["plans"].append({"rows": len(row_ids), "block_rows": 4, "rejected": 0})
        self.folder.write_json("job.json", self.job)

    def begin(self, engine: str = "inline") -> dict[str, Any]:
        """A driver starts: job.json as `Tracker.start` gets it."""
        self.job["attempts"].append({"engine": engine})
        self.folder.write_json("job.json", self.job)
        return json.loads(json.dumps(self.job))

    def commit(self, rows: int, error: str = "the JPEG ends too early") -> None:
        """End the next rows of generation 0."""
        self._commit(range(self.ended, self.ended + rows), 0, error)
        self.ended += rows

    def retry(self, rows: list[int]) -> None:
        """The next generation: these rows end well now."""
        self.folder.fs.rm_file(self.folder.join("_SUCCESS"))
        self.plan([self.row_id(i) for i in rows])
        self._commit(rows, len(self.job["plans"]) - 1, None)

    def _commit(self, rows: Any, generation: int, error: str | None) -> None:
        table = []
        for index in rows:
            failed, row_id = error is not None and index % self.failing == self.failing - 1, self.row_id(index)
            uri = artifact_name(row_id, "png")
            if not failed:
                storage.write_atomic(self.folder.fs, self.folder.join(uri), picture((10 * index % 255, 160, 90)))
            table.append(
                {
                    "row_id": row_id,
                    "restored_uri": None if failed else uri,
                    "identity_similarity": None if failed else index / self.rows,
                    "status": "failed" if failed else "ok",
                    "error_type": "ImageBroken" if failed else None,
                    "error": error if failed else None,
                    "stage": "decode" if failed else None,
                    "attempts": 1,
                    "model_ms": 0.0 if failed else 5.0 + index,
                }
            )
        BlockWriter(self.folder, generation).commit(pa.Table.from_pylist(table, pa.schema([("row_id", pa.string()), *OUTPUTS, *CONTRACT])))

    def point(self, done: int, seconds: float, generation: int = 0, t: float | None = None) -> dict[str, Any]:
        """A line of metrics.jsonl."""
        failed = done // self.failing if generation == 0 else 0
        point = {
            "t": 1_790_000_000.0 + 100 * len(self.points) if t is None else t,
            "generation": generation,
            "planned": self.rows,
            "done": done,
            "ok": done - failed,
            "failed": failed,
            "seconds": seconds,
            "rows_per_s": done / seconds,
        }
        self.points.append(point)
        lines = "".join(json.dumps(p) + "\n" for p in self.points)
        storage.write_atomic(self.folder.fs, self.folder.join("metrics.jsonl"), lines.encode())
        return point

    def seal(self) -> dict[str, Any]:
        """Finish the job: its summary as `Tracker.finish` gets it."""
        tally = finalize.seal(self.folder)
        return {
            "folder": self.folder.uri,
            "planned": tally.planned,
            "ok": tally.ok,
            "failed": tally.failed,
            "executed": tally.planned,
            "rejected": 0,
            "generation": len(self.job["plans"]) - 1,
            "seconds": 12.0,
            "rows_per_s": 2.0,
            "review": self.folder.join("review/index.html"),
        }


def night(tmp_path: Path, **keys: Any) -> JobInTheMaking:
    return JobInTheMaking(str(tmp_path / "out"), **keys)
