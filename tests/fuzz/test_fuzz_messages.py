"""Whatever goes wrong on a page, the person before it sees it said: on a desk and on a phone, in
light and in dark."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fuzz_support import Fuzz
from PIL import Image
from support.app_pages import PATIENCE
from support.seen import why_unseen

pytestmark = pytest.mark.browser
pytest_plugins = ["support.app_pages"]

Do = Callable[[Any, random.Random], None]


class Case(NamedTuple):
    """What is done on a tab, and where which words are then to be seen."""

    tab: str
    do: Do
    where: str
    says: str


def typed(box: str, text: str, press: str, also: Do | None = None) -> Do:
    """Fill a box, do something else, and press a button."""

    def do(page: Any, rng: random.Random) -> None:
        page.locator(f"{box} textarea").fill(text)
        if also is not None:
            also(page, rng)
        page.locator(press).click()

    return do


def drawing(prompt: str, says: str, also: Do | None = None) -> Case:
    return Case("Draw", typed("#prompt", prompt, "#draw", also), "#draw-status [role=alert]", says)


def reading(prompt: str, says: str) -> Case:
    def do(page: Any, rng: random.Random) -> None:
        page.locator("#prompt textarea").fill("")
        page.locator("#prompt textarea").fill(prompt)

    return Case("Draw", do, "#tokens [role=alert]", says)


def studying(says: str, also: Do, prompt: str = "a red cat", own: str = "a blue dog") -> Case:
    def do(page: Any, rng: random.Random) -> None:
        page.locator("#study-own textarea").fill(own)
        page.locator("#study-draw input").set_checked(False)
        # The page is told by the server what to hide.
        page.locator("#study-choices input").first.wait_for(state="hidden")
        also(page, rng)

    return Case("Study", typed("#study-prompt", prompt, "#study", do), PROBLEM, says)


PROBLEM = "#study-status [role=alert]"


def seeded(form: str, seed: str) -> Do:
    def do(page: Any, rng: random.Random) -> None:
        if form == "#seed":
            if not page.locator("#dice input").is_visible():
                page.locator("#settings button").first.click()
            page.locator("#dice input").set_checked(False)
        else:
            chosen(page, rng)  # what an earlier case unticked would be told first
        page.locator(f"{form} input").fill(seed)

    return do


def opposed(page: Any, rng: random.Random) -> None:
    if not page.locator("#negative textarea").is_visible():
        page.locator("#settings button").first.click()
    page.locator("#seed input").fill("0")
    page.locator("#negative textarea").fill("<lora:it:1>")


def plain(page: Any, rng: random.Random) -> None:
    if page.locator("#settings textarea").first.is_visible():
        page.locator("#seed input").fill("0")
        page.locator("#negative textarea").fill("")


def chosen(page: Any, rng: random.Random) -> None:
    """Back to what the form offers."""
    page.locator("#study-seed input").fill("0")
    for name in ("#study-towers input", "#study-choices input"):
        first = page.locator(name).first
        if first.is_visible():
            first.set_checked(True)


def without_towers(page: Any, rng: random.Random) -> None:
    for tower in page.locator("#study-towers input").all():
        tower.set_checked(False)


def drawn_by_nothing(page: Any, rng: random.Random) -> None:
    chosen(page, rng)
    page.locator("#study-draw input").set_checked(True)
    page.locator("#study-choices input").first.wait_for(state="visible")
    for choice in page.locator("#study-choices input").all():
        choice.set_checked(False)


def drawn(page: Any, rng: random.Random) -> None:
    page.locator("#study-draw input").set_checked(True)
    page.locator("#study-choices input").first.wait_for(state="visible")
    chosen(page, rng)


def uploaded(page: Any, name: str, data: bytes) -> None:
    if page.locator("#picture img").count():
        page.locator("#clear").click()
        page.locator("#picture img").wait_for(state="detached")
    upload = page.locator("#picture input[type=file]")
    upload.set_input_files({"name": name, "mimeType": "image/png", "buffer": data})


def noise(rng: random.Random) -> bytes:
    return rng.randbytes(rng.randrange(1, 2000))


def text_as_picture(page: Any, rng: random.Random) -> None:
    uploaded(page, "notes.png", b"these are notes " * rng.randrange(1, 100))


def cut_picture(page: Any, rng: random.Random) -> None:
    pixels = Image.frombytes("RGB", (40, 40), rng.randbytes(4800))
    file = Path(page.tmp) / "whole.png"
    pixels.save(file)
    uploaded(page, "half.png", file.read_bytes()[: rng.randrange(200, 4000)])


def noisy_picture(page: Any, rng: random.Random) -> None:
    uploaded(page, "noise.webp", b"RIFF" + noise(rng))


def text_file(page: Any, rng: random.Random) -> None:
    file = Path(page.tmp) / "notes.txt"
    file.write_bytes(noise(rng))
    page.locator("#picture input[type=file]").set_input_files(str(file))


def huge_file(page: Any, rng: random.Random) -> None:
    # Not of the disk: a hole in a file takes no room there.
    file = Path(page.tmp) / "huge.png"
    with file.open("wb") as out:
        out.truncate(101 * 2**20)
    page.locator("#picture input[type=file]").set_input_files(str(file))


def a_good_picture(page: Any, rng: random.Random) -> None:
    file = Path(page.tmp) / "good.png"
    Image.new("RGB", (32, 32), "red").save(file)
    uploaded(page, "good.png", file.read_bytes())
    page.locator("#picture img").wait_for(state="visible")


def asking(question: str, says: str, also: Do) -> Case:
    def do(page: Any, rng: random.Random) -> None:
        also(page, rng)
        page.locator("#question textarea").fill(question)
        page.locator("#ask").click()

    return Case("Ask", do, "#ask-status [role=alert]", says)


def uploading(also: Do, says: str) -> Case:
    return Case("Ask", also, "#ask-status [role=alert]", says)


def cleared(page: Any, rng: random.Random) -> None:
    page.locator("#clear").click()
    page.locator("#picture img").wait_for(state="detached")


TOAST = "[data-testid=toast-body]"
MANY = "\n".join(f"phrasing {n}" for n in range(13))
CASES = [
    drawing("", "rompt is empty", plain),
    drawing(" \n ", "rompt is empty", plain),
    drawing("a cat\0", "NUL character", plain),
    drawing("a red apple left of a blue car " * 1250, "at most", plain),
    drawing("a cat <lora:nothing:1>", "nothing", plain),
    drawing("a cat <lora::1>", "has no name", plain),
    drawing(f"(a cat:{'9' * 400})", "no encoder can use", plain),
    drawing("a cat", "Seed is -1", seeded("#seed", "-1")),
    drawing("a cat", "Seed is 99999", seeded("#seed", "99999999999999999999999")),
    drawing("a cat", "LoRA tag belongs into the prompt", opposed),
    reading("a dog\0", "NUL character"),
    reading("a red apple left of a blue car " * 1250, "at most"),
    reading("a cat <lora::1>", "has no name"),
    asking("what?", "no picture yet", cleared),
    asking("", "uestion", a_good_picture),
    asking("what\0?", "NUL character", a_good_picture),
    uploading(text_as_picture, "notes.png"),
    uploading(cut_picture, "half.png"),
    uploading(noisy_picture, "noise.webp"),
    Case("Ask", text_file, TOAST, "Only image"),
    Case("Ask", huge_file, TOAST, "exceed the maximum"),
    studying("nothing to compare", chosen, own=""),
    studying("prompt is empty", chosen, prompt=" "),
    studying("NUL character", chosen, own="a\0"),
    studying("at most 400", chosen, prompt="cat " * 200),
    studying("at most 12 with pictures", drawn, own=MANY),
    studying("No tower is ticked", without_towers),
    studying("Nothing is ticked that draws", drawn_by_nothing),
    studying("Seed is -1", seeded("#study-seed", "-1")),
]


@pytest.fixture
def pages(browser: Any, app: tuple[str, Path], tmp_path: Path) -> Iterator[list[Any]]:
    """The app on a desk in light, and on a phone in dark."""
    url, log = app
    contexts = [
        browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light"),
        browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark"),
    ]
    found = []
    for context in contexts:
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.tmp = str(tmp_path)
        page.goto(url)
        page.wait_for_selector("#prompt textarea")
        found.append(page)
    yield found
    for context in contexts:
        context.close()
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    ("row", "tabs"), [("Draw and Ask", ("Draw", "Ask")), ("Study", ("Study",))]
)
def test_every_message_is_seen(
    fuzz: Fuzz, pages: list[Any], row: str, tabs: tuple[str, ...]
) -> None:
    cases = [case for case in CASES if case.tab in tabs]
    with fuzz(f"errors on {row} that a person sees", len(cases)) as run:
        for rng, case in zip(run.draws(), cycle(cases), strict=False):
            page = rng.choice(pages)
            page.get_by_role("tab", name=case.tab, exact=True).click()
            case.do(page, rng)
            why = why_unseen(page.locator(case.where), case.says)
            run.expect(not why, f"{case.tab}: {why}")
