"""Hostile prompts: no traceback, no hang, no time that grows faster than the text, none changed.

Time is counted in lines of bridge that run, which no busy machine changes: twice the text may cost
at most 2.4 times as many more. Inside of one line (a regular expression, a sum of strings) that
shows nothing, so the same doors are tried with long texts too, against processor seconds.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from fuzz_support import Fuzz

from bridge.encoding import tokenizers_of
from bridge.errors import BridgeError
from bridge.prompt import (
    DIALECTS,
    Flat,
    Prompt,
    expand,
    intervals,
    parse,
    plan,
    plan_report,
    translate,
)
from bridge.prompt.parameters import parse_parameters
from bridge.prompt.prompt import first_step, take_tags
from bridge.vlm.chat import check_no_special_tokens, checked_turns, read_messages

ROW = "prompts that end in a traceback, hang or fail the round trip"
BRIDGE = str(Path(str(sys.modules["bridge"].__file__)).parent)
SPLITS = {"plain": "hard", "a1111": "comma", "comfy": "segments", "compel": "sentences"}
# fmt: off
FRAGMENTS = (
    "(", ")", "[", "]", "{", "}", "|", "\\", "\\\\", ",", ".", ":", '"', "'", "=", "+", "-", "_",
    "__", "a", "a ", "a, ", "1", "1.", "0.5,", " ", "\n", "\t", "\v", "\r", "<", ">", "$$", "::",
    "🙂", "\u200d", "e\u0301", "\u202e", "\u3000", "İ", "ß", "ﬀ", "猫", "AND ", "AND", "BREAK ",
    "BREAK", "<lora:a:1>", "<lora:", "(a:1.1)", "(a:1.1", "(a)", "(a", "a)", "((a:1.2) b)", "[a]",
    "[a",
    "(a)[b]", "[(a", "])", "[a:b:3]", "[a:b:0.5] ", "[a:b:", "[a:", "[:", "(:", ":1.2", ":1.2)",
    "[a|b]", "[|", "a|", "__a__", "__a ", "_a", "{a|b}", "{a", "2$$", "{2$$", "{1-3$$", "{1::a|",
    "{2$$ and $$a|b}", '"a" ', '("a","b").and()', '("a",', '"a\\n', '\\"', "\\(", "a.blend(",
    ").blend(1,1)", "a+", "a-- ", "(a)+", "(a)1.1", "+a", "-a", ".attend(1", ".swap(", "withLora(",
    "withLora(a,1)", "x AND y :1.1 ", " :1", "a: ", 'a: "', "Steps: 1,", "Steps", '"\\',
    "Negative prompt:\n", "<image>", "<|endoftext|>",
)
# fmt: on


def _doors() -> dict[str, Callable[[str], Any]]:
    """All that takes a text that a person wrote."""
    towers = tokenizers_of("emoji-xl")

    def report(text: str, dialect: str) -> None:
        found = plan_report(text, towers, dialect, SPLITS[dialect])
        assert found.html() and found.text() and found.to_dict()

    doors: dict[str, Callable[[str], Any]] = {
        "expand": lambda text: expand(text, 0),
        "expand within braces": lambda text: expand("{3$$" + text + "|b|c}", 0),
        "parameters": parse_parameters,
        "parameters' last line": lambda text: parse_parameters("a\n" + text.replace("\n", " ")),
        "tags": take_tags,
        "negative": lambda text: parse(text, negative=True),
        "question": lambda text: check_no_special_tokens(checked_turns(text, []), ["<s>"]),
        "messages": lambda text: read_messages([{"role": "user", "content": text}]),
    }
    for old in DIALECTS:
        doors |= {
            f"parse {old}": lambda text, d=old: parse(text, d),
            f"intervals {old}": lambda text, d=old: intervals(parse(text, d), 5),
            f"plan {old}": lambda text, d=old: plan(parse(text, d), towers[0][1]),
            f"report {old}": lambda text, d=old: report(text, d),
        }
        for new in DIALECTS:
            doors[f"{old} to {new}"] = lambda text, a=old, b=new: translate(parse(text, a), b)
    return doors


@pytest.fixture(scope="module")
def doors() -> dict[str, Callable[[str], Any]]:
    return _doors()


def tried(door: Callable[[str], Any], text: str) -> BaseException | None:
    """What ends in no answer and no error of ours."""
    try:
        door(text)
    except BridgeError as error:
        return None if len(str(error)) < 2_000 else ValueError(f"{len(str(error))} characters said")
    except Exception as error:
        return error
    return None


def lines_run(door: Callable[[str], Any], text: str) -> int:
    """How many lines of bridge it takes."""
    count = 0

    def within(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return within

    def entered(frame: FrameType, event: str, argument: object) -> Any:
        return within if frame.f_code.co_filename.startswith(BRIDGE) else None

    before = sys.gettrace()
    sys.settrace(entered)
    try:
        tried(door, text)
    finally:
        sys.settrace(before)
    return count


def test_no_line_runs_more_often_than_the_text_grows(
    fuzz: Fuzz, doors: dict[str, Callable[[str], Any]]
) -> None:
    with fuzz(ROW, 120) as run:
        for rng in run.draws():
            name, unit = rng.choice([*doors]), "".join(rng.choices(FRAGMENTS, k=rng.choice((1, 2))))
            with run.within(60):
                short, double, long = (lines_run(doors[name], unit * n) for n in (24, 48, 96))
                # By what is added, and in all: a text may become too long for an answer between.
                grows = min((long - double) / max(1, double - short), long / max(1, double))
                many = long - double > 300
                run.expect(not many or grows < 2.4, f"{name}, {unit!r}: grows by {grows:.2f}")


def test_long_texts_end(fuzz: Fuzz, doors: dict[str, Callable[[str], Any]]) -> None:
    """20 kB take milliseconds each; what grows by the square takes many seconds."""
    with fuzz(ROW, 20) as run:
        for rng in run.draws():
            name, unit = rng.choice([*doors]), "".join(rng.choices(FRAGMENTS, k=rng.choice((1, 2))))
            text = rng.choice(("", "a", "{", "(")) + unit * (20_000 // len(unit))
            with run.within(60):
                before = time.process_time()
                error = tried(doors[name], text)
                took = time.process_time() - before
                run.expect(error is None, f"{name}, {unit!r}: {error!r}")
                run.expect(took < 20, f"{name}, {unit!r}: {took:.1f} s")


def test_texts_that_once_took_the_square_of_their_length(
    fuzz: Fuzz, doors: dict[str, Callable[[str], Any]]
) -> None:
    """Each took from 13 seconds to minutes; now the first, most of it the tokenizer, takes one."""
    slow = {
        "plan compel": "(a:1.1)" * 14_000,
        "parameters": "a " * 50_000 + "b",
        "parameters' last line": "__a__" * 20_000,
        "expand": "__a " * 20_000,
        "expand within braces": "{20000$$" + "a|" * 20_000 + "}",
    }
    with fuzz(ROW, 1) as run:
        for _ in run.draws():
            for name, text in slow.items():
                with run.within(120):
                    before = time.process_time()
                    error = tried(doors[name], text)
                    took = time.process_time() - before
                    run.expect(error is None and took < 8, f"{name}: {took:.1f} s, {error!r}")


def test_random_prompts(fuzz: Fuzz, doors: dict[str, Callable[[str], Any]]) -> None:
    with fuzz(ROW, 600) as run:
        for rng in run.draws():
            text = "".join(rng.choices(FRAGMENTS, k=rng.randrange(1, 14)))
            if rng.random() < 0.2:
                text = "".join(rng.choices([chr(i) for i in range(0x250)], k=rng.randrange(30)))
            name = rng.choice([*doors])
            with run.within(60):
                error = tried(doors[name], text)
                run.expect(error is None, f"{name}, {text!r}: {error!r}")
                _round_trip(run, rng, text)


def _round_trip(run: Any, rng: random.Random, text: str) -> None:
    """What is read prints itself; what loses nothing into another dialect loses nothing back."""
    old, new = rng.sample(sorted(DIALECTS), 2)
    try:
        prompt = parse(text, old)
        there = translate(prompt, new)
        back = translate(there.prompt, old)
    except BridgeError:
        return
    except Exception as error:
        run.fail(f"{old} to {new}, {text!r}: {error!r}")
        return
    run.expect(str(prompt) == text, f"{old} prints {text!r} as {str(prompt)!r}")
    run.expect(
        all(span.text == text[span.start : span.end] or span.start == span.end or span.breaks
            for span in prompt.spans),
        f"{old}: the spans of {text!r} stand elsewhere",
    )  # fmt: skip
    again = parse(str(there.prompt), new)
    run.expect(again == there.prompt, f"{new} reads {str(there.prompt)!r} differently again")
    if not there.losses and not back.losses:
        same = _flat(prompt) == _flat(back.prompt)
        run.expect(same, f"{old} to {new} and back: {text!r} is {str(back.prompt)!r}")


def _flat(prompt: Prompt) -> list[tuple[str, float]]:
    """Each character that is not blank with its weight, to six digits."""
    flat: Flat = first_step(prompt)
    return [
        (char, round(span.weight * 1e6))
        for part in flat.parts
        for span in part.spans
        for char in span.text
        if not char.isspace()
    ]
