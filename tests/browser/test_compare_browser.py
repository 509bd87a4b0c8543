"""The tab Compare in a real browser, on the weights that ship: pictures beside texts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import expect
from support.app_pages import PATIENCE
from support.judge_world import picture
from support.seen import why_unseen

from emoji_world.scenes import Group, PlacedObject, Scene

pytestmark = pytest.mark.browser
pytest_plugins = ["support.app_pages"]

LABELS = ["cat", "apple", "umbrella", "key", "rose"]
THINGS = {"umbrella": 6, "key": 7, "rose": 9}  # columns of the sample's artwork
BAD = "<b>notes.png"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Pictures of three things, and a file that is none."""
    folder = tmp_path_factory.mktemp("files")
    for name, column in THINGS.items():
        place = PlacedObject(column, None, "normal", 48, 32)
        scene = Scene("fluent", "blue", (Group(column),), None, (place,))
        Image.fromarray(picture(scene)).save(folder / f"{name}.png")
    (folder / BAD).write_text("these are notes, not a picture")
    yield folder


def open_compare(page: Any) -> None:
    page.get_by_role("tab", name="Compare", exact=True).click()
    page.wait_for_selector("#compare-labels textarea", state="visible")


def upload(page: Any, *files: Path) -> None:
    shown = page.locator("#compare-pictures .grid-wrap img")
    there = shown.count()
    page.locator("#compare-pictures input[type=file]").set_input_files([str(f) for f in files])
    expect(shown).to_have_count(there + len(files), timeout=PATIENCE)


def labelled(page: Any, text: str) -> None:
    page.locator("#compare-labels textarea").fill(text)


def compared(page: Any, told: str) -> None:
    page.locator("#compare").click()
    expect(page.locator("#compare-status [role=status]")).to_contain_text(told, timeout=PATIENCE)


def seen(element: Any, text: str) -> None:
    """Assert that a person sees it once the page is scrolled there."""
    found = element.filter(has_text=text).first
    found.wait_for()
    found.evaluate("box => box.scrollIntoView({block: 'center', inline: 'center'})")
    assert not why_unseen(element, text)


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_pictures_beside_texts_by_two_models(
    page: Any, files: Path, scheme: str, width: int
) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto(f"{page.url}?__theme={scheme}")
    page.set_viewport_size({"width": width, "height": 844})
    open_compare(page)
    upload(page, *(files / f"{name}.png" for name in THINGS), files / BAD)
    labelled(page, "\n".join([*LABELS, "<i>nobody</i>"]))
    page.locator("#compare-models label", has_text="emoji-2").click()
    compared(page, "3 pictures, 6 texts, 2 models in")

    # The one that cannot be read is named, and the others are compared.
    warning = page.locator("#compare-status .bridge-warning")
    seen(warning, "Left out: ")
    expect(warning).to_contain_text(re.compile("notes.png' is not an image"))
    results = page.locator("#compare-results")
    sections = results.locator("section")
    expect(sections).to_have_count(2)
    for place, name in enumerate(("emoji-1", "emoji-2")):
        table = sections.nth(place).get_by_role("region", name=f"Similarities by {name}")
        seen(sections.nth(place).locator("h3"), name)
        seen(table.locator("tbody th"), "<i>nobody</i>")
        seen(table.locator("thead small"), "key.png")
        seen(table.locator("td b"), re.compile(r"^0\.\d\d$"))
        # Each thing's own name is marked, and by more than a colour.
        for column, label in enumerate(THINGS):
            cells = table.get_by_role("row", name=label).locator("td")
            seen(cells.nth(column), "★")
            frame = cells.nth(column).evaluate("cell => getComputedStyle(cell).boxShadow")
            assert "2px inset" in frame
        assert table.locator("td", has_text="★").count() == len(THINGS)
        images = table.locator("thead img").evaluate_all("all => all.map(i => i.naturalWidth)")
        assert len(images) == 3 and all(images)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [section.bounding_box() for section in sections.all()]
    side_by_side = boxes[1]["x"] > boxes[0]["x"] + boxes[0]["width"] - 1
    assert side_by_side == (width > 1000)


def test_what_a_wording_changes_is_named_beside_the_bare_name(page: Any, files: Path) -> None:
    open_compare(page)
    upload(page, files / "key.png")
    labelled(page, "cat\nbanana\nkey")
    page.locator("#compare-wording").get_by_label("Bare, as written").check()
    compared(page, "1 picture, 3 texts, 1 model in")
    results = page.locator("#compare-results")
    bare = results.locator("tr", has=page.locator("td.best")).locator("th").inner_text()
    expect(results.locator("s")).to_have_count(0)
    expect(results).to_contain_text("“{}”")

    sentences = page.locator("#compare-sentences")
    expect(sentences).to_be_hidden()
    page.locator("#compare-wording").get_by_label("Sentences of your own").check()
    expect(sentences).to_be_visible(timeout=PATIENCE)
    # An error leaves no table of before that it could be taken for.
    sentences.locator("textarea").fill("a picture without a place")
    page.locator("#compare").click()
    problem = page.locator("#compare-status [role=alert]")
    assert not why_unseen(problem, "has no place for the name; write {} where it goes")
    expect(results.locator("table")).to_have_count(0)

    page.locator("#compare-wording").get_by_label("The model's head").check()
    expect(sentences).to_be_hidden(timeout=PATIENCE)
    compared(page, "1 picture, 3 texts, 1 model in")
    best = results.locator("tr", has=page.locator("td.best")).locator("th")
    expect(best).to_have_text("key")
    expect(results).to_contain_text("through the model's head")
    assert bare != "key"
    seen(results.locator("h4"), "The wording changes 1 of 1")
    seen(results.locator("li"), f"by bare names {bare}, now key")
    struck = results.locator("s").evaluate("s => getComputedStyle(s).textDecorationLine")
    assert struck == "line-through"
    seen(results.locator("td"), "☆")


