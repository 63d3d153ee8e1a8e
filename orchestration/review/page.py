"""The review page of a job: one HTML file in its folder, with small pictures beside it, on which someone decides whether the run was good.

Works from file:// and without network: style, script and data stand in the page, and its policy lets nothing else in. All text that came
from manifests travels as JSON and is set as text, never as markup.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np
import yaml

from orchestration.folder import JobFolder, kind_of
from orchestration.review import nights, rows, summary
from orchestration.review.content import Content
from orchestration.review.thumbnails import Thumbnails
from pipelines.pipeline import Score, Shown
from workers import storage

MAX_ROWS = 20_000  # rows with pictures on a page; its numbers are always those of all rows
_SCRIPTS = ("data.js", "compare.js", "sheet.js", "detail.js", "charts.js", "page.js")
_MAX_PIXELS = 120_000_000


def write_review(
    folder: JobFolder,
    shown: Shown,
    *,
    thumb_px: int = 256,
    max_rows: int = MAX_ROWS,
    reader: storage.Reader | None = None,
    against: JobFolder | None = None,
) -> str:
    """Write `review/index.html` and its thumbnails (at most `thumb_px` a side); returns the page's URI.

    Rows that the job reused are on it too, with their pictures from where they lie. `against`: another job, whose pictures stand before those
    of this one, row by row.
    Works on unfinished folders too, and where inputs have moved since: what can't be read is shown as missing. With more than `max_rows`
    rows the page shows failed rows, the lowest and highest scores and a sample, and says so.
    Raises FileNotFoundError for a folder without job.json.
    """
    record = folder.read_json("job.json")
    if record is None:
        raise FileNotFoundError(f"{folder.uri} is no job folder: it has no job.json")
    resources = record["spec"].get("resources") or {}
    if reader is None:
        reader = storage.Reader(tuple(resources.get("allowed_roots") or ()), resources.get("max_file_bytes") or storage.Reader.max_bytes)
    columns = list(dict.fromkeys([*(score.column for score in shown.scores), "model_ms", "n_references"]))
    first = shown.scores[0].column if shown.scores else None
    ended, reused = rows.scan(folder, columns), nights.reused(folder, columns)
    positions = rows.choose(ended, first, max_rows)
    thumbnails = Thumbnails(folder, reader, px=thumb_px, max_pixels=resources.get("max_pixels") or _MAX_PIXELS)
    content = Content(folder, shown, thumbnails)
    for batch in rows.outputs(folder, ended.files, positions):
        content.add_outputs(batch)
    for batch in rows.inputs(folder, ended.hashes[positions]):
        content.add_inputs(batch)
    nights.add_reused(content, reused, first, max_rows - len(positions))
    data = _numbers(folder, record, shown, ended, reused)
    if against is not None:
        changes = nights.compare(content, against, shown.scores)
        data["scores"] += [{**_score(score, _shown_values(content, score.column)), "change": True} for score in changes]
        found = nights.notes(content, against, shown.scores)
        data["verdict"]["notes"] = [asdict(note) for note in found] + data["verdict"]["notes"]
        data["shown"] |= {
            "before": shown.after,
            "labels": {"before": nights.label(against, folder), "after": nights.label(folder, against)},
        }
    thumbnails.close()
    data |= {"rows": content.as_columns(), "run": _run(folder, record, int(ended.failed.sum()))}
    storage.write_atomic(folder.fs, folder.join("review/index.html"), render(data).encode())
    return folder.join_uri("review/index.html")


def render(data: Mapping[str, Any]) -> str:
    """The page for `data` (JSON-able). Its policy allows only its own style and script, by digest, and pictures beside it."""
    here = files("orchestration.review")
    css = here.joinpath("page.css").read_text()
    js = '"use strict";\n(() => {\n' + "\n".join(here.joinpath(name).read_text() for name in _SCRIPTS) + "\n})();\n"
    policy = (
        f"default-src 'none'; img-src 'self' file:; script-src {_digest(js)}; style-src {_digest(css)}; base-uri 'none'; form-action 'none'"
    )
    return Template(here.joinpath("page.html").read_text()).substitute(
        title=html.escape(f"{data['job']['name']} – review"),
        sentence=html.escape(data["verdict"]["sentence"]),
        policy=policy,
        css=css,
        js=js,
        data=script_json(data),
    )


def script_json(value: Any) -> str:
    """JSON that can't end the script element that it stands in; NaN and infinity as null."""
    text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=str)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value


