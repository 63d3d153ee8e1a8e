"""What a finished job shows in MLflow, from its folder alone: spread of scores, pictures from worst to best, failed rows, a description."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from orchestration import ids
from orchestration.folder import JobFolder
from orchestration.review import rows, summary
from orchestration.review.content import Content
from orchestration.review.thumbnails import Thumbnails, thumb_path
from pipelines.pipeline import Score, Shown
from workers import storage

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

MAX_PICTURES = 16
MAX_FAILURES = 1000  # rows of the table; the review page has them all
_SIDE = 256  # px of a picture; the same as on the review page, so that its thumbnails serve here too
_REFERENCES = 4  # shown of one row
_LABEL = 22  # px of the line above each picture
_QUANTILES = {"p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}
_IMAGE_FILE = re.compile(r"images/(?P<key>[^+%]+)[+%]step[+%](?P<step>\d+)[+%]")


def pick(ended: rows.Ended, score: Score | None, limit: int = MAX_PICTURES) -> dict[str, list[int]]:
    """Positions of `ok` rows to show, at most `limit`: the worst and the best by the score, worst and best first, and evenly between them.

    A third each, "between" takes the rest. Without a score (or with too few rows that have it): a sample by the hash of row_id.
    """
    ok = ~ended.failed
    if score is not None:
        known = np.flatnonzero(ok & np.isfinite(ended.numbers[score.column]))
        order = known[np.argsort(ended.numbers[score.column][known], kind="stable")]
        order = order if score.higher_is_better else order[::-1]
        third = limit // 3
        if len(order) >= limit:
            middle = order[third:-third]
            steps = np.linspace(0, len(middle) - 1, limit - 2 * third).round().astype(int)
            return {"worst": order[:third].tolist(), "between": middle[steps].tolist(), "best": order[::-1][:third].tolist()}
        if len(order):
            return {"worst to best": order.tolist()}
    by_hash = np.argsort(ended.hashes)
    return {"sample": by_hash[ok[by_hash]][:limit].tolist()}


class Results:
    """The results of a job folder, written to a run. Each `log_` method may be called again: what is there already is not doubled."""

    def __init__(self, folder: JobFolder, job: Mapping[str, Any], shown: Shown) -> None:
        self.folder, self.job, self.shown = folder, job, shown
        self.scores = [*shown.scores, Score("model_ms", "Model time in ms", higher_is_better=False)]
        self.ended = rows.scan(folder, list(dict.fromkeys(score.column for score in self.scores)))

    def metrics(self, points: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Quantiles and mean of each score over ok rows, and the job's time over all its drivers, from the points of metrics.jsonl."""
        found = {}
        for score in self.scores:
            values = self._values(score)
            if len(values):
                found |= {f"{score.column}/{name}": float(np.quantile(values, q)) for name, q in _QUANTILES.items()}
                found[f"{score.column}/mean"] = float(values.mean())
        timing = summary.timing(points)
        found["job/seconds"] = timing.wall_s
        if timing.rows_per_s is not None:
            found["job/rows_per_s"] = timing.rows_per_s
        return found

    def log_figures(self, client: MlflowClient, run_id: str) -> None:
        """A histogram of each score as `scores/<column>.png`."""
        for score in self.scores:
            spread = summary.distribution(self._values(score))
            if spread.counts:
                client.log_figure(run_id, _histogram(score, spread), f"scores/{score.column}.png")

    def log_failures(self, client: MlflowClient, run_id: str, redact: Callable[[str], str]) -> None:
        """Failed rows as a table: failures.json, and one more for each `calotype retry` that left some."""
        positions = np.flatnonzero(self.ended.failed)[:MAX_FAILURES]
        generation = self.folder.generations()[-1]
        name = "failures.json" if generation == 0 else f"failures-after-retry-{generation}.json"
        if not len(positions) or name in (entry.path for entry in client.list_artifacts(run_id)):
            return
        columns: dict[str, list[Any]] = {key: [] for key in ("row_id", "error_type", "error", "stage", "attempts")}
        for batch in rows.outputs(self.folder, self.ended.files, positions):
            for row in batch:
                for key, values in columns.items():
                    value = row.get(key)
                    values.append(redact(value) if isinstance(value, str) else value)
        client.log_table(run_id, columns, name)

    def log_pictures(self, client: MlflowClient, run_id: str) -> None:
        """At most 16 strips before | after | references; the slider of each card goes through the rows."""
        there = [_IMAGE_FILE.match(entry.path) for entry in client.list_artifacts(run_id, "images")]
        done = {(found["key"], int(found["step"])) for found in there if found}
        if done and len(self.folder.generations()) > 1:
            return  # a retry adds the rows that had failed; the pictures of the first time stay
        chosen = pick(self.ended, self.shown.scores[0] if self.shown.scores else None)
        strips = self._strips(sorted(position for positions in chosen.values() for position in positions))
        for key, positions in chosen.items():
            for step, position in enumerate(positions):
                strip = strips.get(int(self.ended.hashes[position]))
                if strip is not None and (key, step) not in done:
                    client.log_image(run_id, strip, key=key, step=step, synchronous=True)

    def description(self, review: str) -> str:
        """What the run's page says on top, in Markdown."""
        planned, failed = rows.planned(self.folder), int(self.ended.failed.sum())
        sentence, _ = summary.verdict(planned, len(self.ended.failed) - failed, failed, finished=True)
        lines = [f"**{sentence}**", ""]
        lines += [
            f"- {summary.plural(g.count, 'row')} failed with `{g.error_type}` in `{g.stage}`: {summary.what_to_do(g.error_type)}"
            for g in self.ended.failures[:5]
        ]
        lines += [f"- Review page: `{review}`"] if review else []
        lines += [f"- Job folder: `{self.folder.uri}`", f"- Check it: `calotype verify {self.folder.uri}`"]
        return "\n".join(lines)

    def _values(self, score: Score) -> np.ndarray:
        values = self.ended.numbers[score.column][~self.ended.failed]
        return values[np.isfinite(values)].astype(np.float64)

    def _strips(self, positions: Sequence[int]) -> dict[int, Image.Image]:
        """Rows as strips of their thumbnails, by the hash of their row_id."""
        chosen = np.array(positions, np.int64)
        resources = self.job["spec"].get("resources") or {}
        reader = storage.Reader(tuple(resources.get("allowed_roots") or ()), resources.get("max_file_bytes") or storage.Reader.max_bytes)
        thumbnails = Thumbnails(self.folder, reader, px=_SIDE, max_pixels=resources.get("max_pixels") or 100_000_000)
        content = Content(self.folder, self.shown, thumbnails)
        for batch in rows.outputs(self.folder, self.ended.files, chosen):
            content.add_outputs(batch)
        for batch in rows.inputs(self.folder, self.ended.hashes[chosen]):
            content.add_inputs(batch)
        shown = content.as_columns()
        strips = {}
        for index, (row_id, row_hash) in enumerate(zip(shown["row_id"], ids.hashes(shown["row_id"]).tolist(), strict=True)):
            tiles = [("before", shown["before"][index]), ("after", shown["after"][index])]
            tiles += [(f"reference {n + 1}", number) for n, number in enumerate(shown["references"][index][:_REFERENCES])]
            pictures = [(label, self._thumb(shown["thumbs"]["key"][number])) for label, number in tiles if number is not None]
            if pictures:
                values = [(score, shown["values"].get(score.column, {index: None})[index]) for score in self.shown.scores]
                facts = [f"{score.label} {value:.3f}" for score, value in values if isinstance(value, int | float)]
                strips[row_hash] = _strip(" · ".join([row_id, *facts]), pictures)
        return strips

    def _thumb(self, key: str) -> Image.Image:
        data = self.folder.fs.cat_file(self.folder.join(thumb_path(key)))
        assert isinstance(data, bytes)
        return Image.open(io.BytesIO(data)).convert("RGB")


