"""What the worked studies ask, and how they count it, without drawing."""

from __future__ import annotations

import re
from dataclasses import astuple

import pytest

from benchmarks import studies
from benchmarks.adapters import kept_row
from benchmarks.compositional import parser
from benchmarks.tasks import Task, interleaved
from emoji_world.captions import noun_phrase
from emoji_world.concepts import CONCEPTS
from emoji_world.scenes import Group, Scene


def test_each_denied_thing_has_one_study() -> None:
    """Two pairs of one X would be one prompt, and one of them lost."""
    subjects, wanted = studies.negation_subjects(200, 0)
    assert len(subjects) == len(set(wanted.values())) == 200
    for prompt, variants in subjects.items():
        one = CONCEPTS[wanted[prompt]].one
        texts = {each.operation: each.text for each in variants}
        assert prompt in (f"a {one}", f"an {one}") and texts["no X"] == f"no {one}"
        assert texts["Y and X"] == f"{texts['Y']} and {prompt}" and texts["Y"] != prompt
        assert not any(each.dialect != variants[0].dialect for each in variants)
    assert studies.negation_subjects(5, 1)[0] != studies.negation_subjects(5, 2)[0]


def test_more_things_than_there_are_is_said_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    for n in ("321", "0"):
        assert studies.main(["negation", "--n", n]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error:") and f"n is {n}" in line and "1 to 320" in line


_STUDIED = interleaved(10, 0, ("two_objects", "colour", "position", "binding"))


@pytest.mark.parametrize("task", _STUDIED, ids=lambda task: task.prompt)
def test_orders_and_emphases_are_eight_each(task: Task) -> None:
    found = studies.order_variants(task)
    kinds = [each.operation for each in found]
    assert kinds.count("word-order") == kinds.count("emphasis") == 8
    assert {each.dialect for each in found if each.operation == "emphasis"} == {"a1111"}
    assert len({(each.text, each.dialect) for each in found}) == 16
    assert not any("↔" in each.detail for each in found)


@pytest.mark.parametrize("task", _STUDIED, ids=lambda task: task.prompt)
def test_an_emphasis_is_on_a_word_that_the_verdict_hangs_on(task: Task) -> None:
    """Weights on "emoji" or on the ground's colour would be judged as if they were on a thing."""
    places = {"left", "right", "top", "bottom", "under"}
    named = {word for group in task.scene.groups for word in noun_phrase(group).split()[1:]}
    weighted = [each for each in studies.order_variants(task) if each.operation == "emphasis"]
    marks = [re.fullmatch(r"(.*)\((.+):([\d.]+)\)(.*)", each.text) for each in weighted]
    assert [float(mark[3]) for mark in marks if mark] == 2 * [0.5, 0.8, 1.25, 2.0]
    for mark in marks:
        assert mark and mark[1] + mark[2] + mark[4] == task.prompt
        assert mark[2] in named | places
        assert not mark[4].startswith(" background") and not mark[1].endswith("in a picture on ")
    assert len({(mark[1], mark[2]) for mark in marks if mark}) == 2


def test_a_tint_is_weighed_and_the_same_colour_of_the_ground_is_not() -> None:
    things = (Group(0, tint="blue"), Group(1, tint="red"))
    a, b = (noun_phrase(each) for each in things)
    prompt = f"blue background, on the left {a}, on the right {b}, noto"
    scene = Scene("noto", "blue", things, "left", ())
    words = [prompt[i:j] for i, j in studies.task_words(Task("binding", prompt, scene, True, 0))]
    assert words == ["left", *a.split()[1:], "right", *b.split()[1:]]


def test_means_have_normal_intervals() -> None:
    assert astuple(studies.mean_row("m", [0.5])) == ("m", 0.5, 0.5, 0.5, 1, "")
    row = studies.mean_row("m", [0.0, 1.0])
    assert row.value == 0.5 and row.n == 2
    assert row.high - row.value == pytest.approx(1.96 * 0.5, abs=1e-3)


def test_what_an_adapter_keeps() -> None:
    native = [True] * 10 + [False] * 10
    assert kept_row("k", native, native).value == 100.0
    half = kept_row("k", native, [True] * 5 + [False] * 15)
    assert half.value == 50.0 and half.low < 50 < half.high and half.n == 20
    assert kept_row("k", [False] * 4, [False] * 4).value == 0.0


def test_adapters_draw_few_prompts_by_default() -> None:
    """Ten rounds of drawing: with the 200 a kind of the other commands they took hours. So do 9
    formulas at 8 weights, and `all` has no other number for each."""
    defaults = parser().parse_args(["adapters"])
    assert (defaults.captions, defaults.train_steps) == (3000, 1500)
    assert (defaults.pairs, defaults.batch) == (16, 16)
    assert defaults.adapter_prompts * 6 * 10 <= 400 and defaults.n == 200
