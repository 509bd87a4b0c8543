"""The prompt dialects: what each tool makes of a text, offsets, hostile input.

The vectors in data/dialects.json were written out by hand from the tools' rules; those of a1111
and comfy were also run through the parsers of stable-diffusion-webui (commit 28bd8e1) and ComfyUI
(b55c224).
"""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.places import DATA

from bridge.errors import OptionError, PromptError
from bridge.prompt.dialect import DIALECTS
from bridge.prompt.prompt import Part, Prompt, first_step, parse
from bridge.prompt.syntax import (
    Alternation,
    Blend,
    Branch,
    Break,
    Conjunction,
    Group,
    Node,
    Schedule,
    Span,
    Text,
    caret,
    parts_of,
    sides_of,
    walk,
)

VECTORS = json.loads((DATA / "dialects.json").read_text())["vectors"]
# A busy machine may stall any one example.
UNTIMED = settings(deadline=None, max_examples=50)
SYNTAX = [
    *'()[]:|\\"+-,.= \n',
    *(
        "a",
        "b c",
        "1.3",
        "0.5",
        "7",
        "nan",
        "AND",
        "BREAK",
        " BREAK ",
        "++",
        "\\(",
        '\\"',
        "[a:b:3]",
    ),
    *(
        "(a:1.2)",
        "(a)0.5",
        '("a", "b")',
        ".and(",
        ".blend(1, 2)",
        ".attend(",
        "🎈",
        "\u3000",
        "\x0b",
    ),
]
HOSTILE = st.lists(st.sampled_from(SYNTAX), max_size=14).map("".join)
ANY = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=60)
DEEP = 10_000
WIDE = 100_000


# ---------------------------------------------------------------- what the tools make of it


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v['dialect']}-{v['text']}")
def test_conformance(vector: dict[str, Any]) -> None:
    flat = first_step(parse(vector["text"], vector["dialect"]))
    assert flat.kind == vector["kind"]
    assert [part.weight for part in flat.parts] == [part["weight"] for part in vector["parts"]]
    for part, wanted in zip(flat.parts, vector["parts"], strict=True):
        found = pieces(part)
        assert [p and p[0] for p in found] == [p and p[0] for p in wanted["pieces"]]
        weights = [p[1] for p in found if p]
        assert weights == pytest.approx([p[1] for p in wanted["pieces"] if p], rel=1e-9)


def pieces(part: Part) -> list[tuple[str, float] | None]:
    """What goes to the tokenizer at once, and None for a border between windows."""
    found: list[tuple[str, float] | None] = []
    for span in part.spans:
        last = found[-1] if found else None
        if span.breaks:
            found.append(None)
        elif span.joined and last is not None:
            found[-1] = (last[0] + span.text, last[1])
        else:
            found.append((span.text, span.weight))
    return found


def test_every_dialect_has_vectors() -> None:
    assert {vector["dialect"] for vector in VECTORS} == set(DIALECTS)


@pytest.mark.parametrize(
    ("dialect", "text", "said"),
    [
        ("a1111", "a (b:1.2.3)", "'1.2.3' is no weight"),
        ("a1111", "(b:.)", "'.' is no weight"),
        ("a1111", "[a:b:1e999]", "'1e999' is no step"),
        ("a1111", "(" * 8_000 + "a", "weight here is inf"),
        ("comfy", "(a:nan)", "nan is no weight"),
        ("comfy", "a (b:-inf)", "-inf is no weight"),
        ("compel", '("a", "b").blend(0.7)', "2 prompts and 1 weights"),
        ("compel", '("a", ()).blend(1, 1)', "no empty brackets"),
        ("compel", '("a", "b").blend(1, -1)', "add up to 0"),
        ("compel", '("a", "b").blend(1, nan)', "'nan' is no weight of .blend"),
        ("compel", '("a", "b").and(no_normalize)', "'no_normalize' is no weight of .and"),
        ("compel", '("a", "b").blend(1, 1) c', "Nothing may stand after"),
        ("compel", "(a cat.swap(dog) b).swap(c)", "no .swap\\(\\) inside another"),
        ("compel", "a.swap(b.swap(c))", "no .swap\\(\\) inside another"),
        ("compel", '("a.swap(b)", "c").blend(1, 1)', "inside .blend"),
        ("compel", "a cat withLora(hairy, 0.5)", "withLora"),
        ("compel", "a\x0bb", "vertical tab"),
        ("compel", "a" + "+" * 9_000, "weight here is inf"),
    ],
)
def test_refusals_show_the_place(dialect: str, text: str, said: str) -> None:
    with pytest.raises(PromptError, match=said) as caught:
        parse(text, dialect)
    shown, carets = str(caught.value).split("\n")[-2:]
    assert set(carets) == {" ", "^"} or set(carets) == {"^"}
    assert len(carets) <= len(shown) <= 70


