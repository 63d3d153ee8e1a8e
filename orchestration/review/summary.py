"""The numbers of the page: how scores are spread, which rows stand out, how long it took and what it cost. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_BINS = 24
_ROBUST_SIGMA = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
_OUTLIER_SIGMAS = 3.5  # usual cut for the modified z-score (Iglewicz and Hoaglin, 1993)
_SERIES_POINTS = 400


@dataclass(frozen=True)
class Distribution:
    """How a number is spread over the rows that have it. Bin i holds edges[i] <= x < edges[i+1]; `open_end`: the last also all above.

    `edges` one longer than `counts`; quantiles p05, median, p95; `missing`: rows without the number. No rows: empty lists and None.
    """

    edges: list[float]
    counts: list[int]
    open_end: bool
    rows: int
    missing: int
    low: float | None
    p05: float | None
    median: float | None
    p95: float | None
    high: float | None


def distribution(values: np.ndarray, bins: int = _BINS) -> Distribution:
    """Histogram with round edges and quantiles of `values` (N,), NaN for null. A long upper tail shares the last bin."""
    known = values[np.isfinite(values)]
    missing = int(len(values) - len(known))
    known = np.fromiter(
        (six_figures(v) for v in known), np.float64, len(known)
    )  # float32 0.45 is below 0.45; the page shows and filters 0.45
    if not len(known):
        return Distribution([], [], False, 0, missing, None, None, None, None, None)
    low, p05, median, p95, p99, high = (float(q) for q in np.quantile(known, [0, 0.05, 0.5, 0.95, 0.99, 1]))
    tail = high > p99 + 2 * (p99 - low)  # a few rows far out would squeeze all others into one bar
    step = round_step((p99 if tail else high) - low, bins)
    first = math.floor(low / step + 1e-9)
    last = math.floor((p99 if tail else high) / step + 1e-9) + 1
    edges = [round(step * i, 12) for i in range(first, last + 1)]
    counts = np.histogram(np.clip(known, edges[0], edges[-1]), np.array(edges))[0]
    return Distribution(edges, counts.tolist(), tail, len(known), missing, low, p05, median, p95, high)


def six_figures(value: float) -> float:
    """A number as the page holds it: rounded to six significant figures."""
    return float(f"{value:.6g}")


def round_step(span: float, bins: int) -> float:
    """A bin width of 1, 2, 2.5 or 5 times a power of ten, so that at most `bins` of them cover `span`."""
    if not span > 0:
        return 0.05
    raw = span / (bins - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))


def outlier_limit(values: np.ndarray, *, higher_is_better: bool) -> float | None:
    """Beyond it a row stands out on the bad side, by the median absolute deviation; None for fewer than 20 rows or no spread."""
    known = values[np.isfinite(values)].astype(np.float64)
    if len(known) < 20:
        return None
    median = float(np.median(known))
    spread = float(np.median(np.abs(known - median))) * _ROBUST_SIGMA
    if spread == 0:
        return None
    return median - _OUTLIER_SIGMAS * spread if higher_is_better else median + _OUTLIER_SIGMAS * spread


@dataclass(frozen=True)
class Timing:
    """Time of a job over all its drivers, without the idle time between them.

    `series`: seconds of running time, rows/s up to there since the point before, rows ended.
    `starts`: running seconds at which a further driver began. `rows`: rows that the timed drivers ran.
    """

    wall_s: float
    rows: int
    rows_per_s: float | None
    first_block_s: float | None
    series: list[tuple[float, float, int]]
    starts: list[float]


def timing(points: Sequence[Mapping[str, Any]]) -> Timing:
    """From the lines of metrics.jsonl: `seconds` counts a driver's own time and falls where a new driver began."""
    series, starts = list[tuple[float, float, int]](), list[float]()
    base, rows, first = 0.0, 0, None
    before: Mapping[str, Any] | None = None
    for point in points:
        seconds, done = float(point["seconds"]), int(point["done"])
        if before is None or seconds < float(before["seconds"]) or point.get("generation") != before.get("generation"):
            if before is not None:
                base += float(before["seconds"])
                starts.append(base)
            ran, span = round(float(point["rows_per_s"]) * seconds), seconds
        else:
            ran, span = done - int(before["done"]), seconds - float(before["seconds"])
        if first is None:
            first = point.get("first_block_s")
        rows += max(ran, 0)
        if span > 0:
            series.append((base + seconds, max(ran, 0) / span, done))
        before = point
    wall = base + (float(before["seconds"]) if before is not None else 0.0)
    return Timing(wall, rows, rows / wall if wall > 0 and rows else None, first, thinned(series), starts)


