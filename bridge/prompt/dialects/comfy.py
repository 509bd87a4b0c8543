r"""ComfyUI's prompts: ``(x)`` is ×1.1, ``(x:1.2)`` replaces the weight around it, ``\(`` escapes.

Facts from ComfyUI, ``comfy/sd1_clip.py`` (``parse_parentheses``, ``token_weights``,
``escape_important``), read at commits 00728eb, b55c224 and 4bd7a40, which agree:

- Square brackets mean nothing.
- The weight is what follows a group's last colon, if Python's ``float`` reads it and the colon is
  not the group's first character; else the group is ×1.1 and the colon is text.
- A bracket that is never closed is text, and so is all that follows it. But if the text ends in a
  closing bracket, the two count as a pair: ``(a (b)`` is ``a (b``, ×1.1, with its ``(b`` literal.
- A closing bracket that closes nothing is text, and the next opening bracket answers it.
- Pieces of unequal brackets are tokenized apart, even where their weights are equal.

ComfyUI takes ``nan`` and ``inf`` for weights and paints black; here they are a PromptError.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from itertools import pairwise

from bridge.prompt.syntax import (
    Branch,
    Choose,
    Group,
    Node,
    Span,
    SpanList,
    Text,
    Written,
    prompt_error,
    texts,
    walk,
    written_number,
)

_BRACKET = re.compile(r"(?<!\\)[()]")
# Escaped brackets lose their backslash.
_ESCAPE = re.compile(r"\\(?=[()])")
_SPECIAL = re.compile(r"[()]")


@dataclass
class _Frame:
    """A group being read: its nodes so far, where reading stands and where its content stops."""

    start: int
    end: int
    at: int
    stop: int
    weight: float = 1.0
    replaces: bool = False
    children: list[Node] = field(default_factory=list)


def parse(source: str, negative: bool = False) -> Branch:
    """The tree of a prompt. Raises PromptError for a weight that is not finite."""
    brackets = [(m.start(), m.group()) for m in _BRACKET.finditer(source)]
    # The bracket before each bracket: a weight has none inside.
    before = {at: earlier for (earlier, _), (at, _) in pairwise(brackets)}
    opens, closes = _pairs(brackets)
    coming = iter([*opens, len(source)])
    opening = next(coming)
    stack = [_Frame(0, len(source), 0, len(source))]
    while True:
        frame = stack[-1]
        while opening < frame.at:
            opening = next(coming)
        if opening >= frame.stop:
            frame.children += texts(source, frame.at, frame.stop, _ESCAPE)
            children = tuple(frame.children)
            stack.pop()
            if not stack:
                return Branch(children, 0, len(source))
            stack[-1].children.append(
                Group(children, frame.weight, frame.start, frame.end, frame.replaces)
            )
            stack[-1].at = frame.end
            continue
        frame.children += texts(source, frame.at, opening, _ESCAPE)
        frame.at = opening
        closing = closes.get(opening, len(source))
        if closing >= frame.stop:
            closing = frame.stop - 1
            if closing not in before or source[closing] == "(":
                frame.children += texts(source, opening, frame.stop, _ESCAPE)
                frame.at = frame.stop
                continue
        stack.append(_frame(source, opening, closing, before[closing]))


def spans(part: Branch, source: str, choose: Choose) -> tuple[Span, ...]:
    """The weighted pieces; only those that an escape parts are tokenized together."""
    found = SpanList(source)
    for node, weight in walk(part.children):
        if isinstance(node, Text):
            found.add(node.start, node.end, weight, node.glued)
    return found.done()


def write(parts: Written, kind: str) -> str:
    """Runs as ``(text:weight)``, a space between windows; parts lose their own weights."""
    return " ".join("".join(map(_written_run, window)) for part, _ in parts for window in part)


def _written_run(run: tuple[str, float]) -> str:
    text = _SPECIAL.sub(r"\\\g<0>", run[0])
    shown = written_number(run[1])
    # A backslash at the end would escape the next bracket.
    return text if shown == "1" and not text.endswith("\\") else f"({text}:{shown})"


def _pairs(brackets: list[tuple[int, str]]) -> tuple[list[int], dict[int, int]]:
    """The opening brackets that mean something, and where those are closed that are."""
    opens: list[int] = []
    closes: dict[int, int] = {}
    waiting: list[int] = []
    owed = 0
    for at, char in brackets:
        if char == ")" and waiting:
            closes[waiting.pop()] = at
        elif char == ")":
            owed += 1
        elif owed:
            owed -= 1
        else:
            waiting.append(at)
            opens.append(at)
    return opens, closes


def _frame(source: str, opening: int, closing: int, before: int) -> _Frame:
    """The group between two brackets; ``before`` is the bracket before the closing one."""
    content = opening + 1
    colon = source.rfind(":", before + 1, closing)
    if colon > content:
        try:
            weight = float(source[colon + 1 : closing])
        except ValueError:
            pass
        else:
            if not math.isfinite(weight):
                raise prompt_error(
                    f"{weight} is no weight; write a number such as 1.2.",
                    source, colon + 1, closing,
                )  # fmt: skip
            return _Frame(opening, closing + 1, content, colon, weight, True)
    return _Frame(opening, closing + 1, content, closing, 1.1)
