"""The app's panel "What it looked at", without a browser."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from PIL import Image
from support.tiny_vlm import tiny_llava

import bridge
from bridge.errors import UnknownModelError
from demos.asking import NO_WORDS
from demos.look_panel import LookPanel, Sight, look_panel
from demos.looking import ATTENTION, BLANKED, KINDS, NEAREST, WHOLE, Look, look, look_html
from demos.looking import word_choices as choices
from demos.models import Models

TURNS = [("is there a dog?", "no"), ("what is on the left?", "two red apples")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models("no-such-model", str(tiny_llava(tmp_path_factory.mktemp("models"))))


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def shown(html: str) -> np.ndarray:
    found = re.search(r'src="data:image/jpeg;base64,([^"]+)"', html)
    assert found
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1]))))


@pytest.mark.parametrize("kind", [BLANKED, ATTENTION])
def test_each_word_has_its_own_overlay(models: Models, picture: Image.Image, kind: str) -> None:
    seen = look(models, picture, TURNS, kind)
    assert seen.words == ("two", "red", "apples")
    assert choices(seen) == [("whole answer", WHOLE), ("two", 0), ("red", 1), ("apples", 2)]
    pictures = [shown(look_html(seen, word)) for word in (WHOLE, 0, 1, 2)]
    assert all(made.shape == (512, 512, 3) for made in pictures)
    assert len({made.tobytes() for made in pictures}) == 4
    assert "“red”" in look_html(seen, 1)
    assert look_html(seen, 99) == look_html(seen)  # a word of an earlier, longer answer


def test_blanked_parts_are_the_occlusion_of_the_last_turn(
    models: Models, picture: Image.Image
) -> None:
    seen = look(models, picture, TURNS, BLANKED)
    want = bridge.vlm.occlusion(models.vlm(), picture, *TURNS[1], history=TURNS[:1])
    assert np.allclose(seen.heat[1], want.cells(1))
    assert np.allclose(seen.heat[WHOLE], want.cells())


def test_earlier_turns_that_do_not_fit_are_left_out(models: Models, picture: Image.Image) -> None:
    long = [("is there a dog? " * 20, "no")] * 3
    one = look(models, picture, [*long, TURNS[1]], BLANKED)
    alone = look(models, picture, TURNS[1:], BLANKED)
    assert np.allclose(one.heat, alone.heat)


def test_a_single_words_attention_is_not_set_against_itself(
    models: Models, picture: Image.Image
) -> None:
    seen = look(models, picture, [("is there a dog?", "no")], ATTENTION)
    assert (seen.heat > 0).all()


def test_the_nearest_words_are_told(models: Models, picture: Image.Image) -> None:
    seen = look(models, picture, TURNS, NEAREST)
    assert seen.texts is not None
    assert seen.texts.shape == (4, 4)
    assert seen.words == ()
    assert shown(look_html(seen)).shape == (768, 768, 3)


def test_a_word_without_evidence_says_so_instead_of_a_legend() -> None:
    white = Image.new("RGB", (32, 32), "white")
    heat = np.stack([np.full((2, 2), 0.001), np.zeros((2, 2)), np.eye(2)])
    seen = Look(
        BLANKED, ("a", "b"), white, heat, 0.25, None, "legend", "legend of {name}", "no {name}"
    )
    for word, name in enumerate(seen.words):
        html = look_html(seen, word)
        assert f"no “{name}”" in html and "legend" not in html and "came from" not in html
        assert (np.abs(shown(html).astype(int) - 255) < 6).all()
    assert "legend" in look_html(seen) and "no the answer" not in look_html(seen)


def test_words_are_escaped() -> None:
    white = Image.new("RGB", (8, 8), "white")
    seen = Look(BLANKED, ('<b>"x',), white, np.ones((2, 2, 2)), least=0.25, told_word="{name}")
    html = look_html(seen, 0)
    assert "<b>" not in html
    assert "&lt;b&gt;&quot;x" in html


@pytest.mark.parametrize("kind", KINDS)
def test_what_fails_is_raised_for_the_page_to_tell(picture: Image.Image, kind: str) -> None:
    with pytest.raises(UnknownModelError):
        look(Models("no-such-model", "no-such-model"), picture, TURNS, kind)


@pytest.fixture
def panel(models: Models) -> LookPanel:
    with gr.Blocks():
        return look_panel(models, gr.HTML())


@pytest.fixture
def file(picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    picture.save(tmp_path / "a.png")
    return {"path": str(tmp_path / "a.png")}


def test_a_look_that_comes_after_the_next_answer_is_not_shown(
    panel: LookPanel, file: dict[str, str]
) -> None:
    sight = Sight()
    late = panel._open(file, TURNS, ATTENTION, None, sight)
    assert panel.panel in next(late)  # it says that it looks
    panel._close([*TURNS, ("is there a cat?", "yes")], sight)
    assert list(late) == [] and not sight.looks
    made = list(panel._open(file, TURNS, ATTENTION, None, sight))
    assert len(made) == 2 and "<img" in made[-1][panel.figure]


def test_an_error_of_an_old_look_is_not_told(panel: LookPanel, file: dict[str, str]) -> None:
    Path(file["path"]).write_text("no picture at all")
    sight = Sight()
    late = panel._open(file, TURNS, ATTENTION, None, sight)
    next(late)
    panel._close(TURNS, sight)
    assert list(late) == []
    told = list(panel._open(file, TURNS, ATTENTION, None, sight))
    assert "not an image" in told[-1][panel.status]


def test_a_look_is_worked_out_once_for_one_answer(panel: LookPanel, file: dict[str, str]) -> None:
    sight = Sight()
    assert len(list(panel._open(file, TURNS, ATTENTION, 1, sight))) == 2
    again = list(panel._open(file, TURNS, ATTENTION, 1, sight))
    assert len(again) == 1 and "“red”" in again[0][panel.figure]
    assert again[0][panel.figure] == panel._pick(ATTENTION, 1, sight)
    other = list(panel._open(file, TURNS[:1], ATTENTION, None, sight))
    assert len(other) == 2  # other turns, though nothing closed the panel


def test_an_answer_without_words_is_not_explained(panel: LookPanel) -> None:
    def on(turns: list[tuple[str, str]]) -> bool:
        return panel._close(turns, Sight())[panel.button].interactive

    assert on(TURNS) and not on([]) and not on([*TURNS, ("is there a cat?", NO_WORDS)])
