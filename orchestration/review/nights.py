"""Other jobs on a job's page: the rows that it reused from them, and the pictures of another night beside tonight's."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from orchestration.folder import JobFolder
from orchestration.review import rows, summary
from orchestration.review.content import Content, link
from orchestration.review.thumbnails import Thumb, thumb_path
from pipelines.pipeline import Score
from workers import ids

LOOKS_DIFFERENT = 2.0  # mean difference of two thumbnails' levels, of 255; JPEG alone makes less
_NOTICED = 1e-4  # a smaller change of a score is rounding


@dataclass(frozen=True)
class Reused:
    """A part of a job's reused rows: the folder that holds their results, hashes of their ids, and what that folder's scan says of them."""

    folder: JobFolder
    ids: np.ndarray
    ended: rows.Ended


def reused(folder: JobFolder, columns: Sequence[str]) -> list[Reused]:
    """The reused rows of a job with their numeric `columns`, by folder; those in a folder that is gone are left out."""
    found = []
    for uri, row_ids in folder.reused().items():
        other = JobFolder(uri)
        if other.finished:
            found.append(Reused(other, ids.hashes(row_ids), rows.scan(other, columns)))
    return found


def add_reused(content: Content, parts: Sequence[Reused], score: str | None, limit: int) -> None:
    """Put at most `limit` reused rows on the page."""
    for part in parts:
        positions = rows.choose(part.ended, score, limit, among=part.ids)
        limit -= len(positions)
        for batch in rows.outputs(part.folder, part.ended.files, positions):
            content.add_outputs(batch, reused_from=part.folder)
        for batch in rows.inputs(part.folder, part.ended.hashes[positions]):
            content.add_inputs(batch)


def label(folder: JobFolder, beside: JobFolder) -> str:
    """What a job is called on a page beside another one: its name, with the fingerprint only where it takes that to tell them apart."""
    name, other = (f.name.rpartition("-")[0] for f in (folder, beside))
    return name if name != other else folder.name


def compare(content: Content, other: JobFolder, scores: Sequence[Score]) -> list[Score]:
    """Put another night's pictures before those on the page, and say in each row's values what changed. Returns the changes as scores.

    Values: `<score>_then`, `<score>_change` (now less then), `picture_change` (mean difference of the thumbnails' levels), `new` (1 for a row
    that the other night did not have), `then` (how it ended there).
    """
    entries = {entry["row_id"]: entry for entry in content.entries}
    for entry in entries.values():
        entry["before"], entry["before_link"] = Thumb("", missing=f"not in {label(other, content.folder)}"), None
        entry["values"] |= {"then": None, "new": 1}
    for place, batch in _ended_in(other, ids.hashes(entries), [score.column for score in scores]):
        batch = [row for row in batch if row["row_id"] in entries]
        pictures = content.make([content.source(row, content.shown.after, place.uri) for row in batch])
        for row, picture in zip(batch, pictures, strict=True):
            entry = entries[row["row_id"]]
            entry["before"], entry["before_link"] = (
                picture or Thumb("", missing="failed there"),
                link(row.get(f"{content.shown.after}_uri"), content.folder, place),
            )
            entry["values"] |= {"then": row["status"], "new": 0, **_changes(entry["values"], row, scores)}
            difference = _difference(content, entry.get("after"), picture)
            if difference is not None:
                entry["values"]["picture_change"] = difference
    changes = [Score(f"{s.column}_change", f"{s.label}, change", s.higher_is_better) for s in scores]
    return [*changes, Score("picture_change", "Picture change", higher_is_better=False)]


def notes(content: Content, other: JobFolder, scores: Sequence[Score]) -> list[summary.Note]:
    """What a comparison found, most important first."""
    entries, name = content.entries, label(other, content.folder)
    found = []
    broke = sum(entry["status"] == "failed" and entry["values"].get("then") == "ok" for entry in entries)
    if broke:
        found.append(summary.Note(f"{summary.plural(broke, 'row')} failed that had been ok in {name}", {"column": "broke", "low": 0.5}))
    for entry in entries:
        entry["values"]["broke"] = 1 if entry["status"] == "failed" and entry["values"].get("then") == "ok" else None
    for score in scores:
        column = f"{score.column}_change"
        values = np.array([entry["values"].get(column, math.nan) for entry in entries], np.float64)
        worse = values < -_NOTICED if score.higher_is_better else values > _NOTICED
        span: dict[str, Any] = {"high": -_NOTICED} if score.higher_is_better else {"low": _NOTICED}
        if worse.any():
            text = f"{summary.plural(int(worse.sum()), 'row is', 'rows are')} worse in {score.label.lower()} than in {name}"
            found.append(summary.Note(text, {"column": column, **span}))
    changed = sum(entry["values"].get("picture_change", 0.0) >= LOOKS_DIFFERENT for entry in entries)
    if changed:
        text = f"{summary.plural(changed, 'row looks', 'rows look')} different from {name}"
        found.append(summary.Note(text, {"column": "picture_change", "low": LOOKS_DIFFERENT}))
    new = sum(entry["values"].get("new") == 1 for entry in entries)
    if new:
        found.append(summary.Note(f"{summary.plural(new, 'row is', 'rows are')} not in {name}", {"column": "new", "low": 0.5}))
    return found


def _ended_in(other: JobFolder, wanted: np.ndarray, columns: Sequence[str]) -> Iterator[tuple[JobFolder, list[dict[str, Any]]]]:
    """The wanted rows' outputs in a job, reused ones from where they lie, in batches."""
    own = rows.scan(other, columns)
    for batch in rows.outputs(other, own.files, np.flatnonzero(np.isin(own.hashes, wanted))):
        yield other, batch
    for part in reused(other, columns):
        chosen = np.flatnonzero(np.isin(part.ended.hashes, np.intersect1d(part.ids, wanted)))
        for batch in rows.outputs(part.folder, part.ended.files, chosen):
            yield part.folder, batch


def _changes(now: Mapping[str, Any], then: Mapping[str, Any], scores: Sequence[Score]) -> dict[str, float]:
    found = {}
    for score in scores:
        new, old = now.get(score.column), then.get(score.column)
        if isinstance(old, int | float) and math.isfinite(old):
            found[f"{score.column}_then"] = summary.six_figures(old)
            if isinstance(new, int | float):
                found[f"{score.column}_change"] = round(new - old, 6) + 0.0  # never -0
    return found


def _difference(content: Content, now: Thumb | None, then: Thumb | None) -> float | None:
    """Mean difference of levels of two thumbnails; None where one is missing, 255 where they are of different sizes."""
    if now is None or then is None or now.missing or then.missing:
        return None
    if now.key == then.key:
        return 0.0
    a, b = (
        np.asarray(Image.open(io.BytesIO(content.folder.read_bytes(thumb_path(t.key)))).convert("RGB"), np.float32) for t in (now, then)
    )
    return 255.0 if a.shape != b.shape else summary.six_figures(float(np.abs(a - b).mean()))
