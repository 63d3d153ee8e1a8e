from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from orchestration.folder import JobFolder
from orchestration.review.page import script_json, write_review
from pipelines.pipeline import Score, Shown
from tests.orchestration.review.folders import SHOWN, face, job_folder, people, retry, row


def data_of(folder: JobFolder) -> dict[str, Any]:
    page = Path(folder.join("review/index.html")).read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found.group(1))


def written(folder: JobFolder, shown: Shown = SHOWN, **options: Any) -> dict[str, Any]:
    assert write_review(folder, shown, **options) == folder.join_uri("review/index.html")
    return data_of(folder)


def test_a_page_shows_every_row_with_its_pictures(tmp_path: Path) -> None:
    folder = job_folder(tmp_path, people(30, failed=2))
    data = written(folder)
    assert data["counts"] == {"planned": 30, "ok": 28, "failed": 2, "reused": 0}
    assert sorted(data["rows"]["row_id"]) == [f"photo-{i:05}" for i in range(30)]
    assert data["rows"]["failed"].count(1) == 2
    for row_id, failed, before, after, refs in zip(
        *(data["rows"][c] for c in ("row_id", "failed", "before", "after", "references")), strict=True
    ):
        assert before is not None, row_id
        assert (after is None) == bool(failed)
        assert len(refs) == 1
    assert data["verdict"]["notes"][0] == {"text": "2 rows failed with ImageBroken", "filter": {"error_type": "ImageBroken"}}
    made = {p.stem for p in Path(folder.join("review/thumbs")).rglob("*.jpg")}
    assert made == set(data["rows"]["thumbs"]["key"])


def test_inputs_that_have_moved_are_shown_as_missing(tmp_path: Path) -> None:
    folder = job_folder(tmp_path, people(5))
    shutil.rmtree(tmp_path / "photos")
    shutil.rmtree(folder.join("artifacts"))
    rows = written(folder)["rows"]
    assert rows["before"] == rows["after"] == [None] * 5
    assert rows["before_missing"] == rows["after_missing"] == ["not found"] * 5
    assert rows["references"] == [[None]] * 5


def test_an_unfinished_folder_has_a_page_that_says_so(tmp_path: Path) -> None:
    folder = job_folder(tmp_path, people(4), finished=False, more_planned=6)
    data = written(folder)
    assert data["verdict"]["sentence"] == "Not finished: 4 of 10 rows have ended."
    assert data["verdict"]["tone"] == "open"
    assert not any("retry" in command for _, command in data["run"]["commands"])


def test_a_folder_in_which_nothing_has_ended_has_a_page(tmp_path: Path) -> None:
    folder = job_folder(tmp_path, people(4), finished=False)
    shutil.rmtree(folder.join("ledger"))
    Path(folder.join("metrics.jsonl")).unlink()
    data = written(folder)
    assert data["rows"]["row_id"] == []
    assert data["timing"]["series"] == []


def test_a_folder_that_is_no_job_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no job\.json"):
        write_review(JobFolder(str(tmp_path / "nothing")), SHOWN)


