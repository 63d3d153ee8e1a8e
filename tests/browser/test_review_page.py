"""What a reviewer does with the page, in a real browser, from file:// and without network."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from orchestration.review.page import write_review
from tests.orchestration.review.folders import SHOWN, face, job_folder, people, retry, row

Visit = Callable[..., Page]


@pytest.fixture(scope="session")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A finished job of 60 rows of 12 persons, 4 failed, one of them by its process."""
    rows = people(60, failed=4)
    rows[-1] |= {"error_type": "ProcessDied", "error": "the process died", "stage": "restore"}
    return write_review(job_folder(tmp_path_factory.mktemp("review"), rows), SHOWN)


def ids_on(page: Page) -> list[str]:
    return [text.strip() for text in page.locator("#sheet .row-id").all_inner_texts()]


def test_the_headline_and_the_numbers_are_there(visit: Visit, page_path: str) -> None:
    page = visit(page_path)
    expect(page.get_by_role("heading", level=1)).to_have_text("56 of 60 rows are done, 4 failed.")
    expect(page.locator("#count")).to_have_text("60 rows")
    expect(page.locator("#notes")).to_contain_text("3 rows failed with ImageBroken")


def test_a_row_that_is_called_like_its_person_says_so_once_and_no_scores_are_none_to_look_at(visit: Visit, tmp_path: Path) -> None:
    rows = [row("ada", person_id="ada"), row("bob-2", person_id="bob")]
    page = visit(write_review(job_folder(tmp_path, rows), replace(SHOWN, scores=())))
    assert page.locator("#sheet .group").all_inner_texts() == ["", "bob"]
    expect(page.locator("#notes")).to_have_text("Nothing stands out.")


def test_pictures_near_the_window_are_loaded_and_others_are_not(visit: Visit, page_path: str) -> None:
    page = visit(page_path)
    expect(page.locator("#sheet .well img").first).to_have_js_property("complete", True)
    assert page.evaluate("document.querySelector('#sheet .well img').naturalWidth > 0")
    assert page.locator("#sheet .card").count() < 60
    assert page.evaluate("[...document.querySelectorAll('img')].every((i) => i.loading === 'lazy')")


def test_the_slider_moves_with_the_pointer(visit: Visit, page_path: str) -> None:
    page = visit(page_path)
    slider = page.get_by_role("slider").first
    box = slider.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 40)
    page.mouse.up()
    expect(slider).to_have_attribute("aria-valuenow", "25")
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + 40)  # the button is up again
    expect(slider).to_have_attribute("aria-valuenow", "25")
    clip = slider.locator(".over").evaluate("(e) => getComputedStyle(e).clipPath")
    assert clip == "inset(0px 75% 0px 0px)"


def test_the_slider_moves_with_the_arrow_keys(visit: Visit, page_path: str) -> None:
    page = visit(page_path)
    page.keyboard.press("j")
    slider = page.get_by_role("slider").first
    expect(slider).to_be_focused()
    for key, value in [("ArrowLeft", "45"), ("Shift+ArrowRight", "65"), ("Home", "0"), ("ArrowLeft", "0"), ("End", "100")]:
        page.keyboard.press(key)
        expect(slider).to_have_attribute("aria-valuenow", value)


def test_the_failed_filter_shows_exactly_the_failed_rows(visit: Visit, page_path: str) -> None:
    page = visit(page_path)
    page.get_by_role("button", name="Failed", exact=True).click()
    assert sorted(ids_on(page)) == ["photo-00056", "photo-00057", "photo-00058", "photo-00059"]
    expect(page.locator("#count")).to_have_text("4 of 60 rows")
    expect(page.locator("#sheet .failure").first).to_contain_text("ImageBroken")
    page.get_by_role("button", name="Done", exact=True).click()
    expect(page.locator("#count")).to_have_text("56 of 60 rows")