def _strip(title: str, pictures: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Labelled pictures side by side under a title, on white; each in a square of 256 px, small ones enlarged without smoothing."""
    strip = Image.new("RGB", (_SIDE * len(pictures), _SIDE + 2 * _LABEL), "white")
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(14)
    draw.text((6, 3), title, fill="black", font=font)
    for at, (label, picture) in enumerate(pictures):
        scale = _SIDE / max(picture.size)
        resampling = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        square = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), resampling)
        draw.text((at * _SIDE + 6, _LABEL + 1), label, fill="#555555", font=font)
        strip.paste(square, (at * _SIDE, 2 * _LABEL))
    return strip


def _histogram(score: Score, spread: summary.Distribution) -> Figure:
    """A histogram with the median and the 5th and 95th percentile marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.bar(spread.edges[:-1], spread.counts, width=np.diff(spread.edges).tolist(), align="edge", color="#4878a8", edgecolor="white")
    for value, style in ((spread.p05, ":"), (spread.median, "-"), (spread.p95, ":")):
        assert value is not None
        axes.axvline(value, color="#222222", linestyle=style)
    tail = ", the last bar also all above" if spread.open_end else ""
    axes.set(
        xlabel=f"{score.label} (median {spread.median:.3g}, lines: 5 %, 50 %, 95 %{tail})",
        ylabel="rows",
        title=f"{score.label}, {spread.rows:,} rows",
    )
    return figure