def test_of_a_swap_the_original_is_read() -> None:
    with pytest.warns(UserWarning, match="only the original is read"):
        part = first_step(parse("a (red cat)1.2 b.swap(dog, t_start=0.5) c", "compel")).parts[0]
    assert pieces(part) == [("a", 1.0), ("red cat", 1.2), ("b", 1.0), ("c", 1.0)]


def test_a_caret_stands_under_its_place() -> None:
    assert caret("a (b:1.2.3) c", 5, 10) == "a (b:1.2.3) c\n     ^^^^^"
    assert caret("one\ntwo\tthree\nfour", 8, 99) == "two three\n    ^^^^^"
    assert caret("x" * 100, 50, 51) == f"…{'x' * 64}…\n{' ' * 33}^"
    assert caret("", 0, 0) == "\n^"


def test_a_dialect_that_does_not_exist() -> None:
    with pytest.raises(OptionError, match="plain, a1111, comfy, compel"):
        parse("a", "midjourney")


def test_a1111_reads_no_and_in_negative_prompts() -> None:
    prompt = parse("ugly AND blurred :0.5", "a1111", negative=True)
    assert [(s.text, s.weight) for s in prompt.spans] == [("ugly AND blurred :0.5", 1.0)]


# ---------------------------------------------------------------- trees


def test_a_tree_of_a1111() -> None:
    text = "a (b [c:d:5]:1.2) BREAK [e|f] AND g :0.5"
    tree = parse(text, "a1111").tree
    assert isinstance(tree, Conjunction)
    one, two = tree.parts
    assert (two.weight, text[two.start : two.end]) == (0.5, " g")
    words, group, break_, alternation = one.children[:1] + one.children[1:2] + one.children[-2:]
    assert isinstance(words, Text) and words.text == "a "
    assert isinstance(group, Group) and group.weight == 1.2
    assert text[group.start : group.end] == "(b [c:d:5]:1.2)"
    schedule = group.children[1]
    assert isinstance(schedule, Schedule) and schedule.when == "5"
    assert [text[s.start : s.end] for s in sides_of(schedule)] == ["c", "d"]
    assert isinstance(break_, Break) and text[break_.start : break_.end] == " BREAK "
    assert isinstance(alternation, Alternation)
    assert [text[o.start : o.end] for o in alternation.options] == ["e", "f"]


def test_trees_of_comfy_and_compel() -> None:
    (group,) = parse("(a (b:1.2))", "comfy").tree.children  # type: ignore[union-attr]
    assert (group.weight, group.replaces) == (1.1, False)
    assert (group.children[1].weight, group.children[1].replaces) == (1.2, True)
    blend = parse('("a", "b+").blend(0.6, 0.4, no_normalize)', "compel").tree
    assert isinstance(blend, Blend) and not blend.normalize
    assert [part.weight for part in blend.parts] == [0.6, 0.4]


@pytest.mark.parametrize("dialect", DIALECTS)
@given(text=HOSTILE | ANY)
@UNTIMED
def test_anything_is_read_or_refused_and_prints_back(dialect: str, text: str) -> None:
    prompt = read(text, dialect)
    if prompt is None:
        return
    assert str(prompt) == text
    for part in parts_of(prompt.tree):
        check_places(part, text)
    at = 0
    for span in prompt.spans:
        assert at <= span.start <= span.end <= len(text)
        at = span.end
        assert math.isfinite(span.weight)
        if span.breaks:
            assert span.text == "" and dialect == "a1111"
        elif span.start == span.end:
            assert span.text == " " and dialect == "compel"
        else:
            assert span.text == text[span.start : span.end]


