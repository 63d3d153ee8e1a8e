"""Other jobs on a page: reused rows, another night beside this one; and pages of kinds that make pictures from words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestration.folder import REUSED, JobFolder
from orchestration.inspect import write_review_again
from orchestration.job import JobFileError, parse
from orchestration.review.page import write_review
from orchestration.run import run
from pipelines.pipeline import Score, Shown
from tests import toy
from tests.orchestration.review.folders import face, job_folder, row
from tests.orchestration.review.test_page import data_of

MADE = Shown(
    before=None,
    after="restored",
    scores=(Score("final_loss", "Layout loss", higher_is_better=False),),
    group="person_id",
    text=("prompt",),
    layout="layout",
)
LAYOUT = [{"phrase": "red star", "box": [0.0, 0.25, 0.5, 1.0]}]


def made(row_id: str, loss: float | None = 0.3, person: str = "star", **values: Any) -> dict[str, Any]:
    return {**row(row_id, person_id=person, prompt=f"a red star, {row_id}", layout=LAYOUT, final_loss=loss), **values}


def failed(row_id: str) -> dict[str, Any]:
    return made(row_id, None, status="failed", error_type="PhraseNotFound", error="no star", stage="compose")


def data(folder: JobFolder, **options: Any) -> dict[str, Any]:
    write_review(folder, MADE, **options)
    return data_of(folder)


def values(page: dict[str, Any], column: str) -> dict[str, Any]:
    return dict(zip(page["rows"]["row_id"], page["rows"]["values"].get(column, [None] * len(page["rows"]["row_id"])), strict=True))


def notes(page: dict[str, Any]) -> list[str]:
    return [note["text"] for note in page["verdict"]["notes"]]


@pytest.fixture
def two_nights(tmp_path: Path) -> tuple[JobFolder, JobFolder]:
    """Last night: kept, worse, changed, broke. Tonight reuses kept; the others ran again, and one is new."""
    last = job_folder(tmp_path / "last", [made("kept"), made("worse", 0.2), made("changed", person="dog"), made("broke")])
    rows = [made("worse", 0.5), {**made("changed", restored=face(99)), "person_id": "dog"}, failed("broke"), made("new")]
    tonight = job_folder(tmp_path / "tonight", rows)
    pq.write_table(pa.table({"row_id": ["kept"], "folder": [last.uri]}), tonight.join(REUSED))
    return last, tonight


def test_a_kind_without_a_picture_before_shows_its_words_and_its_layout(tmp_path: Path) -> None:
    page = data(job_folder(tmp_path, [made("a"), made("b")]))
    assert page["shown"] | {"before": None, "text": ["prompt"]} == page["shown"]
    assert page["rows"]["before"] == [None, None]
    assert page["rows"]["layout"][0] == [["red star", 0.0, 0.25, 0.5, 1.0]]
    assert values(page, "prompt")["a"] == "a red star, a"


def test_all_pictures_that_were_made_of_a_row_are_shown(tmp_path: Path) -> None:
    folder = job_folder(tmp_path, [made("a", images=[face(1), face(2), face(3)])])
    write_review(folder, replace(MADE, others="images"))
    page = data_of(folder)
    assert len(set(page["rows"]["others"][0])) == 3
    assert "images" not in page["rows"]["values"]


def test_reused_rows_are_on_the_page_with_their_pictures_and_scores(two_nights: tuple[JobFolder, JobFolder]) -> None:
    last, tonight = two_nights
    page = data(tonight)
    assert page["counts"] == {"planned": 4, "ok": 3, "failed": 1, "reused": 1}
    at = page["rows"]["row_id"].index("kept")
    assert page["rows"]["after"][at] is not None
    linked = (
        Path(tonight.join("review"), unquote(page["rows"]["after_link"][at])) if page["rows"]["after_link"][at].startswith("..") else None
    )
    assert linked is None or linked.resolve().exists()
    assert values(page, "reused_from")["kept"] == last.name
    assert page["scores"][0]["distribution"]["rows"] == 4  # three of tonight and the reused one
    assert "1 row is reused from 1 earlier job" in notes(page)


def test_another_night_stands_before_tonight_row_by_row_with_what_changed(two_nights: tuple[JobFolder, JobFolder]) -> None:
    last, tonight = two_nights
    page = data(tonight, against=last)
    assert page["shown"]["labels"] == {"before": last.name, "after": tonight.name}  # of one name, so with their fingerprints
    before = dict(zip(page["rows"]["row_id"], page["rows"]["before"], strict=True))
    assert {name for name, thumb in before.items() if thumb is not None} == {"kept", "worse", "changed", "broke"}
    assert page["rows"]["before_missing"][page["rows"]["row_id"].index("new")].startswith("not in faces-")
    assert values(page, "final_loss_change") == {"kept": 0.0, "worse": 0.3, "changed": 0.0, "broke": None, "new": None}
    change = values(page, "picture_change")
    assert change["kept"] == change["worse"] == 0.0
    assert change["changed"] > 2
    assert [score["column"] for score in page["scores"]] == ["final_loss", "final_loss_change", "picture_change"]
    said = notes(page)
    assert any("1 row failed that had been ok" in text for text in said)
    assert any("1 row is worse in layout loss" in text for text in said)
    assert any("1 row looks different" in text for text in said)
    assert any("1 row is not in" in text for text in said)


def test_tonight_may_be_compared_with_last_night_s_reused_rows_too(two_nights: tuple[JobFolder, JobFolder], tmp_path: Path) -> None:
    _, tonight = two_nights
    third = job_folder(tmp_path / "third", [made("kept", 0.1)])
    page = data(third, against=tonight)
    assert values(page, "final_loss_change") == {"kept": pytest.approx(-0.2, abs=1e-5)}


def test_last_is_the_job_before_this_one(tmp_path: Path) -> None:
    def night(hour: int, **keys: Any) -> JobFolder:
        return JobFolder(run(parse(toy.job(tmp_path, rows=4, name=f"n-20261124T{hour:02}0000Z", **keys))).folder)

    first = night(1)
    with pytest.raises(JobFileError, match="no finished job to compare"):
        write_review_again(first, "last")
    second = night(2, reuse="last")
    write_review_again(second, "last")
    page = data_of(second)
    assert page["shown"]["labels"] == {"before": "n-20261124T010000Z", "after": "n-20261124T020000Z"}
    assert page["verdict"]["sentence"] == "Nothing was left to do: 4 rows are as in earlier jobs."
    assert set(page["rows"]["values"]["reused_from"]) == {first.name}


def test_a_row_shows_how_it_came_about_in_a_strip_and_a_curve(tmp_path: Path) -> None:
    rows = [made("a", start=face(1), tuned=face(2), steps=[0, 5, 10], errors=[0.4, float("nan"), 0.2]), failed("b")]
    folder = job_folder(tmp_path, rows)
    write_review(folder, replace(MADE, strip=("start", "tuned"), curve=("steps", "errors")))
    page = data_of(folder)
    assert page["shown"]["strip"] == ["start", "tuned"]
    strips = dict(zip(page["rows"]["row_id"], page["rows"]["strip"], strict=True))
    assert len(set(strips["a"]) - {None}) == 2
    assert strips["b"] == [None, None]
    assert dict(zip(page["rows"]["row_id"], page["rows"]["curve"], strict=True)) == {"a": [[0, 10], [0.4, 0.2]], "b": None}
    assert "start" not in page["rows"]["values"]
