"""The app's tab Study, without a browser: what it takes on, the stream, the page."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pandas.testing import assert_frame_equal
from support.tiny_models import tiny_sdxl_pipeline

import bridge
from bridge.errors import OptionError, PromptError, UnknownModelError
from bridge.lab.variants import USUAL
from demos.models import Models
from demos.study_page import pictures_html, step_html, summary, tables_html
from demos.studying import Inquiry, Step, Stopped, Studied, checked, heat_words, study

NASTY = '<b>"a dog'
TOWERS = ("text_encoder", "text_encoder_2")
ASKED = Inquiry("a red cat", f"a blue dog\n\n  {NASTY} \na blue dog", towers=TOWERS, steps=2.0)
DRAWN = replace(ASKED, draws=True, choices=("whole", "pooled"), seed=3.0)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A tiny random model of two towers that draws."""
    folder = tmp_path_factory.mktemp("models") / "draws"
    tiny_sdxl_pipeline().save_pretrained(folder)
    return Models(str(folder), "no-such-model")


@pytest.fixture(scope="module")
def stream(models: Models) -> list[Step | Studied]:
    return list(study(models, DRAWN, threading.Event()))


@pytest.fixture(scope="module")
def studied(stream: list[Step | Studied]) -> Studied:
    assert isinstance(stream[-1], Studied)
    return stream[-1]


def run(models: Models, asked: Inquiry) -> Iterator[Step | Studied]:
    return study(models, asked, threading.Event())