def check_places(part: Branch, text: str) -> None:
    """Siblings follow one another inside their parent, and texts read as their place."""
    stack: list[tuple[int, int, tuple[Node, ...]]] = [(part.start, part.end, part.children)]
    while stack:
        at, end, children = stack.pop()
        for node in children:
            assert at <= node.start <= node.end <= end <= len(text)
            at = node.end
            if isinstance(node, Text):
                assert node.text == text[node.start : node.end] or "\\" in text
            elif isinstance(node, Group):
                stack.append((node.start, node.end, node.children))
            elif isinstance(node, (Schedule, Alternation)):
                stack += [(s.start, s.end, s.children) for s in sides_of(node)]
                assert all(node.start < s.start <= s.end < node.end for s in sides_of(node))


def read(text: str, dialect: str) -> Prompt | None:
    try:
        return parse(text, dialect)
    except PromptError as error:
        assert "^" in str(error)
        return None


@given(ANY)
@UNTIMED
def test_text_without_syntax_is_one_text_everywhere(text: str) -> None:
    text = "".join(c for c in text if c not in '#()[]\\:|"+-.,=\x0b\x0c').strip()
    text = " ".join(text.replace("BREAK", "").replace("AND", "").split())
    for dialect in DIALECTS:
        spans = parse(text, dialect).spans
        assert spans == ((Span(text, 0, len(text)),) if text else ())


# ---------------------------------------------------------------- work

# Each would run for minutes, or end in a RecursionError, if reading it took quadratic time or
# a call for each bracket.
PATTERNS = [
    "(" * WIDE,
    "[" * WIDE,
    ")" * WIDE,
    "(a " * (WIDE // 3),
    "([" * (WIDE // 2) + "a)" * (WIDE // 2),
    "[a:" * (WIDE // 3),
    "[a|" * (WIDE // 3) + "]" * (WIDE // 3),
    "(a:1)" * (WIDE // 5),
    "(" * WIDE + "[a:b:3]" * 1_000 + ")" * 1_000,
    " " * WIDE + "BREA",
    "BREAK " * (WIDE // 6),
    ":" + " " * WIDE + "1",
    ":1" * WIDE,
    "a :" * WIDE,
    "\\" * WIDE,
    "\\(" * WIDE,
    '"' * WIDE,
    '"(' * (WIDE // 2),
    '( " ' * (WIDE // 4),
    '"\\"' * (WIDE // 3),
    "a+" * (WIDE // 2),
    "a,b" * (WIDE // 3),
    "(a.attend(" * (WIDE // 10),
    "(a, " * (WIDE // 4),
    "9" * WIDE,
    "(a:" + "9" * WIDE + ")",
    "(a)" + "9" * WIDE,
]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("text", PATTERNS, ids=range(len(PATTERNS)))
def test_hostile_input_is_read_in_linear_time(dialect: str, text: str) -> None:
    read(text, dialect)


@pytest.mark.parametrize(
    ("dialect", "text", "kept"),
    [
        ("a1111", "(" * DEEP + "a" + ":1)" * DEEP, "a"),
        ("a1111", "[(" * DEEP + "a" + ")]" * DEEP, "a"),
        ("a1111", "[" * DEEP + "a" + "::3]" * DEEP, "a"),
        ("a1111", "[" * DEEP + "a" + "|b]" * DEEP, "a"),
        ("comfy", "(" * DEEP + "a" + ":1)" * DEEP, "a"),
        ("compel", "(" * DEEP + "a" + ")" * DEEP, "a"),
        ("compel", "(" * DEEP + "a" + ")1.0" * DEEP, "a"),
    ],
)
def test_ten_thousand_brackets_deep(dialect: str, text: str, kept: str) -> None:
    prompt = parse(text, dialect)
    assert [span.text for span in prompt.spans] == [kept]
    assert prompt.spans[0].weight == pytest.approx(1.0)
    (part,) = parts_of(prompt.tree)
    assert sum(1 for _ in walk(part.children)) > DEEP
    assert prompt == parse(text, dialect) and hash(prompt) and repr(prompt)
