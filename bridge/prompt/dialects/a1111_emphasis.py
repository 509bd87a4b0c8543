r"""A1111's second reading: brackets as weights, escapes and ``BREAK`` in a text without schedules.

Facts from stable-diffusion-webui, ``modules/prompt_parser.py`` (``parse_prompt_attention``, read
at commit 28bd8e1) and ``modules/sd_hijack_clip.py`` (``tokenize_line``):

- ``(x)`` is ×1.1, ``[x]`` ÷1.1, ``(x:1.3)`` ×1.3; weights multiply. Round and square brackets are
  matched apart, so ``([a)b]`` is legal. A bracket that is never closed weighs all that follows it;
  one that closes nothing is text.
- A weight is digits and dots, with a sign at most; anything else (``1e9``, ``nan``) is text, and
  the bracket is ×1.1. ``1.2.3`` stops the web UI with a ValueError; here it is a PromptError.
- A backslash before one of ``()[]\`` escapes it; any other backslash is dropped.
- ``BREAK`` is a border only where its weight is 1. Elsewhere it is a word, of the negative weight.
- Neighbours of equal weight are tokenized together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from bridge.errors import quoted
from bridge.prompt.caret import prompt_error
from bridge.prompt.tree import Break, Edit, Group, Node, Text

Kind = Literal["(", "[", ")", "]", "text", "break", "edit"]

OPENS = {")": "(", "]": "["}
_BRACKETS = "()[]"
_ROUND, _SQUARE = 1.1, 1 / 1.1
_TOKEN = re.compile(r"\\[()\[\]\\]|[\\()\[\]:]|[^\\()\[\]:]+")
_WEIGHT = re.compile(r":\s*([+-]?[.\d]+)\s*\)")


@dataclass(slots=True)
class Event:
    """One thing that the reading meets, at ``start:end`` of the text that it reads.

    Attributes:
        inner: where the number of a closing bracket stands, or the word of a break.
        factor: what an opening bracket multiplies by, once matched.
    """

    kind: Kind
    start: int
    end: int
    inner: tuple[int, int] | None = None
    factor: float = 1.0
    edit: Edit | None = None


def events(text: str, start: int, end: int) -> Iterator[Event]:
    """What ``text[start:end]`` has, its brackets not matched yet."""
    at = start
    while at < end:
        token = _TOKEN.match(text, at, end)
        assert token is not None  # the pattern has a case for every character
        char, after = text[at], token.end()
        match char:
            case "\\":
                # A lone backslash leaves an empty text, which can still part its neighbours.
                yield Event("text", at + 1, after)
            case "(" | "[" | ")" | "]":
                yield Event(char, at, after)
            case ":":
                weight = _WEIGHT.match(text, at, end)
                if weight:
                    after = weight.end()
                    yield Event(")", at, after, weight.span(1))
                else:
                    yield Event("text", at, after)
            case _:
                yield from _words(text, at, after)
        at = after


def match_brackets(found: list[Event], text: str) -> None:
    """Give every bracket its factor, and make text of those that close nothing.

    Raises:
        PromptError: a weight such as ``1.2.3``.
    """
    rounds: list[Event] = []
    squares: list[Event] = []
    for event in found:
        if event.kind == "(":
            rounds.append(event)
        elif event.kind == "[":
            squares.append(event)
        elif event.kind == ")" and rounds:
            rounds.pop().factor = _ROUND if event.inner is None else _number(text, *event.inner)
        elif event.kind == "]" and squares:
            squares.pop().factor = _SQUARE
        elif event.kind in (")", "]"):
            event.kind = "text"
    for event in rounds:
        event.factor = _ROUND
    for event in squares:
        event.factor = _SQUARE


def weigh(found: list[Event]) -> Iterator[tuple[Event, float]]:
    """The texts, breaks and edits among matched events, each with its weight.

    A ``BREAK`` under a weight comes as the text that it is.
    """
    weights = iter(_weights(found))
    for event in found:
        if event.kind in _BRACKETS:
            continue
        weight = next(weights)
        if event.kind != "break":
            yield event, weight
        elif weight == 1.0:
            yield event, 1.0
        else:
            begin, end = event.inner or (event.start, event.end)
            yield Event("text", begin, end), -weight


def _weights(found: list[Event]) -> list[float]:
    """The weight of each event that is no bracket.

    Factors are multiplied bracket by bracket as each closes, and those that never close at the end,
    the round ones first: the web UI's own order, which decides the last bit, and so whether two
    neighbours are of equal weight.
    """
    import numpy as np  # heavier than all else that reads prompts, so not before it is needed

    weights = np.ones(sum(event.kind not in _BRACKETS for event in found))
    open_: dict[str, list[tuple[int, float]]] = {"(": [], "[": []}
    at = 0
    with np.errstate(all="ignore"):
        for event in found:
            if event.kind in open_:
                open_[event.kind].append((at, event.factor))
            elif event.kind in OPENS:
                start, factor = open_[OPENS[event.kind]].pop()
                weights[start:at] *= factor
            else:
                at += 1
        for start, factor in (*open_["("], *open_["["]):
            weights[start:] *= factor
    return [float(weight) for weight in weights]


def nodes(source: str, start: int, end: int, edits: list[Edit]) -> tuple[Node, ...]:
    """The tree of ``source[start:end]``, in which ``edits`` stand, read already.

    Brackets that cross, as in ``([a)b]``, give one group for each text, of the same weights.
    """
    found: list[Event] = []
    at = start
    for edit in edits:
        found += events(source, at, edit.start)
        found.append(Event("edit", edit.start, edit.end, edit=edit))
        at = edit.end
    found += events(source, at, end)
    match_brackets(found, source)
    nested = _nested(found, source, end)
    if nested is not None:
        return nested
    flat: list[Node] = []
    for event, weight in weigh(found):
        node = _node(event, source)
        if node is not None:
            flat.append(Group((node,), weight, event.start, event.end) if weight != 1.0 else node)
    return tuple(flat)


def _nested(found: list[Event], source: str, end: int) -> tuple[Node, ...] | None:
    """Groups within groups; None where brackets cross."""
    open_: list[tuple[Event | None, list[Node]]] = [(None, [])]

    def close(after: int) -> None:
        opening, children = open_.pop()
        assert opening is not None
        open_[-1][1].append(Group(tuple(children), opening.factor, opening.start, after))

    weights = weigh(found)
    for event in found:
        match event.kind:
            case "(" | "[":
                open_.append((event, []))
            case ")" | "]":
                opening = open_[-1][0]
                if opening is None or opening.kind != OPENS[event.kind]:
                    return None
                close(event.end)
            case _:
                leaf, _ = next(weights)
                node = _node(leaf, source)
                if node is not None and leaf is not event:
                    # A word BREAK: of minus the weight around it.
                    node = Group((node,), -1.0, leaf.start, leaf.end)
                if node is not None:
                    open_[-1][1].append(node)
    while len(open_) > 1:
        close(end)
    return tuple(open_[0][1])


def _node(event: Event, source: str) -> Node | None:
    """The leaf of an event; None for an empty text."""
    if event.kind == "edit":
        return event.edit
    if event.kind == "break":
        return Break(event.start, event.end)
    if event.start == event.end:
        return None
    return Text(source[event.start : event.end], event.start, event.end)


def _words(text: str, start: int, end: int) -> Iterator[Event]:
    """Text without brackets, cut at each ``BREAK``, which takes the spaces around it."""
    at = start
    word = text.find("BREAK", start, end)
    while word >= 0:
        after = word + len("BREAK")
        whole = (word == start or not _in_word(text[word - 1])) and (
            after == end or not _in_word(text[after])
        )
        if whole:
            left, right = word, after
            while left > at and text[left - 1].isspace():
                left -= 1
            while right < end and text[right].isspace():
                right += 1
            yield Event("text", at, left)
            yield Event("break", left, right, (word, after))
            at = after = right
        word = text.find("BREAK", after, end)
    yield Event("text", at, end)


def _in_word(char: str) -> bool:
    return char.isalnum() or char == "_"


def _number(text: str, start: int, end: int) -> float:
    try:
        return float(text[start:end])
    except ValueError:
        raise prompt_error(
            f"{quoted(text[start:end], 40)} is no weight; write a number such as 1.2.",
            text,
            start,
            end,
        ) from None