def _digest(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def _numbers(
    folder: JobFolder, record: Mapping[str, Any], shown: Shown, ended: rows.Ended, reused: Sequence[nights.Reused]
) -> dict[str, Any]:
    spec = record["spec"]
    planned, failed = rows.planned(folder), int(ended.failed.sum())
    ok = len(ended.failed) - failed
    time = summary.timing(_metrics(folder))
    replicas = _replicas(record)
    price = (spec.get("resources") or {}).get("price_per_hour")
    again = sum(len(row_ids) for row_ids in folder.reused().values())
    sentence, tone = summary.verdict(planned, ok, failed, finished=folder.finished, reused=again)
    known = [rows.only(part.ended, np.flatnonzero(np.isin(part.ended.hashes, part.ids))) for part in reused]
    return {
        "job": {
            "name": spec["name"],
            "kind": kind_of(spec),
            "folder": folder.uri,
            "created": record.get("created"),
            "finished": (folder.read_json("_manifest.json") or {}).get("finished") if folder.finished else None,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
        },
        "counts": {"planned": planned, "ok": ok, "failed": failed, "reused": again},
        "verdict": {"sentence": sentence, "tone": tone, "notes": [asdict(note) for note in _notes(folder, shown, ended)]},
        "shown": {
            "before": shown.before,
            "after": shown.after,
            "references": shown.references,
            "group": shown.group,
            "text": list(shown.text),
            "strip": list(shown.strip),
            "labels": {"before": "before", "after": "picture" if shown.before is None else "after"},
        },
        "scores": [_score(s, np.concatenate([e.numbers[s.column] for e in (ended, *known)])) for s in shown.scores],
        "model_ms": asdict(summary.distribution(ended.numbers["model_ms"][~ended.failed])),
        "timing": asdict(time),
        "cost": asdict(summary.cost(time, ended.numbers["model_ms"], replicas, price)),
        "failures": [_failure(folder, group) for group in ended.failures],
    }


def _score(score: Score, values: np.ndarray) -> dict[str, Any]:
    return {**asdict(score), "distribution": asdict(summary.distribution(values))}


def _shown_values(content: Content, column: str) -> np.ndarray:
    return np.array([entry["values"].get(column, math.nan) for entry in content.entries], np.float32)


def _notes(folder: JobFolder, shown: Shown, ended: rows.Ended) -> list[summary.Note]:
    """What deserves a look, most important first."""
    notes = [
        summary.Note(f"{summary.plural(group.count, 'row')} failed with {group.error_type}", {"error_type": group.error_type})
        for group in ended.failures[:3]
    ]
    for score in shown.scores:
        values = ended.numbers[score.column]
        limit = summary.outlier_limit(values, higher_is_better=score.higher_is_better)
        if limit is not None:
            beyond = values < limit if score.higher_is_better else values > limit
            if beyond.any():
                side = "below" if score.higher_is_better else "above"
                span = {"high": limit} if score.higher_is_better else {"low": limit}
                many = summary.plural(int(beyond.sum()), "row stands out", "rows stand out")
                text = f"{many} in {score.label.lower()}: {side} {limit:.3g}"
                notes.append(summary.Note(text, {"column": score.column, **span}))
    without = int((ended.numbers["n_references"] == 0).sum())
    if shown.references and without:
        notes.append(summary.Note(f"{summary.plural(without, 'row')} had no usable reference", {"column": "n_references", "high": 0.5}))
    reused = folder.reused()
    if reused:
        jobs = summary.plural(len(reused), "earlier job")
        many = summary.plural(sum(map(len, reused.values())), "row is reused", "rows are reused")
        notes.append(summary.Note(f"{many} from {jobs}", {"column": "reused", "low": 0.5}))
    again = int((ended.generation > 0).sum())
    if again:
        notes.append(summary.Note(f"{summary.plural(again, 'row comes', 'rows come')} from a retry", {"column": "generation", "low": 0.5}))
    void = sum(len(entry["row_ids"]) for entry in (folder.read_json("_manifest.json") or {}).get("void", [])) if folder.finished else 0
    if void:
        notes.append(summary.Note(f"{summary.plural(void, 'row')} had been committed by two drivers; the first copy of each counts"))
    return notes


def _failure(folder: JobFolder, group: rows.FailureGroup) -> dict[str, Any]:
    patterns = sorted(group.patterns.values(), key=lambda p: -p.count)
    return {
        "error_type": group.error_type,
        "stage": group.stage,
        "count": group.count,
        "what_to_do": summary.what_to_do(group.error_type),
        "retry": f"calotype retry {shlex.quote(folder.uri)} --error-type {shlex.quote(group.error_type)}",
        "texts": [asdict(pattern) for pattern in patterns],
    }


def _metrics(folder: JobFolder) -> list[dict[str, Any]]:
    try:
        lines = folder.fs.cat_file(folder.join("metrics.jsonl")).splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.strip()]


def _replicas(record: Mapping[str, Any]) -> int:
    """Replicas of the last driver that noted them, else as the job file asks, else one."""
    noted = [attempt["replicas"] for attempt in record.get("attempts", []) if isinstance(attempt.get("replicas"), int)]
    asked = (record["spec"].get("resources") or {}).get("replicas")
    return noted[-1] if noted else asked if isinstance(asked, int) else 1


def _run(folder: JobFolder, record: Mapping[str, Any], failed: int) -> dict[str, Any]:
    attempts: Sequence[Mapping[str, Any]] = record.get("attempts", [])
    place = shlex.quote(folder.uri)
    commands = [
        ["Write this page again", f"calotype review {place}"],
        ["Beside the job before it", f"calotype review {place} --against last"],
    ]
    if folder.finished:
        commands.insert(0, ["Check that nothing is lost or changed", f"calotype verify {place}"])
        if failed:
            commands.append(["Try the failed rows again", f"calotype retry {place}"])
    else:
        commands.insert(0, ["Go on with this job (save the job file below as job.yaml)", "calotype run job.yaml"])
    return {
        "job_file": yaml.safe_dump(record["spec"], sort_keys=False, allow_unicode=True),
        "fingerprint": record["fingerprint"],
        "parts": {key: value if isinstance(value, str) else json.dumps(value) for key, value in record.get("parts", {}).items()},
        "attempts": [{str(k): str(v) for k, v in attempt.items()} for attempt in attempts],
        "commands": commands,
    }
