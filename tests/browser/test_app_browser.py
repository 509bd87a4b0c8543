"""The whole road in a real browser, on the weights that ship: type, draw, ask, be answered."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect
from support.app_pages import PATIENCE
from support.judge_world import picture, sample_scenes
from support.seen import why_unseen

pytestmark = pytest.mark.browser
pytest_plugins = ["support.app_pages"]


def picture_at(page: Any, selector: str) -> Image.Image:
    """The image that an <img> shows, fetched as the page would."""
    # While Gradio puts a new picture in the place of an old one, there is none for a moment.
    page.wait_for_function(
        "selector => { const i = document.querySelector(selector); return i && i.currentSrc; }",
        arg=selector,
    )
    source = page.locator(selector).first.evaluate("image => image.currentSrc")
    response = page.request.get(source)
    assert response.ok
    return Image.open(io.BytesIO(response.body()))


def open_ask(page: Any) -> None:
    page.get_by_role("tab", name="Ask", exact=True).click()
    page.wait_for_selector("#question textarea", state="visible")


def test_a_typed_prompt_is_drawn_and_asked_about(page: Any) -> None:
    prompt, tokens = page.locator("#prompt textarea"), page.locator("#tokens")

    # The report follows the typing.
    prompt.press_sequentially("a cat")
    expect(tokens).to_contain_text("4 of 77", timeout=PATIENCE)
    prompt.press_sequentially(" left of a dog")
    expect(tokens).to_contain_text("8 of 77", timeout=PATIENCE)
    expect(tokens).to_contain_text("dog")

    prompt.press("Enter")
    page.wait_for_selector("#pictures img")
    expect(page.locator("#draw-status")).to_contain_text("1 picture in", timeout=PATIENCE)
    drawn = picture_at(page, "#pictures img")
    assert drawn.size == (128, 128)
    assert np.asarray(drawn.convert("RGB"), dtype=float).std() > 5

    page.locator("#ask-about").click()
    page.wait_for_selector("#picture img", state="visible")
    handed = picture_at(page, "#picture img")
    assert np.array_equal(np.asarray(handed.convert("RGB")), np.asarray(drawn.convert("RGB")))

    question = page.locator("#question textarea")
    question.fill("what is on the left?")
    question.press("Enter")
    answer = page.locator("#chat [data-testid=bot]").last
    expect(answer).to_have_text(re.compile(r"\w"), timeout=PATIENCE)
    expect(question).to_have_value("")


def test_several_turns_and_what_each_answer_looked_at(page: Any, tmp_path: Path) -> None:
    Image.fromarray(picture(sample_scenes(1, seed=3)[0])).save(tmp_path / "scene.png")
    open_ask(page)
    page.locator("#picture input[type=file]").set_input_files(str(tmp_path / "scene.png"))
    page.wait_for_selector("#picture img", state="visible")
    button, panel = page.locator("#look"), page.locator("#look-panel")
    overlay, caption = page.locator("#look-figure img"), page.locator("#look-figure figcaption")
    expect(button).to_be_disabled()
    question, answers = page.locator("#question textarea"), page.locator("#chat [data-testid=bot]")

    asked = [
        "describe the picture.",
        "what is the background colour?",
        "how many things are there?",
    ]
    for turn, text in enumerate(asked, start=1):
        example = page.locator("#ask-examples button", has_text=text)
        if example.count():
            example.click()
        else:
            question.fill(text)
            question.press("Enter")
        expect(answers).to_have_count(turn, timeout=PATIENCE)
        expect(button).to_be_enabled(timeout=PATIENCE)
        # An answer comes without overlays, until somebody asks for them.
        expect(panel).to_be_hidden(timeout=PATIENCE)
        button.click()
        # A background is in no single part of a picture, and the page says so.
        told = "no map" if "background" in text else "blanked, the answer"
        expect(caption).to_contain_text(told, timeout=PATIENCE)
        answer = answers.last.inner_text().split()
        words = page.locator("#look-word label")
        expect(words).to_have_text(["whole answer", *answer], timeout=PATIENCE)

        whole = overlay.get_attribute("src")
        words.last.click()
        expect(caption).to_contain_text(f"“{answer[-1]}”", timeout=PATIENCE)
        assert len(answer) == 1 or overlay.get_attribute("src") != whole
        page.get_by_label("Attention", exact=True).click()
        expect(caption).to_contain_text("attention", timeout=PATIENCE)
        page.get_by_label("Nearest words", exact=True).click()
        expect(caption).to_contain_text("Most often", timeout=PATIENCE)
        expect(page.locator("#look-word")).to_be_hidden(timeout=PATIENCE)
        seen = overlay.evaluate("image => [image.naturalWidth, image.complete]")
        assert seen[0] > 400
        assert seen[1]

    page.set_viewport_size({"width": 320, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    page.locator("#clear").click()
    expect(panel).to_be_hidden(timeout=PATIENCE)
    expect(button).to_be_disabled(timeout=PATIENCE)


def test_examples_draw_by_a_click(page: Any) -> None:
    page.locator("#draw-examples button", has_text="a dog above a pizza").click()
    expect(page.locator("#prompt textarea")).to_have_value("a dog above a pizza", timeout=PATIENCE)
    expect(page.locator("#draw-status")).to_contain_text("1 picture in", timeout=PATIENCE)


def test_an_empty_prompt_is_told_in_words(page: Any) -> None:
    page.locator("#draw").click()
    problem = page.locator("#draw-status [role=alert]")
    expect(problem).to_contain_text("rompt is empty", timeout=PATIENCE)


def test_a_long_prompt_shows_its_windows_and_weights(page: Any) -> None:
    page.locator("#prompt textarea").fill("a (red:1.3) apple left of a blue car, " * 12)
    expect(page.locator("#tokens")).to_contain_text("windows of 77", timeout=PATIENCE)
    expect(page.locator("#tokens sup").first).to_contain_text("1.3")


def test_a_prompt_that_changes_shows_what_acts_when(page: Any) -> None:
    prompt, tokens = page.locator("#prompt textarea"), page.locator("#tokens")
    prompt.fill("a [cat:dog:0.5]")
    expect(tokens).to_contain_text("steps 1 to 11 of 20", timeout=PATIENCE)
    lines = tokens.locator(".bridge-tower")
    expect(lines).to_contain_text(["cat", "dog"])
    assert not why_unseen(tokens.locator(".bridge-when"), "steps 12 to 20 of 20")
    page.locator("#settings button").first.click()
    page.get_by_label("number input for Steps").fill("8")
    expect(tokens).to_contain_text("steps 6 to 8 of 8", timeout=PATIENCE)
    prompt.fill("a cat AND a dog:0.7")
    expect(lines).to_contain_text(
        ["part 1 of 2, weight 1", "part 2 of 2, weight 0.7"], timeout=PATIENCE
    )


def test_keys_pull_the_weight_of_the_word_at_the_cursor(page: Any) -> None:
    prompt, tokens = page.locator("#prompt textarea"), page.locator("#tokens")
    prompt.fill("a red apple \\(on a plate")
    prompt.evaluate("box => box.setSelectionRange(3, 3)")
    prompt.press("Control+ArrowUp")
    expect(prompt).to_have_value("a (red:1.1) apple \\(on a plate")
    expect(tokens.locator("sup").first).to_have_text("1.1", timeout=PATIENCE)
    prompt.press("Control+ArrowUp")
    expect(prompt).to_have_value("a (red:1.2) apple \\(on a plate")
    for _ in range(3):
        prompt.press("Control+ArrowDown")
    expect(prompt).to_have_value("a (red:0.9) apple \\(on a plate")
    prompt.press("Control+ArrowUp")
    expect(prompt).to_have_value("a red apple \\(on a plate")  # at 1 without brackets

    # Several words, and a group around a group: the one that holds the selection is pulled.
    prompt.evaluate("box => box.setSelectionRange(2, 11)")
    prompt.press("Control+ArrowDown")
    expect(prompt).to_have_value("a (red apple:0.9) \\(on a plate")
    prompt.evaluate("box => box.setSelectionRange(4, 4)")
    prompt.press("Control+ArrowDown")
    expect(prompt).to_have_value("a (red apple:0.8) \\(on a plate")
    prompt.press("Control+z")
    expect(prompt).to_have_value("a (red apple:0.9) \\(on a plate")


def test_a_prompt_too_long_is_told_in_words(page: Any) -> None:
    page.locator("#prompt textarea").fill("a red apple left of a blue car, " * 1250)
    expect(page.locator("#tokens [role=alert]").first).to_contain_text(
        "at most 4,000", timeout=PATIENCE
    )


def test_an_upload_that_is_no_picture_is_told_in_words(page: Any, tmp_path: Path) -> None:
    file = tmp_path / "notes.png"
    file.write_text("these are notes, not a picture")
    open_ask(page)
    page.locator("#picture input[type=file]").set_input_files(str(file))
    problem = page.locator("#ask-status [role=alert]")
    expect(problem).to_contain_text("not an image", timeout=PATIENCE)


def test_a_question_without_a_picture_is_told_in_words(page: Any) -> None:
    open_ask(page)
    page.locator("#ask-examples button", has_text="is there a dog?").click()
    problem = page.locator("#ask-status [role=alert]")
    expect(problem).to_contain_text("no picture yet", timeout=PATIENCE)


def focused(page: Any) -> str:
    return str(page.evaluate("document.activeElement.id || document.activeElement.tagName"))


def test_a_picture_of_an_earlier_prompt_is_marked_as_such(page: Any) -> None:
    prompt, image = page.locator("#prompt textarea"), page.locator("#pictures img").first
    kept, status = page.locator(".bridge-kept"), page.locator("#draw-status")
    # Nothing is kept before there is a picture.
    page.locator("#draw").click()
    assert not why_unseen(page.locator("#draw-status [role=alert]"), "rompt is empty")
    expect(kept).to_have_count(0)

    prompt.fill("four bananas")
    page.locator("#draw").click()
    expect(status).to_contain_text("1 picture in", timeout=PATIENCE)
    assert image.evaluate("image => getComputedStyle(image).opacity") == "1"
    prompt.fill("a dog <lora:none:1>")
    page.locator("#draw").click()
    assert not why_unseen(page.locator("#draw-status [role=alert]"), "none")
    assert not why_unseen(kept, "This is still the picture of “four bananas”.")
    expect(image).to_be_visible()
    assert float(image.evaluate("image => getComputedStyle(image).opacity")) < 0.5

    prompt.fill("a dog")
    prompt.press("Enter")
    expect(status).to_contain_text("1 picture in", timeout=PATIENCE)
    expect(kept).to_have_count(0)
    assert image.evaluate("image => getComputedStyle(image).opacity") == "1"


@pytest.mark.parametrize("width", [390, 1280])
def test_weights_that_spoil_the_picture_are_told_beside_it(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    page.locator("#prompt textarea").fill("a (dog:9) left of a cat")
    page.locator("#draw").click()
    expect(page.locator("#draw-status")).to_contain_text("1 picture in", timeout=PATIENCE)
    assert not why_unseen(page.locator("#draw-status .bridge-warning"), "Weights nearer to 1")
    page.locator("#prompt textarea").fill("a (dog:1.2) left of a cat")
    page.locator("#draw").click()
    expect(page.locator("#draw-status .bridge-warning")).to_have_count(0, timeout=PATIENCE)


def test_the_focus_stays_with_the_button_or_the_prompt(page: Any) -> None:
    status, prompt = page.locator("#draw-status"), page.locator("#prompt textarea")
    prompt.fill("a cat")
    page.locator("#draw").click()
    page.wait_for_function("document.activeElement.id === 'stop'")
    expect(status).to_contain_text("1 picture in", timeout=PATIENCE)
    page.wait_for_function("document.activeElement.id === 'draw'")
    # So many pictures that Stop comes in time.
    page.locator("#settings button").first.click()
    page.get_by_label("number input for Pictures at once").fill("8")
    page.locator("#draw").focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.activeElement.id === 'stop'")
    page.keyboard.press("Enter")
    expect(status).to_contain_text(re.compile("pictures? in .* stopped"), timeout=PATIENCE)
    page.wait_for_function("document.activeElement.id === 'draw'")

    page.get_by_label("number input for Pictures at once").fill("1")

    # Who draws from the prompt types on there; who goes elsewhere is not called back.
    prompt.press("Enter")
    page.wait_for_selector("#stop")
    assert focused(page) == "TEXTAREA"
    page.wait_for_selector("#draw")
    assert focused(page) == "TEXTAREA"
    page.locator("#draw").click()
    page.wait_for_function("document.activeElement.id === 'stop'")
    page.locator("#bridge-title h1").click()
    page.wait_for_selector("#draw")
    assert focused(page) == "BODY"


def test_a_picked_picture_brings_its_own_seed(page: Any) -> None:
    page.locator("#settings button").first.click()
    page.get_by_label("number input for Pictures at once").fill("3")
    page.locator("#dice input").uncheck()
    seed = page.locator("#seed input")
    seed.fill("40")
    page.locator("#prompt textarea").fill("three stars")
    page.locator("#prompt textarea").press("Enter")
    expect(page.locator("#draw-status")).to_contain_text("3 pictures in", timeout=PATIENCE)
    expect(seed).to_have_value("40")
    page.locator("#pictures button.thumbnail-item").nth(2).click()
    expect(seed).to_have_value("42", timeout=PATIENCE)
    page.locator("#pictures button.thumbnail-item").nth(1).click()
    expect(seed).to_have_value("41", timeout=PATIENCE)


def test_the_page_says_which_models_draw_and_answer(page: Any) -> None:
    for name in ("Draw", "Ask", "Compare", "Study"):
        page.get_by_role("tab", name=name, exact=True).click()
        assert not why_unseen(page.locator(".bridge-models span"), "Draws: emoji-xl")
        assert not why_unseen(page.locator(".bridge-models span"), "Answers: emoji-llava")


@pytest.mark.parametrize("width", [320, 390, 1440])
def test_nothing_sticks_out_sideways(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    for name in ("Ask", "Draw"):
        page.get_by_role("tab", name=name, exact=True).click()
        page.wait_for_selector("#question" if name == "Ask" else "#prompt", state="visible")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