def test_what_is_missing_is_told_beside_the_button(page: Any, files: Path) -> None:
    open_compare(page)
    problem = page.locator("#compare-status [role=alert]")
    page.locator("#compare").click()
    assert not why_unseen(problem, "There are no pictures yet.")
    upload(page, files / BAD)
    page.locator("#compare").click()
    assert not why_unseen(problem, "notes.png' is not an image")
    upload(page, files / "key.png")
    for labels, told in (
        (" ", "There are no texts yet."),
        ("cat\ncat", "“cat” is written twice; leave one out."),
        ("\n".join(map(str, range(51))), "These are 51 texts, and this page takes at most 50"),
    ):
        labelled(page, labels)
        page.locator("#compare").click()
        assert not why_unseen(problem, told)
    labelled(page, "cat")
    page.locator("#compare-models label", has_text="emoji-1: English").click()
    page.locator("#compare").click()
    assert not why_unseen(problem, "No model is ticked")
    expect(page.locator("#compare-results")).to_be_hidden()


def test_another_language_by_the_model_that_reads_it(page: Any, files: Path) -> None:
    open_compare(page)
    upload(page, files / "key.png", files / "rose.png")
    page.locator("#compare-examples button", has_text="Hund").click()
    expect(page.locator("#compare-labels textarea")).to_have_value(
        re.compile("钥匙"), timeout=PATIENCE
    )
    compared(page, "2 pictures, 5 texts")
    warning = page.locator("#compare-status .bridge-warning")
    assert not why_unseen(warning, "English alone is read by emoji-1")
    page.locator("#compare-models label", has_text="emoji-1: English").click()
    page.locator("#compare-models label", has_text="many languages").click()
    page.locator("#compare").click()
    results = page.locator("#compare-results")
    # Who found it says which answer this is: the model loads first, and the one before stays.
    expect(results.locator("h3")).to_have_text(re.compile("emoji-multilingual"), timeout=PATIENCE)
    expect(warning).to_have_count(0)
    best = results.locator("tr", has=page.locator("td.best")).locator("th")
    expect(best).to_have_text(["钥匙", "장미"])  # a key, a rose


def test_a_drawn_picture_joins_those_that_are_there(page: Any, files: Path) -> None:
    open_compare(page)
    upload(page, files / "key.png")
    page.get_by_role("tab", name="Draw", exact=True).click()
    button = page.locator("#compare-it")
    expect(button).to_be_disabled()
    page.locator("#prompt textarea").fill("a red apple")
    page.locator("#draw").click()
    expect(page.locator("#draw-status")).to_contain_text("1 picture in", timeout=PATIENCE)
    button.click()
    shown = page.locator("#compare-pictures .grid-wrap img")
    expect(shown).to_have_count(2, timeout=PATIENCE)
    page.wait_for_function(
        "document.activeElement === document.querySelector('#compare-labels textarea')"
    )
    labelled(page, "apple\nkey\nbicycle")
    compared(page, "2 pictures, 3 texts")
    heads = page.locator("#compare-results thead small")
    expect(heads).to_have_text(["1", "key.png", "2", re.compile("a red apple")])
    rows = page.locator("#compare-results tbody tr")
    expect(rows.nth(1).locator("td").nth(0)).to_contain_text("★")
    expect(rows.nth(0).locator("td").nth(1)).to_contain_text("★")

    # One is taken out again, without a mouse that hovers.
    page.locator("#compare-pictures .delete-button").first.click()
    expect(shown).to_have_count(1, timeout=PATIENCE)
    compared(page, "1 picture, 3 texts")


@pytest.mark.parametrize("width", [320, 390])
def test_many_pictures_scroll_in_their_own_box(page: Any, files: Path, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    open_compare(page)
    upload(page, *[files / f"{name}.png" for name in THINGS] * 3)
    labelled(page, "key\na very long caption of a picture with two red umbrellas left of a rose")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    compared(page, "9 pictures, 2 texts")
    box = page.locator("#compare-results .rows")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert box.evaluate("box => box.scrollWidth > box.clientWidth")
    # By keys too, and the texts stay in sight.
    box.focus()
    page.keyboard.press("End")
    box.evaluate("box => { box.scrollLeft = box.scrollWidth }")
    seen(box.locator("tbody th"), "key")
    seen(box.locator("thead small"), "9")