def test_search_group_and_order_work_together(visit: Visit, page_path: str) -> None:
    page = visit(page_path)
    page.get_by_label("Person").fill("person-03")
    expect(page.locator("#count")).to_have_text("5 of 60 rows")
    page.get_by_label("Order").select_option(label="Identity, highest first")
    assert ids_on(page) == ["photo-00051", "photo-00039", "photo-00027", "photo-00015", "photo-00003"]
    page.get_by_label("Row id").fill("0003")
    assert ids_on(page) == ["photo-00039", "photo-00003"]
    page.get_by_label("Row id").fill("nobody")
    expect(page.get_by_text("No row fits these filters.")).to_be_visible()
    page.get_by_role("button", name="Show all rows").click()
    expect(page.locator("#count")).to_have_text("60 rows")


def test_a_bar_of_a_histogram_filters_and_lets_go(visit: Visit, page_path: str) -> None:
    page = visit(page_path)
    bars = page.get_by_role("group", name="Identity: how many rows by value").get_by_role("button")
    counts = [
        int(text.rsplit(": ", 1)[1].split()[0]) for text in bars.evaluate_all("(all) => all.map((b) => b.getAttribute('aria-label'))")
    ]
    assert sum(counts) == 56
    bars.nth(2).click()
    expect(page.locator("#count")).to_have_text(f"{counts[2]} of 60 rows")
    expect(bars.nth(2)).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Remove filter Identity").click()
    expect(page.locator("#count")).to_have_text("60 rows")


def test_a_note_leads_to_its_rows(visit: Visit, page_path: str) -> None:
    page = visit(page_path)
    page.get_by_role("button", name="1 row failed with ProcessDied").click()
    assert ids_on(page) == ["photo-00059"]
    page.get_by_role("tab", name="Failures").click()
    expect(page.locator("#failures")).to_contain_text("calotype retry")
    page.locator("#failures").get_by_role("button", name="Show these rows").first.click()
    assert len(ids_on(page)) == 3


def test_rows_are_walked_opened_and_closed_by_keyboard(visit: Visit, page_path: str) -> None:
    page = visit(page_path)
    for key in ("j", "j", "j", "k"):
        page.keyboard.press(key)
    focused = "document.activeElement.closest('.card').querySelector('.row-id').textContent"
    assert page.evaluate(focused) == "photo-00001"
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("heading")).to_have_text("photo-00001")
    page.keyboard.press("j")
    expect(dialog.get_by_role("heading")).to_have_text("photo-00002")
    expect(dialog).to_contain_text("person-02")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert page.evaluate(focused) == "photo-00002"
    page.keyboard.press("/")
    expect(page.get_by_label("Row id")).to_be_focused()
    page.keyboard.type("57")
    expect(page.locator("#count")).to_have_text("1 of 60 rows")
    page.keyboard.press("Escape")
    expect(page.locator("#count")).to_have_text("60 rows")
    page.keyboard.press("f")
    expect(page.locator("#count")).to_have_text("4 of 60 rows")


