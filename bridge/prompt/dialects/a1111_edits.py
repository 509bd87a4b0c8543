r"""A1111's first reading: ``AND``, part weights, schedules and alternations, as source ranges.

Facts from stable-diffusion-webui, ``modules/prompt_parser.py`` at commit 28bd8e1
(``get_multicond_prompt_list`` and the grammar ``schedule_parser``):

- ``#`` begins a comment, up to the end of its line (``processing_scripts/comments.py``).
- The text is cut at each whole word ``AND``, brackets or not. A part, even the only one, may end
  in ``:`` and a number, its weight; spaces at its end are dropped.
- In each part, ``[after:when]``, ``[before:after:when]`` and ``[a|b]`` are read where everything
  inside is in order: brackets paired, no stray colon. Sides may be empty. ``when`` is a number of
  ASCII digits with a sign, a point or an exponent; spaces may stand around it.
- What is not in order is text. But a ``|`` that is in no alternation, and a backslash with nothing
  on its line after it, make the grammar refuse the part: then it has no schedules at all.
- Here a backslash takes the next character with it, whichever it is.
- The grammar is ambiguous where an edit stands beside stray brackets or two stray colons, as in
  ``[a:b:3]::``: there the web UI, with the parser that it pins (lark 1.1.2), takes the edit on some
  starts of Python and leaves it as text on others (it follows ``PYTHONHASHSEED``). Here it is an
  edit always.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from bridge.errors import quoted
from bridge.prompt.caret import prompt_error
from bridge.prompt.dialects.a1111_emphasis import OPENS, nodes
from bridge.prompt.tree import Alternation, Branch, Edit, Schedule

_COMMENT = re.compile(r"#[^\n]*")
_AND = re.compile(r"\bAND\b")
_TOKEN = re.compile(r"\\.|[\\()\[\]:|]")
_PART_WEIGHT = re.compile(r"[-+]?(?:\d+\.?|\d*\.\d+)")
_WHEN = re.compile(r"[+-]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][+-]?[0-9]+)?")


@dataclass
class _Frame:
    """An open bracket: where it stands, the separators inside it, and whether all is in order.

    ``first`` is how many edits were read before it.
    """

    kind: str
    start: int
    first: int
    separators: list[tuple[str, int]] = field(default_factory=list)
    in_order: bool = True


def without_comments(source: str) -> str:
    """The text with spaces in the place of comments, so that all else stands where it stood."""
    return _COMMENT.sub(lambda comment: " " * len(comment[0]), source)


def read_parts(source: str) -> tuple[Branch, ...]:
    """The prompts that ``AND`` parts, with their weights."""
    cuts = [m.span() for m in _AND.finditer(source)]
    starts = [0, *(after for _, after in cuts)]
    ends = [*(before for before, _ in cuts), len(source)]
    return tuple(_part(source, a, b) for a, b in zip(starts, ends, strict=True))


def read_part(source: str, start: int, end: int, weight: float = 1.0) -> Branch:
    """One prompt, in which ``AND`` and a number at the end are text."""
    return _branch(source, start, end, _edits(source, start, end), weight)


def part_weight(source: str, start: int, end: int) -> tuple[int, float] | None:
    """The weight that ``source[start:end]`` ends in, and where the text before it ends."""
    stop = _strip(source, start, end)
    number = stop
    while number > start and (source[number - 1].isdecimal() or source[number - 1] in ".+-"):
        number -= 1
    colon = _strip(source, start, number) - 1
    if colon < start or source[colon] != ":" or not _PART_WEIGHT.fullmatch(source, number, stop):
        return None
    return _strip(source, start, colon), float(source[number:stop])


def _part(source: str, start: int, end: int) -> Branch:
    """One part: without its weight, if it ends in one, and without spaces at its end."""
    stop, weight = part_weight(source, start, end) or (_strip(source, start, end), 1.0)
    if not math.isfinite(weight):
        raise prompt_error(f"{weight} is no weight of a prompt.", source, stop, end)
    return read_part(source, start, stop, weight)


def _strip(source: str, start: int, end: int) -> int:
    while end > start and source[end - 1].isspace():
        end -= 1
    return end


def _branch(source: str, start: int, end: int, edits: list[Edit], weight: float = 1.0) -> Branch:
    return Branch(nodes(source, start, end, edits), start, end, weight)


def _edits(source: str, start: int, end: int) -> list[Edit]:
    """The outermost schedules and alternations; none where the grammar refuses the text.

    Raises:
        PromptError: a ``when`` that is not finite, such as ``1e999``.
    """
    edits: list[Edit] = []
    frames = [_Frame("", start, 0)]
    for token in _TOKEN.finditer(source, start, end):
        at, char = token.start(), token.group()
        frame = frames[-1]
        if char == "\\":
            return []
        if char in "([":
            frames.append(_Frame(char, at, len(edits)))
        elif char in ":|":
            frame.separators.append((char, at))
        elif char in ")]":
            if frame.kind != OPENS[char]:
                frame.in_order = False
                continue
            frames.pop()
            if not _close(source, frame, at, edits):
                if any(char == "|" for char, _ in frame.separators):
                    return []
                frames[-1].in_order = False
    if any(char == "|" for frame in frames for char, _ in frame.separators):
        return []
    return edits


def _close(source: str, frame: _Frame, at: int, edits: list[Edit]) -> bool:
    """Read the bracket that closes ``at``; whether it is in order. An edit replaces those in it."""
    kinds = "".join(char for char, _ in frame.separators)
    if not frame.in_order:
        return False
    if frame.kind == "(":
        return kinds in ("", ":")
    if not kinds:
        return True
    inside = edits[frame.first :]
    places = [place for _, place in frame.separators]
    if set(kinds) == {"|"}:
        sides = _sides(source, [frame.start, *places, at], inside)
        edits[frame.first :] = [Alternation(tuple(sides), frame.start, at + 1)]
        return True
    when = source[places[-1] + 1 : at].strip()
    if kinds not in (":", "::") or not _WHEN.fullmatch(when):
        return False
    if abs(float(when)) == float("inf"):
        raise prompt_error(
            f"{quoted(when, 40)} is no step; write a fraction such as 0.5 or a step such as 10.",
            source, places[-1] + 1, at,
        )  # fmt: skip
    # Without a side before, its place is the empty one just inside the bracket.
    first = [frame.start] if kinds == ":" else []
    before, after = _sides(source, [*first, frame.start, *places], inside)
    edits[frame.first :] = [Schedule(before, after, when, frame.start, at + 1)]
    return True


def _sides(source: str, borders: list[int], edits: list[Edit]) -> Iterator[Branch]:
    """The branches between borders, each with those of the edits that stand in it."""
    at = 0
    for left, right in pairwise(borders):
        first = at
        while at < len(edits) and edits[at].end <= right:
            at += 1
        yield _branch(source, left + 1, max(left + 1, right), edits[first:at])
