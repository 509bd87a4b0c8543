"""Plain text, as diffusers takes it: one span, in which no character has a meaning."""

from __future__ import annotations

from bridge.prompt.syntax import Branch, Choose, Span, SpanList, Text, Written


def parse(source: str, negative: bool = False) -> Branch:
    """The whole text as one node; the empty text has none."""
    children = (Text(source, 0, len(source)),) if source else ()
    return Branch(children, 0, len(source))


def spans(part: Branch, source: str, choose: Choose) -> tuple[Span, ...]:
    """One span of weight 1."""
    found = SpanList(source)
    found.add(part.start, part.end, 1.0, False)
    return found.done()


def write(parts: Written, kind: str) -> str:
    """The text alone, a space between windows."""
    windows = (window for part, _ in parts for window in part)
    return " ".join("".join(text for text, _ in window) for window in windows)
