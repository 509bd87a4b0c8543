"""A1111's prompts, as stable-diffusion-webui reads them: twice.

First ``AND`` and schedules (``a1111_edits``), then, in the text that is left at a step, brackets
(``a1111_emphasis``). So ``(a:[1.2:1.5:10])`` is a weight that changes at step 10. The tree shows
both readings at once; the spans of a step are those of the second reading of that step's text.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from bridge.prompt.dialects.a1111_edits import read_part, read_parts, without_comments
from bridge.prompt.dialects.a1111_emphasis import events, match_brackets, weigh
from bridge.prompt.spans import Span, SpanList
from bridge.prompt.tree import Alternation, Branch, Choose, Conjunction, Edit, Group, Node, Schedule


def parse(source: str, negative: bool = False) -> Branch | Conjunction:
    """The tree of a prompt.

    The web UI reads negative prompts without ``AND`` and without part weights.

    Raises:
        PromptError: a weight such as ``1.2.3``, which the web UI fails on.
    """
    source = without_comments(source)
    if negative:
        return read_part(source, 0, len(source))
    parts = read_parts(source)
    if len(parts) == 1 and parts[0].weight == 1.0:
        return parts[0]
    return Conjunction(parts, 0, len(source))


def spans(part: Branch, source: str, choose: Choose) -> tuple[Span, ...]:
    """The weighted spans of the text that ``choose`` leaves."""
    source = without_comments(source)
    slices = [(a, b) for a, b in _slices(part, choose) if a < b]
    text = "".join(source[a:b] for a, b in slices)
    place = _Places(slices)
    found = list(events(text, 0, len(text)))
    match_brackets(found, text)
    spans = SpanList(source)
    last: float | None = None
    joined = False
    for event, weight in weigh(found):
        if event.kind == "break":
            spans.add_break(*place.around(event.start, event.end))
            last = None
            continue
        if weight != last:
            last, joined = weight, False
        for start, end in place.pieces(event.start, event.end):
            spans.add(start, end, weight, joined)
            joined = True
    return spans.done()


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


class _Places:
    """Where the characters of the text that is left stand in the source."""

    def __init__(self, slices: list[tuple[int, int]]) -> None:
        self._slices = slices
        self._starts = []
        at = 0
        for a, b in slices:
            self._starts.append(at)
            at += b - a

    def pieces(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The source ranges of ``text[start:end]``."""
        i = bisect_right(self._starts, start) - 1
        while start < end:
            a, b = self._slices[i]
            offset = start - self._starts[i]
            stop = min(b, a + offset + end - start)
            yield a + offset, stop
            start += stop - (a + offset)
            i += 1

    def around(self, start: int, end: int) -> tuple[int, int]:
        """One source range from the first character to the last."""
        pieces = list(self.pieces(start, end))
        return pieces[0][0], pieces[-1][1]
