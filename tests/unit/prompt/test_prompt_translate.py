"""From one dialect to another: what is written, and what is listed as lost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.errors import OptionError, PromptError
from bridge.prompt import DIALECTS, parse, translate

UNTIMED = settings(deadline=None, max_examples=50)
ANY = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=60)
SYNTAX = [*'()[]:|\\"+-,.= ', "cat", "AND", "BREAK", "1.2", ":0.5", "(a:1.4)", "((b))", "\\("]
WORDY = st.lists(st.sampled_from(SYNTAX), max_size=12).map("".join)


@pytest.mark.parametrize(
    ("old", "text", "new", "written"),
    [
        ("a1111", "a (red:1.3) apple", "comfy", "a (red:1.3) apple"),
        ("a1111", "(a (b:1.2) c)", "comfy", "(a :1.1)(b:1.32)( c:1.1)"),
        ("comfy", "(a (b:1.2) c)", "a1111", "(a :1.1)(b:1.2)( c:1.1)"),
        ("a1111", "[dull] \\(sky\\)", "compel", "(dull)0.9090909091 \\(sky\\)"),
        ("a1111", "a BREAK (b:1.2)", "compel", '("a", "(b)1.2").and()'),
        ("compel", '("a", "b+").and()', "a1111", "a BREAK (b:1.1)"),
        ("compel", "a (cat-- sat)1.5", "comfy", "a(cat:1.215)(sat:1.5)"),
        ("comfy", "[x] BREAK AND y:2", "a1111", "\\[x\\] B\\REAK A\\ND y:2 :1"),
        ("comfy", "(x:1e9)", "a1111", "(x:1000000000)"),
        ("plain", "C++ (a|b) c\\", "comfy", "(C++ \\(a|b\\) c\\:1)"),
        ("plain", "C++ code", "compel", "C ++ code"),
        ("plain", 'say "hi"', "compel", 'say \\"hi\\"'),
    ],
)
def test_what_means_the_same_loses_nothing(old: str, text: str, new: str, written: str) -> None:
    found = translate(parse(text, old), new)
    assert (found.prompt.source, found.prompt.dialect) == (written, new)
    assert found.losses == ()


@pytest.mark.parametrize(
    ("old", "text", "new", "written", "losses"),
    [
        ("a1111", "a (red:1.3) cat", "plain", "a red cat",
         [("weight", "red", "weight changes from 1.3 to 1")]),
        ("a1111", "x (c++:1.3)", "compel", "x c ++",
         [("weight", "c++", "weight changes from 1.3 to 1")]),
        ("comfy", "(x:-1) a", "compel", "(x)0 a",
         [("weight", "x", "weight changes from -1 to 0")]),
        ("a1111", "a [cat:dog:5] b", "comfy", "a cat b",
         [("schedule", "[cat:dog:5]", "the schedule is lost; its first step is kept")]),
        ("a1111", "[a|b]", "plain", "a",
         [("alternation", "[a|b]", "the alternation is lost; its first option is kept")]),
        ("a1111", "a BREAK b", "comfy", "a b",
         [("break", " BREAK ", "BREAK is lost; the text goes on in the same window")]),
        ("a1111", "a AND b :0.5", "compel", '("a", "b").and(1, 0.5)',
         [("conjunction", "a AND b :0.5",
           "AND adds up noise predictions; .and() sets the states end to end")]),
        ("a1111", "a :0.7", "comfy", "a",
         [("conjunction", "a :0.7", "the prompt's own weight 0.7 is lost")]),
        ("compel", '("a", "b").blend(3, 1)', "a1111", "a :0.75 AND b :0.25",
         [("blend", '("a", "b").blend(3, 1)',
           ".blend() mixes the states of its prompts; AND adds up their noise predictions")]),
        ("compel", '("a", "b").and(1, 2)', "a1111", "a BREAK b",
         [("conjunction", '("a", "b").and(1, 2)', ".and() becomes BREAK, which has no weights")]),
        ("compel", '("a").and() tail', "plain", "a",
         [("conjunction", '("a").and()', "the prompt's own weight 1 is lost"),
          ("text", " tail", "compel ignores what stands after .and(), so it is left out")]),
        ("plain", "a\\(b", "compel", "a\\\\(b",
         [("text", "\\", "the text changes from '\\\\' to ''")]),
    ],
)  # fmt: skip
def test_losses_are_listed(
    old: str, text: str, new: str, written: str, losses: list[tuple[str, str, str]]
) -> None:
    found = translate(parse(text, old), new)
    assert found.prompt.source == written
    assert [
        (loss.kind, text[loss.start : loss.end], loss.message) for loss in found.losses
    ] == losses


@pytest.mark.parametrize("dialect", DIALECTS)
def test_into_its_own_dialect_a_prompt_stays_as_it_is(dialect: str) -> None:
    prompt = parse("a (b:1.2) [c:d:3]", dialect)
    assert translate(prompt, dialect).prompt is prompt


@given(ANY | WORDY)
@UNTIMED
def test_any_text_can_be_escaped(text: str) -> None:
    plain = parse(text, "plain")
    assert translate(plain, "comfy").losses == ()
    losses = translate(plain, "a1111").losses
    # A comment of the webui's begins wherever a "#" stands, and no escape is read before it.
    assert {loss.kind for loss in losses} == ({"text"} if "#" in text else set())


def test_a_comment_sign_cannot_be_written_for_the_webui() -> None:
    found = translate(parse("a #1 cat", "plain"), "a1111")
    assert [loss.kind for loss in found.losses] == ["text"]


@pytest.mark.parametrize("old", DIALECTS)
@pytest.mark.parametrize("new", DIALECTS)
@given(text=WORDY)
@UNTIMED
def test_between_any_two(old: str, new: str, text: str) -> None:
    try:
        prompt = parse(text, old)
    except PromptError:
        return
    found = translate(prompt, new)
    assert found.prompt.dialect == new
    kinds = {loss.kind for loss in found.losses}
    if {old, new} == {"comfy", "a1111"}:
        # Both can write any text and any weight.
        assert not kinds & {"weight", "text"}
    assert all(0 <= loss.start <= loss.end <= len(text) for loss in found.losses)


def test_deep_and_long_prompts_translate() -> None:
    deep = parse("(" * 10_000 + "a" + ":1)" * 10_000, "comfy")
    assert translate(deep, "a1111").prompt.source == "a"
    long = parse("(cat:1.2) and [dog] " * 2_000, "a1111")
    assert translate(long, "comfy").losses == ()


def test_a_dialect_that_does_not_exist() -> None:
    with pytest.raises(OptionError, match="midjourney"):
        translate(parse("a"), "midjourney")
