r"""A1111's prompts, as stable-diffusion-webui reads them: twice.

Facts from its ``modules/prompt_parser.py`` (``get_multicond_prompt_list``, the grammar
``schedule_parser``, ``parse_prompt_attention``) and ``modules/sd_hijack_clip.py``
(``tokenize_line``), read at commit 28bd8e1. First ``AND``, part weights, schedules and
alternations:

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

Then, in the text that is left at a step, brackets, escapes and ``BREAK``: ``(a:[1.2:1.5:10])`` is
a weight that changes at step 10. The tree shows both readings at once; the spans of a step are
those of the second reading of that step's text. A prompt without edits is one text at every step,
so its brackets are read once, for both.

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

import math
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from bridge.errors import quoted
from bridge.prompt.syntax import (
    Alternation,
    Branch,
    Break,
    Choose,
    Conjunction,
    Edit,
    Group,
    Node,
    Schedule,
    Span,
    SpanList,
    Text,
    Written,
    prompt_error,
    written_number,
)

_COMMENT = re.compile(r"#[^\n]*")
_AND = re.compile(r"\bAND\b")
_EDIT_TOKEN = re.compile(r"\\.|[\\()\[\]:|]")
_PART_WEIGHT = re.compile(r"[-+]?(?:\d+\.?|\d*\.\d+)")
_WHEN = re.compile(r"[+-]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][+-]?[0-9]+)?")
_OPENS = {")": "(", "]": "["}
_BRACKETS = "()[]"
_ROUND, _SQUARE = 1.1, 1 / 1.1
_TOKEN = re.compile(r"\\[()\[\]\\]|[\\()\[\]:]|[^\\()\[\]:]+")
_WEIGHT = re.compile(r":\s*([+-]?[.\d]+)\s*\)")
_SPECIAL = re.compile(r"[\\()\[\]]|\bBREAK\b|\bAND\b")


def parse(source: str, negative: bool = False) -> Branch | Conjunction:
    """The tree of a prompt.

    The web UI reads negative prompts without ``AND`` and without part weights.

    Raises:
        PromptError: a weight such as ``1.2.3``, which the web UI fails on.
    """
    source = without_comments(source)
    if negative:
        return _read_part(source, 0, len(source))
    parts = _read_parts(source)
    if len(parts) == 1 and parts[0].weight == 1.0:
        return parts[0]
    return Conjunction(parts, 0, len(source))


def spans(part: Branch, source: str, choose: Choose) -> tuple[Span, ...]:
    """The weighted spans of the text that ``choose`` leaves."""
    source = without_comments(source)
    slices, leaves = [(0, len(source))], part.scan
    if leaves is None:
        slices = [(a, b) for a, b in _slices(part, choose) if a < b]
        text = "".join(source[a:b] for a, b in slices)
        leaves = _weigh(_matched([*_events(text, 0, len(text))], text))
    starts, at = [], 0
    for a, b in slices:
        starts.append(at)
        at += b - a
    spans = SpanList(source)
    last: float | None = None
    joined = False
    for event, weight in leaves:
        pieces = _source_ranges(slices, starts, event.start, event.end)
        if event.kind == "break":
            borders = [*pieces]
            spans.add_break(borders[0][0], borders[-1][1])
            last = None
            continue
        if weight != last:
            last, joined = weight, False
        for start, end in pieces:
            spans.add(start, end, weight, joined)
            joined = True
    return spans.done()


def write(parts: Written, kind: str) -> str:
    """Parts of windows, each part with its weight: ``a BREAK (b:1.2) AND c :0.5``."""
    if kind == "and":
        # Only compel's .and() comes here, whose states stand end to end, as BREAK's do.
        parts = [([window for windows, _ in parts for window in windows], 1.0)]
    elif kind == "blend":
        total = sum(weight for _, weight in parts) or 1.0
        parts = [(windows, weight / total) for windows, weight in parts]
    written = []
    for windows, weight in parts:
        text = " BREAK ".join("".join(map(_written_run, window)) for window in windows)
        # Text that ends like a part's weight needs one after it to be text.
        if weight != 1.0 or _part_weight(text, 0, len(text)) is not None:
            text = f"{text} :{written_number(weight)}"
        written.append(text)
    return " AND ".join(written)


def without_comments(source: str) -> str:
    """The text with spaces in the place of comments, so that all else stands where it stood."""
    return _COMMENT.sub(lambda comment: " " * len(comment[0]), source)


def _written_run(run: tuple[str, float]) -> str:
    # A lone backslash is dropped, so that one in a word keeps it from being BREAK or AND.
    text = _SPECIAL.sub(
        lambda m: f"{m.group()[0]}\\{m.group()[1:]}" if len(m.group()) > 1 else f"\\{m.group()}",
        run[0],
    )
    shown = written_number(run[1])
    return text if shown == "1" else f"({text}:{shown})"


def _slices(part: Branch, choose: Choose) -> Iterator[tuple[int, int]]:
    """The ranges of the source that are left, in order."""
    stack = [(part.start, part.end, _edits(part.children))]
    while stack:
        at, end, edits = stack.pop()
        edit = next(edits, None)
        if edit is None:
            yield at, end
            continue
        yield at, edit.start
        stack.append((edit.end, end, edits))
        side = choose(edit)
        stack.append((side.start, side.end, _edits(side.children)))


def _edits(children: tuple[Node, ...]) -> Iterator[Edit]:
    """The outermost schedules and alternations among nodes, in groups or not."""
    stack = [iter(children)]
    while stack:
        node = next(stack[-1], None)
        if node is None:
            stack.pop()
        elif isinstance(node, Group):
            stack.append(iter(node.children))
        elif isinstance(node, (Schedule, Alternation)):
            yield node


def _source_ranges(
    slices: list[tuple[int, int]], starts: list[int], start: int, end: int
) -> Iterator[tuple[int, int]]:
    """Where the characters ``start:end`` of the text of ``slices`` stand in the source."""
    i = bisect_right(starts, start) - 1
    while start < end:
        a, b = slices[i]
        offset = start - starts[i]
        stop = min(b, a + offset + end - start)
        yield a + offset, stop
        start += stop - (a + offset)
        i += 1


# ---------------------------------------------------------------- first reading: edits


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


def _read_parts(source: str) -> tuple[Branch, ...]:
    """The prompts that ``AND`` parts, with their weights."""
    cuts = [m.span() for m in _AND.finditer(source)]
    starts = [0, *(after for _, after in cuts)]
    ends = [*(before for before, _ in cuts), len(source)]
    return tuple(_part(source, a, b) for a, b in zip(starts, ends, strict=True))


def _read_part(source: str, start: int, end: int, weight: float = 1.0) -> Branch:
    """One prompt, in which ``AND`` and a number at the end are text."""
    return _branch(source, start, end, _read_edits(source, start, end), weight)


def _part_weight(source: str, start: int, end: int) -> tuple[int, float] | None:
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
    stop, weight = _part_weight(source, start, end) or (_strip(source, start, end), 1.0)
    if not math.isfinite(weight):
        raise prompt_error(f"{weight} is no weight of a prompt.", source, stop, end)
    return _read_part(source, start, stop, weight)


def _strip(source: str, start: int, end: int) -> int:
    while end > start and source[end - 1].isspace():
        end -= 1
    return end


def _branch(source: str, start: int, end: int, edits: list[Edit], weight: float = 1.0) -> Branch:
    children, leaves = _nodes(source, start, end, edits)
    return Branch(children, start, end, weight, None if edits else leaves)


def _read_edits(source: str, start: int, end: int) -> list[Edit]:
    """The outermost schedules and alternations; none where the grammar refuses the text.

    Raises:
        PromptError: a ``when`` that is not finite, such as ``1e999``.
    """
    if source.find("[", start, end) < 0:
        return []
    edits: list[Edit] = []
    frames = [_Frame("", start, 0)]
    for token in _EDIT_TOKEN.finditer(source, start, end):
        at, char = token.start(), token.group()
        frame = frames[-1]
        if char == "\\":
            return []
        if char in "([":
            frames.append(_Frame(char, at, len(edits)))
        elif char in ":|":
            frame.separators.append((char, at))
        elif char in ")]":
            if frame.kind != _OPENS[char]:
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


# ---------------------------------------------------------------- second reading: brackets

Kind = Literal["(", "[", ")", "]", "text", "break", "edit"]


@dataclass(slots=True)
class _Event:
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


def _events(text: str, start: int, end: int) -> Iterator[_Event]:
    """What ``text[start:end]`` has, its brackets not matched yet."""
    at = start
    while at < end:
        token = _TOKEN.match(text, at, end)
        assert token is not None  # the pattern has a case for every character
        char, after = text[at], token.end()
        match char:
            case "\\":
                # A lone backslash leaves an empty text, which can still part its neighbours.
                yield _Event("text", at + 1, after)
            case "(" | "[" | ")" | "]":
                yield _Event(char, at, after)
            case ":":
                weight = _WEIGHT.match(text, at, end)
                if weight:
                    after = weight.end()
                    yield _Event(")", at, after, weight.span(1))
                else:
                    yield _Event("text", at, after)
            case _:
                yield from _words(text, at, after)
        at = after


def _matched(found: list[_Event], text: str) -> list[_Event]:
    """The events, every bracket with its factor, and those that close nothing as text.

    Raises:
        PromptError: a weight such as ``1.2.3``.
    """
    rounds: list[_Event] = []
    squares: list[_Event] = []
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
    return found


def _weigh(found: list[_Event]) -> Iterator[tuple[_Event, float]]:
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
            yield _Event("text", begin, end), -weight


def _weights(found: list[_Event]) -> list[float]:
    """The weight of each event that is no bracket.

    Factors are multiplied bracket by bracket as each closes, and those that never close at the end,
    the round ones first: the web UI's own order, which decides the last bit, and so whether two
    neighbours are of equal weight.
    """
    if not any(event.kind in _BRACKETS for event in found):
        return [1.0] * len(found)
    import numpy as np  # heavier than all else that reads prompts, so not before it is needed

    weights = np.ones(sum(event.kind not in _BRACKETS for event in found))
    open_: dict[str, list[tuple[int, float]]] = {"(": [], "[": []}
    at = 0
    with np.errstate(all="ignore"):
        for event in found:
            if event.kind in open_:
                open_[event.kind].append((at, event.factor))
            elif event.kind in _OPENS:
                start, factor = open_[_OPENS[event.kind]].pop()
                weights[start:at] *= factor
            else:
                at += 1
        for start, factor in (*open_["("], *open_["["]):
            weights[start:] *= factor
    return [float(weight) for weight in weights]


_Leaves = list[tuple[_Event, float]]


def _nodes(
    source: str, start: int, end: int, edits: list[Edit]
) -> tuple[tuple[Node, ...], _Leaves]:
    """The tree of ``source[start:end]``, in which ``edits`` stand, read already, and its leaves.

    Brackets that cross, as in ``([a)b]``, give one group for each text, of the same weights.
    """
    found: list[_Event] = []
    at = start
    for edit in edits:
        found += _events(source, at, edit.start)
        found.append(_Event("edit", edit.start, edit.end, edit=edit))
        at = edit.end
    found += _events(source, at, end)
    leaves = [*_weigh(_matched(found, source))]
    nested = _nested(found, leaves, source, end)
    if nested is not None:
        return nested, leaves
    flat: list[Node] = []
    for event, weight in leaves:
        node = _node(event, source)
        if node is not None:
            flat.append(Group((node,), weight, event.start, event.end) if weight != 1.0 else node)
    return tuple(flat), leaves


def _nested(found: list[_Event], leaves: _Leaves, source: str, end: int) -> tuple[Node, ...] | None:
    """Groups within groups; None where brackets cross."""
    open_: list[tuple[_Event | None, list[Node]]] = [(None, [])]

    def close(after: int) -> None:
        opening, children = open_.pop()
        assert opening is not None
        open_[-1][1].append(Group(tuple(children), opening.factor, opening.start, after))

    rest = iter(leaves)
    for event in found:
        match event.kind:
            case "(" | "[":
                open_.append((event, []))
            case ")" | "]":
                opening = open_[-1][0]
                if opening is None or opening.kind != _OPENS[event.kind]:
                    return None
                close(event.end)
            case _:
                leaf, _ = next(rest)
                node = _node(leaf, source)
                if node is not None and leaf is not event:
                    # A word BREAK: of minus the weight around it.
                    node = Group((node,), -1.0, leaf.start, leaf.end)
                if node is not None:
                    open_[-1][1].append(node)
    while len(open_) > 1:
        close(end)
    return tuple(open_[0][1])


def _node(event: _Event, source: str) -> Node | None:
    """The leaf of an event; None for an empty text."""
    if event.kind == "edit":
        return event.edit
    if event.kind == "break":
        return Break(event.start, event.end)
    if event.start == event.end:
        return None
    return Text(source[event.start : event.end], event.start, event.end)


def _words(text: str, start: int, end: int) -> Iterator[_Event]:
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
            yield _Event("text", at, left)
            yield _Event("break", left, right, (word, after))
            at = after = right
        word = text.find("BREAK", after, end)
    yield _Event("text", at, end)


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