def test_one_tab_stop_leads_into_the_sheet_whatever_its_length(visit: Visit, page_path: str) -> None:
    page = visit(page_path)
    assert page.locator("#sheet .well[tabindex='0']").count() == 1
    page.keyboard.press("j")
    page.keyboard.press("ArrowDown")
    assert page.locator("#sheet .well[tabindex='0']").count() == 1
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_tabs_follow_the_arrow_keys(visit: Visit, page_path: str) -> None:
    page = visit(page_path)
    page.get_by_role("tab", name="Pictures").focus()
    for name, text in [
        ("Lowest and highest", "Worst by identity"),
        ("Failures", "ProcessDied"),
        ("Time and cost", "Replica hours"),
        ("How it was run", "fingerprint"),
    ]:
        page.keyboard.press("ArrowRight")
        expect(page.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")
        expect(page.get_by_role("tabpanel", name=name)).to_contain_text(text)


def test_the_page_follows_the_system_and_the_button_in_dark_and_light(visit: Visit, page_path: str) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = visit(page_path), visit(page_path, scheme="dark")
    colors = light.evaluate(ground), dark.evaluate(ground)
    assert colors[0] != colors[1]
    dark.get_by_role("button", name="Change between dark and light").click()
    assert dark.evaluate(ground) == colors[0]
    dark.reload()
    dark.wait_for_selector("html[data-ready=true]")
    assert dark.evaluate(ground) == colors[0]  # remembered


def test_side_by_side_shows_both_pictures_whole(visit: Visit, page_path: str) -> None:
    page = visit(page_path)
    page.get_by_role("button", name="Side by side").click()
    well = page.locator("#sheet .slider").first
    after, before = (image.bounding_box() for image in well.locator("img").all())
    assert after is not None
    assert before is not None
    assert before["x"] + before["width"] <= after["x"]
    assert well.locator(".over").evaluate("(e) => getComputedStyle(e).clipPath") == "none"


@pytest.mark.parametrize("width", [360, 768, 1366])
def test_nothing_is_wider_than_the_window(visit: Visit, page_path: str, width: int) -> None:
    page = visit(page_path, width=width)
    for name in ("Pictures", "Lowest and highest", "Failures", "Time and cost", "How it was run"):
        page.get_by_role("tab", name=name).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name


def test_pictures_arriving_move_nothing(visit: Visit, page_path: str) -> None:
    page = visit(page_path)
    expect(page.locator("#sheet .well img").first).to_have_js_property("complete", True)
    shift = page.evaluate(
        """() => new Promise((done) => {
            let total = 0;
            const add = (list) => list.getEntries().forEach((e) => { total += e.value; });
            new PerformanceObserver(add).observe({ type: "layout-shift", buffered: true });
            setTimeout(() => done(total), 300);
        })"""
    )
    assert shift < 0.01


def test_hostile_text_is_only_text(visit: Visit, tmp_path: Path) -> None:
    evil = "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>"
    rows = [row(evil, person_id=evil), row("other", status="failed", error_type=evil, error=evil, stage=evil)]
    page = visit(write_review(job_folder(tmp_path, rows, spec={"name": evil}), SHOWN))
    assert evil in ids_on(page)
    for name in ("Lowest and highest", "Failures", "How it was run", "Pictures"):
        page.get_by_role("tab", name=name).click()
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog").get_by_role("heading")).to_have_text(evil)
    assert "owned" not in page.title().replace(evil, "")
    assert page.locator("img[src=x]").count() == 0


def test_an_unfinished_job_with_missing_pictures_and_a_retry_has_a_working_page(visit: Visit, tmp_path: Path) -> None:
    folder = job_folder(tmp_path, people(6, failed=1), more_planned=2)
    retry(folder, [row("photo-00005")])
    Path(folder.join("_SUCCESS")).unlink()
    for path in (tmp_path / "photos").iterdir():
        path.unlink()
    page = visit(write_review(folder, SHOWN))
    expect(page.get_by_role("heading", level=1)).to_have_text("Not finished: 6 of 8 rows have ended.")
    expect(page.locator("#sheet .missing").first).to_contain_text("not found")


def test_ten_thousand_rows_scroll_and_filter(visit: Visit, tmp_path: Path) -> None:
    folder = job_folder(tmp_path, [{**one, "restored_uri": "artifacts/00/one.png"} for one in people(10_000, failed=40, persons=300)])
    Path(folder.join("artifacts/00")).mkdir(parents=True)
    Path(folder.join("artifacts/00/one.png")).write_bytes(face(1))  # one file for all: the page is tested here, not the drawing
    page = visit(write_review(folder, SHOWN))
    expect(page.locator("#count")).to_have_text("10,000 rows")
    page.evaluate("window.scrollTo(0, document.body.scrollHeight / 2)")
    expect(page.locator("#sheet .card").first).to_have_attribute("aria-posinset", re.compile(r"[4-9]\d{3}"))
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    page.get_by_role("button", name="Open photo-09999").wait_for()
    assert page.locator("#sheet .card").count() < 100
    page.get_by_role("button", name="Failed", exact=True).click()
    expect(page.locator("#count")).to_have_text("40 of 10,000 rows")
    assert "photo-09960" in ids_on(page)
