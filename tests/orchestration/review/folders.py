"""Job folders of the documented layout, made by hand, with drawn faces: what the review page is tested on."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFilter

from orchestration.folder import JobFolder
from pipelines.pipeline import Score, Shown
from workers.artifacts import artifact_name

SHOWN = Shown(
    before="image", after="restored", references="reference_images", scores=(Score("identity_similarity", "Identity"),), group="person_id"
)


def face(person: int, *, side: int = 48, blurred: bool = False) -> bytes:
    """A drawn face as PNG bytes; one person always looks the same."""
    rng = np.random.default_rng(person)
    skin, hair, back = (tuple(int(c) for c in rng.integers(60, 230, 3)) for _ in range(3))
    image = Image.new("RGB", (side, side), back)
    draw = ImageDraw.Draw(image)
    draw.ellipse((side * 0.2, side * 0.1, side * 0.8, side * 0.6), fill=hair)
    draw.ellipse((side * 0.25, side * 0.2, side * 0.75, side * 0.9), fill=skin)
    for x in (0.38, 0.62):
        draw.ellipse((side * x - 2, side * 0.45 - 2, side * x + 2, side * 0.45 + 2), fill=(20, 20, 20))
    draw.arc((side * 0.38, side * 0.55, side * 0.62, side * 0.78), 20, 160, fill=(120, 30, 30), width=2)
    if blurred:
        image = image.filter(ImageFilter.GaussianBlur(2.5))
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def row(row_id: str, **values: Any) -> dict[str, Any]:
    """One ended row: outputs and contract columns, ok unless `status` says otherwise."""
    return {"row_id": row_id, "status": "ok", "person_id": "person-0", "identity_similarity": 0.6, "n_references": 1, **values}


def people(count: int, *, failed: int = 0, persons: int = 12) -> list[dict[str, Any]]:
    """`count` rows of several persons, the last `failed` of them failed; identity rises from 0.2 to 0.9 over the rows."""
    found = []
    for i in range(count):
        one = row(
            f"photo-{i:05}",
            person_id=f"person-{i % persons:02}",
            identity_similarity=0.2 + 0.7 * i / max(count - 1, 1),
            model_ms=20.0 + i % 7,
        )
        if i >= count - failed:
            one |= {
                "status": "failed",
                "identity_similarity": None,
                "error_type": "ImageBroken",
                "error": f"photo-{i:05}.jpg breaks off",
                "stage": "decode",
            }
        found.append(one)
    return found


def job_folder(
    root: Path,
    rows: Sequence[dict[str, Any]],
    *,
    finished: bool = True,
    more_planned: int = 0,
    distinct: int = 12,
    spec: dict[str, Any] | None = None,
) -> JobFolder:
    """Write a folder in which `rows` have ended (and `more_planned` have not); a row's person decides its pictures, `distinct` of them."""
    photos = root / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    for number in range(distinct):
        (photos / f"{number}-old.png").write_bytes(face(number, blurred=True))
        (photos / f"{number}-reference.png").write_bytes(face(number + 1000))
    folder = JobFolder(str(root / "faces-0123456789ab"))
    _write_plan(folder, rows, more_planned, photos, distinct)
    _write_block(folder, 0, "a_000000_000000", rows, distinct)
    record = {
        "format": 1,
        "spec": {
            "kind": "restore",
            "name": "faces",
            "manifest": str(root / "manifest.parquet"),
            "engine": "inline",
            "resources": {},
            **(spec or {}),
        },
        "fingerprint": "0123456789ab" + "0" * 52,
        "parts": {"kind": "restore", "params": {"timestep": 249}, "code": "0.1.0+abc"},
        "created": "2026-11-24T06:00:00+00:00",
        "plans": [{"rows": len(rows) + more_planned}],
        "attempts": [{"started": "2026-11-24T06:00:01+00:00", "engine": "inline", "generation": 0}],
    }
    folder.write_json("job.json", record)
    points = [
        {"t": 100.0 + s, "generation": 0, "seconds": s, "done": len(rows) * s // 10, "ok": 0, "failed": 0, "rows_per_s": len(rows) / 10}
        for s in (5, 10)
    ]
    Path(folder.join("metrics.jsonl")).write_text("".join(json.dumps(p) + "\n" for p in points))
    if finished:
        seal(folder)
    return folder


def retry(folder: JobFolder, rows: Sequence[dict[str, Any]]) -> None:
    """Add a generation in which `rows` ended again."""
    generation = len(folder.generations())
    _write(folder, f"plan/gen-{generation}/part-00000.parquet", pa.table({"row_id": [r["row_id"] for r in rows]}))
    _write_block(folder, generation, f"b_{generation:06}_000000", rows, 12)
    seal(folder)


def seal(folder: JobFolder, void: Sequence[dict[str, Any]] = ()) -> None:
    """Write _manifest.json and _SUCCESS over what is there."""
    generations = [{"generation": g, "files": [{"path": name} for name in folder.files("data", f"gen-{g}")]} for g in folder.generations()]
    folder.write_json("_manifest.json", {"generations": generations, "void": list(void), "finished": "2026-11-24T06:10:00+00:00"})
    Path(folder.join("_SUCCESS")).write_text("x\n")


def _write_plan(folder: JobFolder, rows: Sequence[dict[str, Any]], more: int, photos: Path, distinct: int) -> None:
    ids = [r["row_id"] for r in rows] + [f"later-{i}" for i in range(more)]
    persons = [r["person_id"] for r in rows] + ["person-0"] * more
    numbers = [_number(p, distinct) for p in persons]
    table = pa.table(
        {
            "row_id": ids,
            "image_uri": [
                r.get("image_uri", str(photos / f"{n}-old.png")) for r, n in zip([*rows, *({} for _ in range(more))], numbers, strict=True)
            ],
            "reference_image_uris": [[str(photos / f"{n}-reference.png")] for n in numbers],
            "person_id": persons,
        }
    )
    _write(folder, "plan/gen-0/part-00000.parquet", table)


def _write_block(folder: JobFolder, generation: int, block: str, rows: Sequence[dict[str, Any]], distinct: int) -> None:
    _write(folder, f"ledger/gen-{generation}/{block}.parquet", pa.table({"row_id": [r["row_id"] for r in rows]}))
    for status in ("ok", "failed"):
        mine = [dict(r) for r in rows if r["status"] == status]
        for one in mine:
            one.pop("status")
            person = one.pop("person_id")
            if status == "ok" and "restored" not in one:
                one["restored_uri"] = one.get("restored_uri") or _artifact(folder, one["row_id"], _number(person, distinct))
        if mine:
            names = list(dict.fromkeys(name for one in mine for name in one if name != "image_uri"))
            columns = {name: [one.get(name) for one in mine] for name in names}
            if "identity_similarity" in columns:
                columns["identity_similarity"] = pa.array(columns["identity_similarity"], pa.float32())
            _write(folder, f"data/gen-{generation}/status={status}/{block}-0.parquet", pa.table(columns))


def _artifact(folder: JobFolder, row_id: str, number: int) -> str:
    name = artifact_name(row_id, "png")
    path = Path(folder.join(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(face(number))
    return name


def _number(person: str, distinct: int) -> int:
    return int(hashlib.sha1(person.encode()).hexdigest(), 16) % distinct


def _write(folder: JobFolder, name: str, table: pa.Table) -> None:
    path = Path(folder.join(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
