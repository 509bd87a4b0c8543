"""The tab Study in a real browser, on the weights that ship: phrasings compared and drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect
from support.app_pages import PATIENCE
from support.seen import why_unseen

pytestmark = pytest.mark.browser
pytest_plugins = ["support.app_pages"]

PHRASINGS = [
    "a red cat left of a blue dog",
    "a blue dog right of a red cat",
    "a blue cat",
]


def open_study(page: Any) -> None:
    page.get_by_role("tab", name="Study", exact=True).click()
    page.wait_for_selector("#study-prompt textarea", state="visible")


def sticks_out(page: Any, width: int) -> bool:
    page.set_viewport_size({"width": width, "height": 844})
    return bool(page.evaluate("document.documentElement.scrollWidth") > width)


def test_two_towers_three_phrasings_pictures_and_heat_maps(page: Any, tmp_path: Path) -> None:
    open_study(page)
    page.locator("#study-prompt textarea").fill(PHRASINGS[0])
    page.locator("#study-own textarea").fill("\n".join(PHRASINGS[1:]))
    page.locator("#study-draw input").check()
    page.get_by_label("pooled alone").check()
    page.locator("#study").click()
    expect(page.locator("#study-status")).to_contain_text(
        "3 phrasings, 2 towers, 6 pictures in", timeout=PATIENCE
    )

    tables, pictures = page.locator("#study-tables"), page.locator("#study-pictures")
    expect(tables.locator("thead th")).to_contain_text(["Phrasing", "emoji-1", "emoji-2"])
    expect(tables.locator("thead th").nth(1)).to_contain_text("chance 0.")
    rows = tables.locator("tbody tr")
    expect(rows).to_contain_text(PHRASINGS)
    expect(rows.first.locator("td b")).to_have_text(["1.000", "1.000"])
    assert float(rows.nth(2).locator("td b").first.inner_text()) < 0.95
    expect(tables.locator(".chips").first.locator("bdi")).to_have_text(PHRASINGS[0].split())
    widths = rows.locator(".bar span").evaluate_all("bars => bars.map(bar => bar.offsetWidth)")
    assert widths[0] > widths[4] > 0

    # Six pictures; heat maps where the whole model drew a phrasing with the word.
    expect(pictures.locator("img:not(.heat)")).to_have_count(6)
    expect(page.locator("#study-word label")).to_have_text(["red", "cat", "blue", "dog"])
    heat = pictures.locator("img.heat")
    expect(heat).to_have_count(2)
    expect(pictures).to_contain_text("no “red” in it")
    before = heat.first.get_attribute("src")
    page.locator("#study-word label", has_text="cat").click()
    expect(heat).to_have_count(3, timeout=PATIENCE)
    assert heat.first.get_attribute("src") != before
    seen = pictures.locator("img").evaluate_all("all => all.map(i => i.complete && i.naturalWidth)")
    assert all(seen)

    for width in (390, 1200):
        assert not sticks_out(page, width)
        # Nor is anything inside cut off: the table fits its box.
        inner = tables.locator(".rows").evaluate("box => box.scrollWidth - box.clientWidth")
        assert inner <= 0, width

    for button, start in (("#study-html", "<!doctype html>"), ("#study-csv", "prompt,operation")):
        with page.expect_download() as download:
            page.locator(button).click()
        file = tmp_path / download.value.suggested_filename
        download.value.save_as(file)
        assert file.suffix == button.replace("#study-", ".")
        text = file.read_text(encoding="utf-8")
        assert text.startswith(start)
        assert all(phrasing in text for phrasing in PHRASINGS)


def test_too_much_and_nothing_are_told_before_and_after_a_press(page: Any) -> None:
    open_study(page)
    problem, count = page.locator("#study-status [role=alert]"), page.locator("#study-count")
    expect(count).to_contain_text("3 phrasings with the prompt, of at most 300", timeout=PATIENCE)
    page.locator("#study-own textarea").fill("")
    expect(count).to_contain_text("nothing to compare with", timeout=PATIENCE)
    page.locator("#study").click()
    expect(problem).to_contain_text("nothing to compare with", timeout=PATIENCE)
    page.get_by_label("template").check()
    page.get_by_label("typo").check()
    page.locator("#study-draw input").check()
    assert not why_unseen(count.locator("[role=alert]"), "too many: at most 12 with pictures")
    page.locator("#study").click()
    expect(problem).to_contain_text("at most 12 with pictures", timeout=PATIENCE)
    page.locator("#study-draw input").uncheck()
    expect(count.locator("[role=alert]")).to_have_count(0, timeout=PATIENCE)
    page.locator("#study-prompt textarea").fill(" ")
    page.locator("#study").click()
    expect(problem).to_contain_text("prompt is empty", timeout=PATIENCE)
    expect(page.locator("#study-results")).to_be_hidden()


def test_an_earlier_study_beneath_an_error_is_marked_as_such(page: Any) -> None:
    open_study(page)
    page.locator("#study").click()
    status, kept = page.locator("#study-status"), page.locator("#study-status .bridge-kept")
    expect(status).to_contain_text("3 phrasings", timeout=PATIENCE)
    expect(kept).to_have_count(0)
    expect(page.locator("#study-html")).to_have_text("Report (HTML)")
    page.locator("#study-own textarea").fill("")
    page.locator("#study").click()
    assert not why_unseen(page.locator("#study-status [role=alert]"), "nothing to compare with")
    assert not why_unseen(kept, "Below is still the earlier study of “a red cat left")
    expect(page.locator("#study-html")).to_have_text("Earlier study: Report (HTML)")
    expect(page.locator("#study-csv")).to_have_text("Earlier study: Table (CSV)")
    page.locator("#study-own textarea").fill("a dog")
    page.locator("#study").click()
    expect(status).to_contain_text("2 phrasings", timeout=PATIENCE)
    expect(kept).to_have_count(0)
    expect(page.locator("#study-html")).to_have_text("Report (HTML)")


def test_operations_alone_are_read_without_pictures(page: Any) -> None:
    open_study(page)
    page.locator("#study-own textarea").fill("")
    page.get_by_label("negation").check()
    page.locator("#study-towers label", has_text="emoji-2").click()
    page.locator("#study").click()
    expect(page.locator("#study-status")).to_contain_text("1 tower in", timeout=PATIENCE)
    expect(page.locator("#study-tables tbody")).to_contain_text("negation", timeout=PATIENCE)
    expect(page.locator("#study-tables thead th")).to_have_count(2)
    expect(page.locator("#study-pictures img")).to_have_count(0)
    expect(page.locator("#study-word")).to_be_hidden()


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_the_form_does_not_stick_out_sideways(page: Any, width: int) -> None:
    open_study(page)
    page.locator("#study-draw input").check()
    page.wait_for_selector("#study-choices", state="visible")
    assert not sticks_out(page, width)
