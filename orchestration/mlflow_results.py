"""What a finished job shows in MLflow, from its folder alone: spread of scores, pictures from worst to best, failed rows, a description."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from orchestration.folder import JobFolder
from orchestration.review import rows, summary
from orchestration.review.content import Content
from orchestration.review.thumbnails import Thumbnails, thumb_path
from pipelines.pipeline import Score, Shown
from workers import ids, storage

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

MAX_PICTURES = 16
CONTACT_SHEET = "before-and-after.png"
MAX_FAILURES = 1000  # rows of the table; the review page has them all
_SIDE = 256  # px of a picture; the same as on the review page, so that its thumbnails serve here too
_REFERENCES = 4  # shown of one row
_PICTURES = "before and after"  # a section of the UI's chart page, the first by the alphabet
_LABEL = 22  # px of the line above each picture
_QUANTILES = {"p05": 0.05, "p50": 0.5, "p95": 0.95}  # each becomes a chart of its own in the UI; scores/*.png shows the rest
_IMAGE_FILE = re.compile(r"images/(?P<key>[^+%]+)[+%]step[+%](?P<step>\d+)[+%]")  # "/" in a key becomes "~"


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
        """Quantiles of each score over ok rows, and the job's time over all its drivers, from the points of metrics.jsonl."""
        found = {}
        for score in self.scores:
            values = self._values(score)
            if len(values):
                found |= {f"scores/{score.column}_{name}": float(np.quantile(values, q)) for name, q in _QUANTILES.items()}
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
        failed = [row for batch in rows.outputs(self.folder, self.ended.files, positions) for row in batch]
        for row in sorted(failed, key=lambda row: row["row_id"]):
            for key, values in columns.items():
                value = row.get(key)
                values.append(redact(value) if isinstance(value, str) else value)
        client.log_table(run_id, columns, name)

    def log_pictures(self, client: MlflowClient, run_id: str) -> None:
        """At most 16 pictures, each a row before and after with its references, and all of them on one sheet, before-and-after.png.

        In the UI a card of the chart page goes through its rows by a slider, but hides its picture behind long parameters until it is
        enlarged; the sheet can be seen at once.
        """
        there = [_IMAGE_FILE.match(entry.path) for entry in client.list_artifacts(run_id, "images")]
        done = {(found["key"].split("~")[-1], int(found["step"])) for found in there if found}
        if done and len(self.folder.generations()) > 1:
            return  # a retry adds the rows that had failed; the pictures of the first time stay
        chosen = pick(self.ended, self.shown.scores[0] if self.shown.scores else None)
        sheets = self._sheets(sorted(position for positions in chosen.values() for position in positions))
        for key, positions in chosen.items():
            for step, position in enumerate(positions):
                sheet = sheets.get(int(self.ended.hashes[position]))
                if sheet is not None and (key, step) not in done:
                    client.log_image(run_id, sheet, key=f"{_PICTURES}/{key}", step=step, synchronous=True)
        shown = [(key, int(self.ended.hashes[position])) for key, positions in chosen.items() for position in positions]
        if sheets:
            client.log_image(run_id, _contact_sheet([(key, sheets[row]) for key, row in shown if row in sheets]), CONTACT_SHEET)

    def description(self, review: str) -> str:
        """What the run's page says on top, in Markdown."""
        planned, failed = rows.planned(self.folder), int(self.ended.failed.sum())
        reused = sum(len(row_ids) for row_ids in self.folder.reused().values())
        sentence, _ = summary.verdict(planned, len(self.ended.failed) - failed, failed, finished=True, reused=reused)
        lines = [f"**{sentence}**", ""]
        lines += [
            f"- {summary.plural(g.count, 'row')} failed with `{g.error_type}` in `{g.stage}`: {summary.what_to_do(g.error_type)}"
            for g in self.ended.failures[:5]
        ]
        lines += [f"- {summary.plural(reused, 'row')} reused from earlier jobs"] if reused else []
        lines += [f"- Pictures: `{CONTACT_SHEET}` under Artifacts"] if failed < planned else []
        lines += [f"- Review page: `{review}`"] if review else []
        lines += [f"- Job folder: `{self.folder.uri}`", f"- Check it: `calotype verify {shlex.quote(self.folder.uri)}`"]
        return "\n".join(lines)

    def _values(self, score: Score) -> np.ndarray:
        values = self.ended.numbers[score.column][~self.ended.failed]
        return values[np.isfinite(values)].astype(np.float64)

    def _sheets(self, positions: Sequence[int]) -> dict[int, Image.Image]:
        """Rows as sheets of their thumbnails, by the hash of their row_id; rows without any picture are left out."""
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
        sheets = {}
        for index, (row_id, row_hash) in enumerate(zip(shown["row_id"], ids.hashes(shown["row_id"]).tolist(), strict=True)):
            pair = [(name, shown[name][index]) for name in ("before", "after") if shown[name][index] is not None]
            references = [number for number in shown["references"][index] if number is not None][:_REFERENCES]
            values = [(score, shown["values"].get(score.column, {index: None})[index]) for score in self.shown.scores]
            facts = [f"{score.label} {value:.3f}" for score, value in values if isinstance(value, int | float)]
            if pair:
                keys = shown["thumbs"]["key"]
                sheets[row_hash] = _sheet(
                    " · ".join([row_id, *facts]),
                    [(label, self._thumb(keys[number])) for label, number in pair],
                    [self._thumb(keys[number]) for number in references],
                )
        return sheets

    def _thumb(self, key: str) -> Image.Image:
        data = self.folder.fs.cat_file(self.folder.join(thumb_path(key)))
        assert isinstance(data, bytes)
        return Image.open(io.BytesIO(data)).convert("RGB")


def _sheet(title: str, pair: Sequence[tuple[str, Image.Image]], references: Sequence[Image.Image]) -> Image.Image:
    """Before and after side by side, references half as large below, on white; small pictures are enlarged without smoothing."""
    half = _SIDE // 2
    size = (2 * _SIDE, 2 * _LABEL + _SIDE + (_LABEL + half if references else 0))
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    draw.text((6, 3), title, fill="black", font=font)
    for at, (label, picture) in enumerate(pair):
        draw.text((at * _SIDE + 6, _LABEL + 2), label, fill="#555555", font=font)
        sheet.paste(_fitted(picture, _SIDE), (at * _SIDE, 2 * _LABEL))
    for at, picture in enumerate(references):
        draw.text((6, 2 * _LABEL + _SIDE + 2), "references", fill="#555555", font=font)
        sheet.paste(_fitted(picture, half), (at * half, 3 * _LABEL + _SIDE))
    return sheet


def _contact_sheet(sheets: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Sheets in rows of four, each under the group that it was picked for."""
    width, height = 2 * _SIDE + _LABEL, max(sheet.height for _, sheet in sheets) + 2 * _LABEL
    across = min(4, len(sheets))
    page = Image.new("RGB", (across * width, -(-len(sheets) // across) * height), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    for at, (group, sheet) in enumerate(sheets):
        x, y = at % across * width, at // across * height
        draw.text((x + 6, y + 2), group, fill="#a04000", font=font)
        page.paste(sheet, (x, y + _LABEL))
    return page


def _fitted(picture: Image.Image, side: int) -> Image.Image:
    scale = side / max(picture.size)
    resampling = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), resampling)


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
