"""The page of a catalog in a real browser: words, layouts over pictures, and another night beside tonight's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from orchestration.review.page import write_review
from tests.orchestration.review.folders import face, job_folder
from tests.orchestration.review.test_nights import MADE, failed, made

Visit = Callable[..., Page]


@pytest.fixture
def catalog(tmp_path: Path) -> str:
    rows = [made(f"row-{i}", 0.1 * i, person="star" if i % 2 else "dog") for i in range(8)]
    return write_review(job_folder(tmp_path, [*rows, failed("bad")]), MADE)


def test_a_layout_is_drawn_over_its_picture_and_can_be_hidden(visit: Visit, catalog: str) -> None:
    page = visit(catalog)
    drawing = page.locator("#sheet .well .layout").first
    expect(drawing).to_have_attribute("aria-label", "layout: red star")
    picture, box = page.locator("#sheet .well img").first.bounding_box(), drawing.locator("rect").bounding_box()
    assert picture is not None
    assert box is not None
    assert box["width"] == pytest.approx(picture["width"] / 2, abs=3)  # 0 to 0.5 of the picture
    assert box["y"] - picture["y"] == pytest.approx(picture["height"] / 4, abs=3)
    page.get_by_role("button", name="Layout", exact=True).click()
    expect(drawing).to_be_hidden()
    expect(page.get_by_role("slider")).to_have_count(0)  # there is nothing before these pictures
    expect(page.locator("#view")).to_be_hidden()


def test_rows_are_found_by_the_words_of_their_prompt(visit: Visit, catalog: str) -> None:
    page = visit(catalog)
    expect(page.locator("#sheet .words").first).to_contain_text("a red star, row-")
    page.get_by_label("Words or row id").fill("star, row-3")
    expect(page.locator("#count")).to_have_text("1 of 9 rows")
    page.locator("#sheet .row-id").first.click()
    expect(page.get_by_role("dialog").locator(".words")).to_contain_text("a red star, row-3")


def test_two_nights_lie_over_each_other_and_notes_filter_what_changed(visit: Visit, tmp_path: Path) -> None:
    last = job_folder(tmp_path / "last", [made("same"), made("worse", 0.2), made("broke")])
    tonight = job_folder(tmp_path / "tonight", [made("same"), made("worse", 0.5), failed("broke"), made("new")])
    page = visit(write_review(tonight, MADE, against=last))
    expect(page.get_by_role("slider")).to_have_count(2)
    expect(page.locator("#sheet .slider .layout")).to_have_count(2)
    page.get_by_role("button", name="1 row is worse in layout loss").click()
    expect(page.locator("#count")).to_have_text("1 of 4 rows")
    expect(page.locator("#sheet .row-id")).to_have_text("worse")
    page.get_by_role("button", name="Remove filter").click()
    page.get_by_role("button", name="1 row failed that had been ok").click()
    expect(page.locator("#sheet .row-id")).to_have_text("broke")
    page.get_by_label("Order").select_option(label="Layout loss, change, highest first")


def test_a_strip_and_a_curve_stand_on_the_card_and_in_the_detail(visit: Visit, tmp_path: Path) -> None:
    rows = [made(f"row-{i}", 0.1 * i, start=face(i), tuned=face(i + 9), steps=[0, 5, 10], errors=[0.4, 0.3, 0.2]) for i in range(3)]
    page = visit(write_review(job_folder(tmp_path, rows), replace(MADE, strip=("start", "tuned"), curve=("steps", "errors"))))
    card = page.locator("#sheet .card").first
    expect(card.locator(".stages img")).to_have_count(2)
    expect(card.locator(".stages figcaption").first).to_have_text("start")
    expect(card.locator(".curve-of-row")).to_have_attribute("aria-label", "0.400 at step 0, 0.200 at step 10")
    bottom, top = card.locator(".stages").bounding_box(), card.locator(".words").bounding_box()
    assert bottom is not None
    assert top is not None
    assert bottom["y"] + bottom["height"] <= top["y"] + 1  # nothing overlaps
    card.locator(".row-id").click()
    expect(page.get_by_role("dialog").locator("figcaption", has_text="tuned")).to_be_visible()
    expect(page.get_by_role("dialog").locator(".curve-of-row")).to_be_visible()