def test_text_from_manifests_cannot_become_markup(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><!--\u2028 \"'&"
    folder = job_folder(
        tmp_path, [row(evil, person_id=evil), row("b", status="failed", error_type=evil, error=evil, stage=evil)], spec={"name": evil}
    )
    data = written(folder)
    page = Path(folder.join("review/index.html")).read_text()
    assert "alert(1)</script>" not in page
    assert page.count("<script") == page.count("</script>") == 2
    assert evil in data["rows"]["row_id"]
    assert data["failures"][0]["error_type"] == evil


def test_script_data_holds_no_character_that_could_end_its_element() -> None:
    value = {"a": "<b>&\u2028\u2029", "nan": float("nan"), "list": [float("inf"), 1.5, None]}
    text = script_json(value)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {"a": "<b>&\u2028\u2029", "nan": None, "list": [None, 1.5, None]}


def test_a_retried_job_shows_the_new_result_and_says_that_it_is_one(tmp_path: Path) -> None:
    folder = job_folder(tmp_path, people(6, failed=2))
    before = written(folder)
    retry(folder, [row("photo-00004"), row("photo-00005")])
    data = written(folder)
    assert data["counts"] == {"planned": 6, "ok": 6, "failed": 0, "reused": 0}
    assert before["counts"]["failed"] == 2
    assert any(note["text"] == "2 rows come from a retry" for note in data["verdict"]["notes"])
    assert None not in data["rows"]["after"]


def test_a_very_large_job_shows_a_choice_and_counts_all(tmp_path: Path) -> None:
    folder = job_folder(tmp_path, people(60, failed=3))
    data = written(folder, max_rows=20)
    assert data["counts"]["ok"] == 57
    assert len(data["rows"]["row_id"]) == 20
    assert {f"photo-{i:05}" for i in (57, 58, 59)} <= set(data["rows"]["row_id"])
    assert sum(data["scores"][0]["distribution"]["counts"]) == 57


def test_pictures_in_columns_are_shown_like_files(tmp_path: Path) -> None:
    folder = job_folder(tmp_path, [row(f"r{i}", restored=face(i)) for i in range(3)])
    rows = written(folder)["rows"]
    assert None not in rows["after"]
    assert rows["after_link"] == [None] * 3
    assert "restored" not in rows["values"]


def test_a_page_of_a_kind_without_scores_groups_or_references_is_whole(tmp_path: Path) -> None:
    data = written(job_folder(tmp_path, people(3)), Shown(before="image", after="restored"))
    assert data["scores"] == []
    assert data["rows"]["references"] == [[], [], []]
    assert data["rows"]["group"] == [None] * 3


def test_a_score_of_which_less_is_better_names_the_high_rows(tmp_path: Path) -> None:
    rows = [row(f"r{i:03}", distance=0.3 + 0.001 * (i % 10)) for i in range(40)] + [row("far", distance=0.9)]
    shown = Shown(before="image", after="restored", scores=(Score("distance", "Distance", higher_is_better=False),))
    (note,) = written(job_folder(tmp_path, rows), shown)["verdict"]["notes"]
    assert note["text"].startswith("1 row stands out in distance: above")
    assert note["filter"]["low"] > 0.31


def test_cost_follows_the_price_in_the_job_file(tmp_path: Path) -> None:
    free = written(job_folder(tmp_path / "a", people(4)))
    paid = written(job_folder(tmp_path / "b", people(4), spec={"resources": {"price_per_hour": 3.6, "replicas": 2}}))
    assert free["cost"]["money"] is None
    assert paid["cost"]["money"] == pytest.approx(10 / 3600 * 2 * 3.6)


def test_a_face_of_a_photograph_is_shown_in_the_frame_of_its_result(tmp_path: Path) -> None:
    matrix = [2.0, 0.0, -32.0, 0.0, 2.0, -32.0]  # the middle quarter of the 48 pixels, 16 to 40, at twice its size
    rows = [row("whole"), row("part", crop_matrix=matrix, width=48, height=48)]
    found = written(job_folder(tmp_path, rows))["rows"]
    befores = dict(zip(found["row_id"], found["before"], strict=True))
    pictures = {i: Path(tmp_path / "faces-0123456789ab/review/thumbs" / k[:2] / f"{k}.jpg") for i, k in enumerate(found["thumbs"]["key"])}
    whole, part = (Image.open(pictures[befores[name]]) for name in ("whole", "part"))
    assert part.size == (48, 48)
    enlarged = np.asarray(whole.crop((16, 16, 40, 40)).resize((48, 48), Image.Resampling.LANCZOS), int)
    assert np.abs(np.asarray(part, int) - enlarged).mean() < 3
    assert np.abs(np.asarray(whole, int) - enlarged).mean() > 20


def test_links_lead_from_the_page_to_the_file(tmp_path: Path) -> None:
    folder = job_folder(tmp_path, [row("anna/01 é%.png")])
    rows = written(folder)["rows"]
    (link,) = rows["after_link"]
    assert (Path(folder.join("review")) / unquote(link)).resolve().is_file()
    assert rows["before_link"][0].startswith("file:///")