# -- what is taken on ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"prompt": ""}, PromptError, "prompt is empty"),
        ({"prompt": " \n"}, PromptError, "prompt is empty"),
        ({"prompt": "a cat\0"}, PromptError, "prompt"),
        ({"own": "a dog\na cat\0"}, PromptError, "own 1"),
        ({"own": " \n "}, OptionError, "nothing to compare"),
        ({"own": "", "operations": ["adjective-swap"]}, OptionError, "nothing to change"),
        ({"towers": []}, OptionError, "No tower"),
        ({"draws": True, "choices": []}, OptionError, "Nothing is ticked that draws"),
        ({"draws": True, "steps": 0}, OptionError, "steps"),
        ({"seed": -1}, OptionError, "seed"),
        ({"prompt": "cat " * 200}, OptionError, "800 characters"),
        ({"own": "dog" * 200}, OptionError, "600 characters"),
        ({"own": "\n".join(map(str, range(300)))}, OptionError, "301 phrasings.*most 300;"),
        (
            {"own": "\n".join(map(str, range(12))), "draws": True},
            OptionError,
            "13 phrasings.*most 12 with pictures",
        ),
    ],
)
def test_what_is_wrong_or_too_much_is_told_before_anything_loads(
    changes: dict[str, Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        list(run(Models("no-such-model", "no-such-model"), replace(ASKED, **changes)))


def test_as_much_as_is_told_is_taken_on() -> None:
    eleven = "\n".join(map(str, range(11)))
    assert len(checked(replace(ASKED, own=eleven, draws=True))) == 11


def test_all_usual_operations_at_once_are_not_too_much() -> None:
    prompt = "two red apples left of a blue cat without a hat, noto style"
    assert len(checked(Inquiry(prompt, operations=USUAL))) > 60


def test_an_unknown_model_is_told() -> None:
    with pytest.raises(UnknownModelError):
        list(run(Models("no-such-model", "no-such-model"), DRAWN))


# -- the stream ------------------------------------------------------------------------


def test_the_stream_counts_up_and_ends_with_what_bridge_study_finds(
    models: Models, stream: list[Step | Studied], studied: Studied
) -> None:
    *steps, _ = stream
    assert steps[0] == Step()
    # Two towers read; three phrasings are drawn in two ways.
    assert [(step.step, step.steps) for step in steps[1:]] == [(n, 8) for n in range(1, 9)]
    want = bridge.study(
        "a red cat", towers=None, guidance_scale=5.0, variants={"own": ["a blue dog", NASTY]},
        model=models.pipeline(), choices=["whole", "pooled"], steps=2, seeds=3,
    )  # fmt: skip
    assert_frame_equal(studied.study.table, want.table)
    assert_frame_equal(studied.study.pictures, want.pictures)
    for mine, other in zip(studied.study.drawn, want.drawn, strict=True):
        assert np.array_equal(np.asarray(mine.image), np.asarray(other.image))


def test_pieces_are_the_text_cut_up(studied: Studied) -> None:
    assert set(studied.pieces) == set(TOWERS)
    assert studied.pieces["text_encoder"]["a red cat"] == ("a", "red", "cat")
    assert "".join(studied.pieces["text_encoder_2"][NASTY]) == NASTY.replace(" ", "")


def test_stop_and_leaving_end_the_worker(models: Models) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        list(study(models, DRAWN, stop))
    stop = threading.Event()
    reports = study(models, DRAWN, stop)
    next(reports)
    next(reports)
    reports.close()
    assert stop.is_set()
    for thread in threading.enumerate():
        if thread.name == "bridge-study":
            thread.join(timeout=60)
            assert not thread.is_alive()
    assert not models.studying.locked()


def test_stop_ends_the_wait_for_another_visitors_study(models: Models) -> None:
    stop = threading.Event()
    stop.set()
    with models.studying, pytest.raises(Stopped):
        list(study(models, ASKED, stop))


def test_one_study_at_a_time_uses_the_tokenizers(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = []

    def split(tower: Any, texts: list[str]) -> dict[str, tuple[str, ...]]:
        alone.append(models.studying.locked())
        return {}

    monkeypatch.setattr("demos.studying._split", split)
    list(run(models, Inquiry("a cat", "a dog", towers=["text_encoder"])))
    assert alone == [True]


def test_studies_watch_a_unet_of_their_own_over_the_same_weights(models: Models) -> None:
    drawing, watched = models.pipeline(), models.watched_pipeline()
    assert watched.unet is not drawing.unet
    assert not set(map(id, watched.unet.modules())) & set(map(id, drawing.unet.modules()))
    shared = {id(weight) for weight in drawing.unet.parameters()}
    assert {id(weight) for weight in watched.unet.parameters()} == shared
    assert watched.vae is drawing.vae


# -- the page --------------------------------------------------------------------------


def test_the_tables_show_every_phrasing_and_figure(studied: Studied) -> None:
    html = tables_html(studied)
    found = studied.study
    for row in found.table.to_dict("records"):
        assert f"<b>{row['pooled_cosine']:.3f}</b>" in html
        assert f"by token {row['token_cosine']:.3f}" in html or np.isnan(row["token_cosine"])
    for row in found.words.to_dict("records"):
        assert f"<small>{row['leave_one_out']:.3f}</small>" in html
    for row in found.towers.to_dict("records"):
        assert f"chance {row['chance']:.2f}" in html
    assert "a<i>|</i>red<i>|</i>cat" in html
    assert html.count("<tr>") == 1 + 3


def test_bars_run_from_chance_to_one(studied: Studied) -> None:
    html = tables_html(studied)
    rows = studied.study.table
    near = rows[rows["text"] == "a blue dog"]["pooled_above_chance"]
    assert all(f"width:{min(1, max(0, value)):.1%}" in html for value in near)
    assert "width:100.0%" in html


def test_heat_maps_are_of_the_chosen_word_where_it_is(studied: Studied) -> None:
    assert heat_words(studied.study)[:2] == ["red", "cat"]
    plain = pictures_html(studied, None)
    assert plain.count("<img") == 6
    html = pictures_html(studied, "dog")
    assert html.count('class="heat"') == 2
    assert html.count("no “dog” in it") == 1
    assert pictures_html(studied, "blue") != html


def test_texts_are_escaped(studied: Studied) -> None:
    for html in (tables_html(studied), pictures_html(studied, NASTY)):
        assert "<b>&quot;" not in html
        assert '<b>"' not in html
        assert "&lt;b&gt;" in html


def test_weights_are_told_by_dialect_and_towers_without_pictures(models: Models) -> None:
    *_, found = run(models, Inquiry("a cat", operations=["emphasis"], towers=["text_encoder"]))
    assert isinstance(found, Studied)
    html = tables_html(found)
    assert "a1111" in html
    assert "text_encoder_2" not in html
    assert pictures_html(found, None) == ""
    assert "1 tower in" in summary(found)


def test_progress_is_a_bar_and_a_line() -> None:
    assert "max='8' value='3'" in step_html(Step("2 of 6 <drawn>", 3, 8))
    assert "&lt;drawn&gt;" in step_html(Step("2 of 6 <drawn>", 3, 8))
    assert "value=" not in step_html(Step())


def test_a_study_saves_both_files(studied: Studied, tmp_path: Path) -> None:
    page = studied.study.save(tmp_path / "study.html").read_text(encoding="utf-8")
    assert "a blue dog" in page
    assert "<b>&quot;" not in page
