"""The app's own logic, without a browser: streams, messages, the token report, uploads."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from PIL import Image
from support.tiny_models import tiny_sdxl_pipeline
from support.tiny_vlm import tiny_llava

from bridge.errors import ImageError, PromptError, UnknownModelError
from demos.app import build, main, options
from demos.ask_tab import messages
from demos.asking import answer
from demos.draw_tab import EXAMPLES, Pictured, draw_tab, summary
from demos.drawing import Drawn, Progress, Stops, Wish, draw
from demos.messages import explain, note
from demos.models import Models
from demos.pictures import columns_for, progress_html
from demos.theme import CSS, theme
from demos.tokens import token_html
from demos.uploads import NOT_UPLOADED, picture_of, uploaded

PROMPT = "two red apples left of a cat"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Tiny random models behind the app's real loading code."""
    folder = tmp_path_factory.mktemp("models")
    tiny_sdxl_pipeline().save_pretrained(folder / "draws")
    return Models(str(folder / "draws"), str(tiny_llava(folder)))


@pytest.fixture
def nowhere() -> Models:
    """Models that cannot be loaded: what passes with them loads none."""
    return Models("no-such-model", "no-such-model")


@pytest.fixture
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def last(stream: Iterator[Progress | Drawn]) -> Drawn:
    *before, end = stream
    assert isinstance(end, Drawn)
    assert all(isinstance(report, Progress) for report in before)
    return end


# -- drawing ---------------------------------------------------------------------------


def test_drawing_reports_progress_and_ends_with_pictures(models: Models) -> None:
    reports = list(draw(models, Wish(PROMPT, seed=3.0, steps=4.0, count=2), threading.Event()))
    assert reports[0] == Progress()
    steps = [r for r in reports[1:] if isinstance(r, Progress)]
    assert [r.step for r in steps] == sorted(r.step for r in steps)
    assert all(len(r.images) == 2 and r.steps == 4 for r in steps)
    end = reports[-1]
    assert isinstance(end, Drawn)
    assert end.seeds == (3, 4)
    assert [image.size for image in end.images] == [(64, 64), (64, 64)]
    assert (end.steps_done, end.stopped) == (4, False)


def test_a_seed_draws_the_same_picture_again(models: Models) -> None:
    one, two = (last(draw(models, Wish(PROMPT, seed=5, steps=2), threading.Event())) for _ in "ab")
    assert np.array_equal(np.asarray(one.images[0]), np.asarray(two.images[0]))


def test_an_empty_seed_is_drawn_and_told(models: Models) -> None:
    end = last(draw(models, Wish(PROMPT, steps=1), threading.Event()))
    assert f"seed {end.seeds[0]}" in summary(end)


def test_stop_ends_drawing_with_what_there_is(models: Models) -> None:
    stop = threading.Event()
    stop.set()
    end = last(draw(models, Wish(PROMPT, steps=30), stop))
    assert end.stopped
    assert end.steps_done == 1
    assert len(end.images) == 1
    assert "stopped after 1 step ·" in summary(end)


def test_a_reader_who_leaves_stops_the_worker(models: Models) -> None:
    stop = threading.Event()
    stream = draw(models, Wish(PROMPT, steps=1000), stop)
    next(stream)
    next(stream)
    stream.close()
    assert stop.is_set()
    for thread in threading.enumerate():
        if thread.name == "bridge-draw":
            thread.join(timeout=60)
            assert not thread.is_alive()


@pytest.mark.parametrize("prompt", ["", "   \n", "a cat\0", "\ud83d"])
def test_a_bad_prompt_is_refused_before_a_model_loads(nowhere: Models, prompt: str) -> None:
    with pytest.raises(PromptError):
        list(draw(nowhere, Wish(prompt), threading.Event()))


def test_an_unknown_model_is_told_to_the_reader(nowhere: Models) -> None:
    with pytest.raises(UnknownModelError, match="no-such-model"):
        list(draw(nowhere, Wish(PROMPT), threading.Event()))


