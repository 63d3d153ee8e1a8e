"""What the page says of each row: its pictures, its group, and every plain value that it holds, as columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from orchestration.folder import JobFolder
from orchestration.review.summary import six_figures
from orchestration.review.thumbnails import Frame, Source, Thumb, Thumbnails
from pipelines.pipeline import Shown
from workers import storage

_LISTED = 12  # values of a list that are written out


class Content:
    """Collects rows, outputs first, then inputs in the plan's order; `as_columns()` is what page.js reads.

    Where a row's outputs hold `crop_matrix` (2x3, six numbers, from the input's upright pixels to those of the result, of size `width` x
    `height`), the picture before is shown in the frame of the one after, so that both can be laid over each other.
    """

    def __init__(self, folder: JobFolder, shown: Shown, thumbnails: Thumbnails) -> None:
        self.folder, self.shown, self.thumbnails = folder, shown, thumbnails
        self._ended: dict[str, dict[str, Any]] = {}
        self._ordered: list[dict[str, Any]] = []
        self._thumbs: dict[str, int] = {}
        self._sizes: list[Thumb] = []

    def add_outputs(self, batch: Sequence[Mapping[str, Any]], reused_from: JobFolder | None = None) -> None:
        """Rows of data/ with `status` and `generation`; of another job's, where this one reuses them.

        The `before` column may be an output too, such as the crop that was restored.
        """
        job = None if reused_from is None else reused_from.uri
        pictures = [self.source(row, name, job) for row in batch for name in (self.shown.after, self.shown.before)]
        thumbs = self.make(pictures)
        others = [self._listed(row, self.shown.others, job) for row in batch]
        more = iter(self.make([source for many in others for source in many]))
        strips = iter(self.make([self.source(row, name, job) for row in batch for name in self.shown.strip]))
        for index, row in enumerate(batch):
            entry: dict[str, Any] = {"row_id": row["row_id"], "status": row["status"], "values": self._plain(row), "frame": _frame(row)}
            if reused_from is not None:
                entry["values"] |= {"reused": 1, "reused_from": reused_from.name}
            entry["others"] = [next(more) for _ in others[index]]
            entry["strip"] = [next(strips) for _ in self.shown.strip]
            entry["curve"] = _curve(row, self.shown.curve)
            entry["layout"] = _layout(row.get(self.shown.layout)) if self.shown.layout else None
            for slot, name, at in (("after", self.shown.after, 2 * index), ("before", self.shown.before, 2 * index + 1)):
                if pictures[at] is not None:
                    entry[slot] = thumbs[at]
                    entry[f"{slot}_link"] = link(row.get(f"{name}_uri"), self.folder, reused_from)
            self._ended[row["row_id"]] = entry

    def add_inputs(self, batch: Sequence[Mapping[str, Any]]) -> None:
        """Rows of the plan, with their before picture and references."""
        mine = [row for row in batch if row["row_id"] in self._ended]
        befores = [self._before(row, self._ended[row["row_id"]]) for row in mine]
        references = [self._listed(row, self.shown.references) for row in mine]
        thumbs = iter(self.make([*befores, *(source for many in references for source in many)]))
        for row, thumb in zip(mine, [next(thumbs) for _ in mine], strict=True):
            entry = self._ended[row["row_id"]]
            if "before" not in entry:
                entry["before"], entry["before_link"] = thumb, link(row.get(f"{self.shown.before}_uri"), self.folder)
            entry["values"] = {**self._plain(row), **entry["values"]}
            entry["group"] = row.get(self.shown.group) if self.shown.group else None
        for row, many in zip(mine, references, strict=True):
            self._ended[row["row_id"]]["references"] = [next(thumbs) for _ in many]
            self._ordered.append(self._ended.pop(row["row_id"]))

    @property
    def entries(self) -> Sequence[dict[str, Any]]:
        """What is known of each row, in the order of `as_columns`: row_id, status, values, before and after as thumbnails and more."""
        return self._ordered

    def as_columns(self) -> dict[str, Any]:
        """Columns over the rows in the plan's order. Pictures are numbers into `thumbs`, or null with the reason in `*_missing`."""
        entries = self._ordered
        names = list(dict.fromkeys(name for entry in entries for name in entry["values"]))
        columns = {name: [entry["values"].get(name) for entry in entries] for name in names}
        return {
            "row_id": [entry["row_id"] for entry in entries],
            "failed": [int(entry["status"] == "failed") for entry in entries],
            "group": [None if entry["group"] is None else str(entry["group"]) for entry in entries],
            "before": [self._number(entry.get("before")) for entry in entries],
            "after": [self._number(entry.get("after")) for entry in entries],
            "layout": [entry.get("layout") for entry in entries],
            "others": [[self._number(thumb) for thumb in entry["others"]] for entry in entries],
            "references": [[self._number(thumb) for thumb in entry["references"]] for entry in entries],
            "strip": [[self._number(thumb) for thumb in entry["strip"]] for entry in entries],
            "curve": [entry["curve"] for entry in entries],
            "before_missing": [_missing(entry.get("before")) for entry in entries],
            "after_missing": [_missing(entry.get("after")) for entry in entries],
            "before_link": [entry.get("before_link") for entry in entries],
            "after_link": [entry.get("after_link") for entry in entries],
            "values": {name: values for name, values in columns.items() if any(v is not None for v in values)},
            "thumbs": {
                "key": [thumb.key for thumb in self._sizes],
                "width": [thumb.width for thumb in self._sizes],
                "height": [thumb.height for thumb in self._sizes],
            },
        }

    def source(self, row: Mapping[str, Any], name: str | None, job: str | None = None) -> Source | None:
        """The picture in a row's column `name`, or where its `name`_uri says; `job`: the other job folder that it is relative to."""
        if name is None:
            return None
        data, uri = row.get(name), row.get(f"{name}_uri")
        if isinstance(data, bytes):
            return Source(data=data)
        if not isinstance(uri, str):
            return None
        version = row.get(f"{name}_sha256") or row.get("generation") or ""
        return Source(uri=uri, version=str(version), job=job)

    def _before(self, row: Mapping[str, Any], entry: Mapping[str, Any]) -> Source | None:
        if "before" in entry:
            return None  # an output
        source = self.source(row, self.shown.before)
        return source if source is None or entry["frame"] is None else replace(source, frame=entry["frame"])

    def _listed(self, row: Mapping[str, Any], name: str | None, job: str | None = None) -> list[Source]:
        """The pictures in a row's list column `name`, or where its uris say."""
        if name is None:
            return []
        data, uris = row.get(name), row.get(f"{name.removesuffix('s')}_uris")
        if data:
            return [Source(data=item) for item in data if isinstance(item, bytes)]
        return [Source(uri=uri, version=str(row.get("generation", "")), job=job) for uri in uris or [] if isinstance(uri, str)]

    def make(self, sources: Sequence[Source | None]) -> list[Thumb | None]:
        """Thumbnails of the pictures that there are."""
        made = iter(self.thumbnails.make([source for source in sources if source is not None]))
        return [None if source is None else next(made) for source in sources]

    def _plain(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The values that can be read as text; pictures and the id are shown elsewhere."""
        media = {self.shown.before, self.shown.after, self.shown.references, self.shown.others, *self.shown.strip, "row_id"}
        return {name: plain(value) for name, value in row.items() if name not in media}

    def _number(self, thumb: Thumb | None) -> int | None:
        if thumb is None or thumb.missing is not None:
            return None
        if thumb.key not in self._thumbs:
            self._thumbs[thumb.key] = len(self._sizes)
            self._sizes.append(thumb)
        return self._thumbs[thumb.key]


def plain(value: Any) -> Any:
    """A value as JSON holds it and a person reads it: floats to six figures, short lists as text, None for bytes, NaN and mappings."""
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**53 else str(value)  # JavaScript would round it
    if isinstance(value, float):
        return six_figures(value) if math.isfinite(value) else None
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, list) and all(isinstance(v, int | float | str) for v in value):
        tail = f" … ({len(value)})" if len(value) > _LISTED else ""
        return ", ".join(str(plain(v)) for v in value[:_LISTED]) + tail
    return None


def link(uri: Any, page: JobFolder, job: JobFolder | None = None) -> str | None:
    """Where a browser finds a file of `job`, from review/index.html of the folder `page`; None for places that it can't open."""
    if not isinstance(uri, str) or storage.scheme(uri) != "file":
        return None
    if not uri.startswith(("/", "file:", "~")):
        if job is None or job.uri == page.uri:
            return "../" + quote(uri)
        if job.uri.rpartition("/")[0] == page.uri.rpartition("/")[0]:
            return f"../../{quote(job.name)}/{quote(uri)}"
        return link(job.join_uri(uri), page)
    return Path(storage.local_path(uri)).as_uri()


def _layout(value: Any) -> list[list[Any]] | None:
    """Phrase, x0, y0, x1, y1 of each subject."""
    return None if value is None else [[part["phrase"], *(six_figures(side) for side in part["box"])] for part in value]


def _curve(row: Mapping[str, Any], columns: tuple[str, str] | None) -> list[list[float]] | None:
    """Steps and values, those that are finite; None where there are none."""
    steps, values = ([], []) if columns is None else (row.get(name) or [] for name in columns)
    points = [(step, six_figures(value)) for step, value in zip(steps, values, strict=False) if value is not None and math.isfinite(value)]
    return [list(axis) for axis in zip(*points, strict=True)] if points else None


def _frame(row: Mapping[str, Any]) -> Frame | None:
    matrix, width, height = row.get("crop_matrix"), row.get("width"), row.get("height")
    return Frame(tuple(matrix), width, height) if matrix is not None and len(matrix) == 6 and width and height else None


def _missing(thumb: Thumb | None) -> str | None:
    return None if thumb is None else thumb.missing
