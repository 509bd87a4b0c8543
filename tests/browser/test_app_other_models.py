"""The app with models of the user's own, in a real browser: nothing on it is of the models that
ship."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect
from support.app_pages import PATIENCE, served
from support.seen import why_unseen
from support.tiny_models import tiny_sd_pipeline
from support.tiny_vlm import tiny_llava

from demos.ask_tab import OTHER_QUESTIONS
from demos.draw_tab import OTHER_EXAMPLES

pytestmark = pytest.mark.browser
pytest_plugins = ["support.app_pages"]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The app with a drawing model of one text tower and without a pooled state."""
    folder = tmp_path_factory.mktemp("models")
    tiny_sd_pipeline().save_pretrained(folder / "my-painter")
    vlm = tiny_llava(folder).rename(folder / "my-reader")
    with served(folder, "--model", str(folder / "my-painter"), "--vlm", str(vlm)) as running:
        yield running


def test_the_page_names_the_models_and_not_where_they_lie(page: Any, app: tuple[str, Path]) -> None:
    assert not why_unseen(page.locator(".bridge-models span"), "Draws: my-painter")
    assert not why_unseen(page.locator(".bridge-models span"), "Answers: my-reader")
    assert str(app[1].parent) not in page.content()


def test_examples_are_not_of_the_emoji_world(page: Any) -> None:
    expect(page.locator("#draw-examples button")).to_have_text(OTHER_EXAMPLES)
    page.get_by_role("tab", name="Ask", exact=True).click()
    expect(page.locator("#ask-examples button")).to_have_text(OTHER_QUESTIONS)
    for text in ("noto", "emoji", "twemoji"):
        assert text not in page.locator("body").inner_text()


def test_a_study_reads_with_the_models_own_tower_and_offers_no_other(page: Any) -> None:
    page.get_by_role("tab", name="Study", exact=True).click()
    expect(page.locator("#study-towers label")).to_have_text(["text_encoder"], timeout=PATIENCE)
    page.locator("#study-draw input").check()
    page.wait_for_selector("#study-choices", state="visible")
    expect(page.locator("#study-choices label")).to_have_text(["whole model"], timeout=PATIENCE)
    page.locator("#study").click()
    expect(page.locator("#study-status")).to_contain_text(
        "3 phrasings, 1 tower, 3 pictures in", timeout=PATIENCE
    )
    head = page.locator("#study-tables thead th")
    expect(head).to_have_count(2)
    expect(head.nth(1)).to_contain_text("text_encoder")
    # Its own default, which is that of Draw.
    expect(page.locator("#study-pictures")).to_contain_text("guidance 5")
    page.get_by_role("tab", name="Draw", exact=True).click()
    page.locator("#settings button").first.click()
    expect(page.get_by_label("number input for Guidance")).to_have_value("5")
