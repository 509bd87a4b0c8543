"""Marks of another tool are told of where they are read as text, and what may be text is not."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from support.tiny_models import tiny_sd_pipeline

import bridge
from bridge.errors import DialectWarning
from bridge.prompt.foreign_marks import warn_of_marks


def told(text: str, dialect: Any) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_marks([text, text], dialect)
    assert len(caught) <= 1 and all(each.category is DialectWarning for each in caught)
    return str(caught[0].message) if caught else ""


@pytest.mark.parametrize("dialect", ["a1111", "comfy"])
@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("a red++ apple", "red++"),
        ("apple+++", "apple+++"),
        ("a (red apple)+", ")+"),
        ("a (red apple)--, sky", ")--"),
        ("(red apple)1.3 on grass", ")1.3"),
        ('("a cat", "a dog").blend(0.5, 0.5)', ").blend("),
        ("an été++", "été++"),
    ],
)
def test_marks_of_compel(text: str, mark: str, dialect: str) -> None:
    assert f"{mark!r} is how compel weighs text" in told(text, dialect)
    assert 'dialect="compel"' in told(text, dialect)
    assert told(text, "compel") == told(text, "plain") == ""


def test_weights_of_a1111_in_compel() -> None:
    for text in ("a (red:1.3) apple", "a (red apple : .5 )"):
        assert 'dialect="a1111"' in told(text, "compel")
        assert told(text, "a1111") == told(text, "comfy") == told(text, "plain") == ""


@pytest.mark.parametrize("dialect", ["comfy", "compel", "plain"])
def test_a_tag_that_no_lora_acts_by(dialect: str) -> None:
    message = told("a cat <lora:sketch:0.8>", dialect)
    assert "'<lora:sketch:0.8>' is read as text" in message
    assert "loras=(file, strength)" in message and 'dialect="a1111"' in message
    assert told("a cat <lora:sketch:0.8>", "a1111") == ""


@pytest.mark.parametrize("dialect", ["a1111", "comfy", "compel", "plain"])
@pytest.mark.parametrize(
    "text",
    [
        "a C++ book", "g++ and 18+", "1++2", "a (cat)", "a cat :)", "16:9", "(16:9)", "(ratio 1:2)",
        "a well--known man -- he", "(a cat)-like", "(a cat)2", "f(x)+g(x)", "a <b> tag", "<3", "",
        "a (red) ball (2.5 m)", "[a|b]", r"a \(film\)+",
    ],
)  # fmt: skip
def test_what_may_be_text_is_let_be(text: str, dialect: str) -> None:
    assert told(text, dialect) == ""


@pytest.mark.parametrize("dialect", ["a1111", "comfy", "compel", "plain"])
@pytest.mark.parametrize("piece", ["a", "+", "(", ")", ":", "1", "<lora:", "(a:1.", ")1", "a++a"])
def test_long_texts_are_searched_in_one_go(piece: str, dialect: str) -> None:
    text = piece * 20_000
    start = time.process_time()
    told(text, dialect)
    assert time.process_time() - start < 0.5


def test_every_door_tells_and_a_kept_result_tells_again() -> None:
    pipe = tiny_sd_pipeline()
    doors: list[Callable[[], Any]] = [
        lambda: bridge.condition("a red++ apple", model=pipe),
        lambda: bridge.condition("a red++ apple", model=pipe),
        lambda: bridge.condition("an apple", "red++ skin", model=pipe),
        lambda: bridge.schedule("a red++ [cat:dog:0.5]", steps=2, model=pipe),
        lambda: bridge.compose("a red++ cat AND a dog", model=pipe),
    ]
    for door in doors:
        with pytest.warns(DialectWarning, match=r"'red\+\+' is how compel weighs text"):
            door()