def thinned(series: list[tuple[float, float, int]], points: int = _SERIES_POINTS) -> list[tuple[float, float, int]]:
    """At most `points` of a series: means of the rate over equal stretches, so that no work is lost from the picture."""
    if len(series) <= points:
        return series
    return [
        (group[-1][0], float(np.mean([rate for _, rate, _ in group])), group[-1][2])
        for group in (series[len(series) * i // points : len(series) * (i + 1) // points] for i in range(points))
    ]


@dataclass(frozen=True)
class Cost:
    """What a job took. Model share: time in the model over replica time, None where nothing was timed; money only with a price."""

    replicas: int
    replica_hours: float
    seconds_per_1000: float | None
    model_s: float
    model_share: float | None
    money: float | None
    money_per_1000: float | None


def cost(time: Timing, model_ms: np.ndarray, replicas: int, price_per_hour: float | None) -> Cost:
    """`model_ms` (N,) NaN for null, over all rows; `price_per_hour` of one replica."""
    hours = time.wall_s * replicas / 3600
    model_s = float(np.nansum(model_ms)) / 1000 if len(model_ms) else 0.0
    money = None if price_per_hour is None else hours * price_per_hour
    return Cost(
        replicas=replicas,
        replica_hours=hours,
        seconds_per_1000=1000 / time.rows_per_s if time.rows_per_s else None,
        model_s=model_s,
        model_share=min(model_s / (hours * 3600), 1.0) if hours > 0 and model_s > 0 else None,
        money=money,
        money_per_1000=1000 * money / time.rows if money is not None and time.rows else None,
    )


@dataclass(frozen=True)
class Note:
    """Something to look at, and the filter of the page that shows it (None: nothing to show)."""

    text: str
    filter: Mapping[str, Any] | None = None


def plural(count: int, one: str, many: str | None = None) -> str:
    """`1 row`, `1,200 rows`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def verdict(planned: int, ok: int, failed: int, *, finished: bool, reused: int = 0) -> tuple[str, str]:
    """The headline and its tone: good, look (some rows failed), bad (more than one in ten failed, or all), or open (not finished)."""
    ended = ok + failed
    if reused and finished and not planned:
        return f"Nothing was left to do: {plural(reused, 'row is', 'rows are')} as in earlier jobs.", "good"
    if not finished:
        tail = f", {failed:,} of them failed" if failed else ""
        return f"Not finished: {ended:,} of {plural(planned, 'row')} have ended{tail}.", "open"
    if failed == 0:
        return (f"All {planned:,} rows are done." if planned != 1 else "The one row is done."), "good"
    if ok == 0:
        return f"No row succeeded: all {planned:,} failed.", "bad"
    return f"{ok:,} of {plural(planned, 'row')} are done, {failed:,} failed.", "bad" if failed * 10 > ended else "look"


WHAT_TO_DO: dict[str, str] = {
    "ProcessDied": "The process died each time this row was in it. Look at the picture; if it is fine, retry with a larger machine.",
    "RowTimeout": "Raise resources.row_timeout_s (or leave it out), then retry.",
    "OutOfMemoryError": "The row does not fit even alone. Give the replica more memory or make the row smaller, then retry.",
    "MemoryError": "The row does not fit even alone. Give the replica more memory or make the row smaller, then retry.",
    "FileNotFoundError": "Put the files back where the manifest says, then retry.",
    "PermissionError": "Let the job's user read these files, then retry.",
    "UriNotAllowed": "If the place is meant, add it to resources.allowed_roots in a new job.",
    "TooLarge": "Make the file smaller, or raise resources.max_file_bytes in a new job.",
    "ImageTooLarge": "Make the picture smaller, or raise resources.max_pixels in a new job.",
    "ImageBroken": "Copy the file again from its source, or save it anew in an editor; then retry.",
}
_OTHERWISE = "Read the text below: it says what the row needs. Once that is mended, retry."


def what_to_do(error_type: str) -> str:
    """The next step for an error type, for a person."""
    return WHAT_TO_DO.get(error_type, _OTHERWISE)