@pytest.mark.filterwarnings("ignore::bridge.errors.OffManifoldWarning")
def test_a_drawing_tells_of_weights_that_go_too_far(models: Models) -> None:
    def told(prompt: str) -> tuple[str, ...]:
        return last(draw(models, Wish(prompt, "a (tree:9)", steps=4), threading.Event())).warnings

    (of_prompt, of_negative) = told("a (dog:9)")
    assert of_prompt.startswith("prompt: its weights go beyond what the model has seen")
    assert of_negative.startswith("negative prompt: its weights")
    # Also of a step that is not the first, and once for all steps that are alike.
    assert len(told("[a cat:a (dog:9):2]")) == 2
    assert len(told("a (dog:1.1) on a mat")) == 1


def test_one_session_does_not_stop_another() -> None:
    stops = Stops()
    mine, yours = stops.begin("me"), stops.begin("you")
    stops.stop("me")
    stops.stop("nobody")
    assert mine.is_set()
    assert not yours.is_set()
    stops.end(mine)
    assert not stops.begin("me").is_set()


def test_two_drawings_of_one_session_end_apart_and_stop_together() -> None:
    stops = Stops()
    first, second = stops.begin("me"), stops.begin("me")
    first.set()  # as each drawing does when it ends
    stops.end(first)
    assert not second.is_set()
    third = stops.begin("me")
    stops.stop("me")
    assert second.is_set()
    assert third.is_set()


def test_a_failed_drawing_gives_the_button_below_the_pictures_back(nowhere: Models) -> None:
    with gr.Blocks() as app:
        tab = draw_tab(nowhere)
    run = next(event.fn for event in app.fns.values() if event.api_name == "draw")
    visitor = SimpleNamespace(session_hash="me")
    reports = list(run(PROMPT, "", True, 0, 20, 3, 1, Pictured(), visitor))
    changes = [report[tab.ask].constructor_args for report in reports if tab.ask in report]
    # Gone with the pictures while it draws, back with them, and never disabled.
    assert changes == [{"visible": False}, {"visible": True}]


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (4, 2), (5, 3), (8, 3), (9, 3)])
def test_pictures_stand_in_the_squarest_grid(count: int, columns: int) -> None:
    assert columns_for(count) == columns


def test_previews_are_escaped_and_described(picture: Image.Image) -> None:
    html = progress_html(Progress(3, 20, (picture,)), "<b>'\"cat")
    assert "Step 3 of 20" in html
    assert "max='20' value='3'" in html
    assert "<b>" not in html
    assert html.count("data:image/jpeg;base64,") == 1
    assert "alt=" in html


# -- the token report ------------------------------------------------------------------


def test_tokens_are_counted_and_told_once_for_equal_towers(models: Models) -> None:
    html = token_html(models, "a cat")
    assert "4 of 77" in html
    assert "Tower 1 and Tower 2" in html


def test_long_and_weighted_prompts_are_shown(models: Models) -> None:
    html = token_html(models, "cat " * 100 + "(dog:1.3)")
    assert "in 2 windows of 77" in html
    assert "dog<sup>1.3</sup>" in html or "<sup>1.3</sup>" in html


def test_a_prompt_too_long_is_told_in_words(models: Models) -> None:
    assert "at most 32" in token_html(models, "7" * 4_000)  # each digit is a token
    assert "at most 4,000. Shorten it." in token_html(models, "7" * 4_001)


@pytest.mark.parametrize("prompt", ["", "  "])
def test_no_prompt_no_report(nowhere: Models, prompt: str) -> None:
    assert token_html(nowhere, prompt) == ""


@pytest.mark.parametrize(
    "prompt", ["a cat\0", "🐈‍⬛ قطة", "<script>alert(1)</script>", "w " * 10_000]
)
def test_any_prompt_gets_a_readable_report(models: Models, prompt: str) -> None:
    html = token_html(models, prompt)
    assert "bridge-tokens" in html or 'role="alert"' in html
    assert "<script>" not in html
    assert "Traceback" not in html


# -- asking ----------------------------------------------------------------------------


def test_an_answer_grows_to_what_describe_says(models: Models, picture: Image.Image) -> None:
    import bridge

    growing = list(answer(models, picture, "what is on the left?", []))
    assert all(after.startswith(before) for before, after in pairwise(growing))
    whole = bridge.describe(picture, "what is on the left?", model=models.vlm())
    assert (growing[-1] if growing else "") == whole


def test_turns_that_do_not_fit_are_left_out(models: Models, picture: Image.Image) -> None:
    turns = [("is there a dog? " * 20, "no")] * 3
    alone = list(answer(models, picture, "is there a cat?", []))
    assert list(answer(models, picture, "is there a cat?", turns)) == alone


@pytest.mark.parametrize("question", ["", " ", "what\0", "<image> or <image>?"])
def test_a_bad_question_is_refused(models: Models, picture: Image.Image, question: str) -> None:
    with pytest.raises(PromptError):
        list(answer(models, picture, question, []))


def test_bad_questions_and_pictures_load_no_model(nowhere: Models, picture: Image.Image) -> None:
    with pytest.raises(PromptError):
        list(answer(nowhere, picture, "", []))
    with pytest.raises(ImageError):
        list(answer(nowhere, "no-such-file.png", "what?", []))


def test_chat_messages_alternate() -> None:
    shown = messages([("a?", "b")], ("c?", "…"))
    assert [m["role"] for m in shown] == ["user", "assistant"] * 2
    assert [m["content"] for m in shown] == ["a?", "b", "c?", "…"]


# -- uploads ---------------------------------------------------------------------------


def test_an_upload_reaches_bridge_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    file = tmp_path / "notes.png"
    file.write_text("no picture at all")
    path = uploaded({"path": str(file), "orig_name": "notes.png"})
    assert path == file
    with pytest.raises(ImageError, match="not an image") as caught:
        picture_of(path)
    # Named as its owner knows it, not by where the app keeps it.
    assert str(caught.value).startswith("'notes.png'")
    assert uploaded(None) is None
    with pytest.raises(ImageError, match=NOT_UPLOADED):
        uploaded({"path": str(tmp_path / "gone.png")})


def test_a_truncated_upload_is_refused(tmp_path: Path, picture: Image.Image) -> None:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    file = tmp_path / "half.png"
    file.write_bytes(buffer.getvalue()[:-3000])
    with pytest.raises(ImageError, match="truncated"):
        picture_of(file)


def test_a_cmyk_upload_becomes_rgb_and_a_big_one_smaller(tmp_path: Path) -> None:
    file = tmp_path / "big.tif"
    Image.new("CMYK", (4000, 1000), (0, 255, 255, 0)).save(file)
    shown = picture_of(file)
    assert (shown.mode, shown.size) == ("RGB", (1536, 384))


# -- messages, theme, start ------------------------------------------------------------


def test_a_bridge_error_is_shown_in_its_own_words() -> None:
    html = explain(PromptError("prompt is <empty>."))
    assert "Prompt is &lt;empty&gt;." in html
    assert 'role="alert"' in html


def test_any_other_error_is_shown_without_its_insides(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ZeroDivisionError("secret detail")
    except ZeroDivisionError as error:
        html = explain(error)
    assert "secret" not in html
    assert "went wrong" in html
    assert "secret detail" in capsys.readouterr().err


def test_notes_are_escaped() -> None:
    assert "<i>" not in note("<i>")


def test_the_look_needs_no_network() -> None:
    look = theme()
    assert not look._stylesheets
    assert "http" not in CSS
    # Fonts and styles come from the page itself; the rest are namespaces inside data: URIs.
    assert "@import" not in look._get_theme_css()
    assert "url(http" not in look._get_theme_css().replace("'", "").replace('"', "")


def test_the_app_builds_without_loading_a_model(nowhere: Models) -> None:
    app = build(nowhere)
    assert isinstance(app, gr.Blocks)
    assert not app.analytics_enabled


def test_examples_fit_the_context(models: Models) -> None:
    assert all("Cut off" not in token_html(models, text) for text in EXAMPLES)


def test_the_command_line_listens_at_home_by_default() -> None:
    given = options([])
    assert (given.host, given.port, given.share) == ("127.0.0.1", 7860, False)


@pytest.mark.parametrize("port", ["70000", "65536", "-1", "http"])
def test_what_is_no_port_is_told_in_one_line(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        options(["--port", port])
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"--port: {port!r} is no port; give a whole number from 0 to 65535" in last


def test_a_port_in_use_is_told_without_a_traceback() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit, match=f"port {port}.*--port"):
            main(["--port", port, "--model", "no-such-model", "--vlm", "no-such-model"])
