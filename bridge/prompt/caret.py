"""A PromptError that shows the place: the line of the prompt, and carets under what is meant."""

from __future__ import annotations

from bridge.errors import PromptError

# Characters of the line shown on either side of the place.
_AROUND = 32


def prompt_error(message: str, source: str, start: int, end: int | None = None) -> PromptError:
    """The error to raise for ``source[start:end]``; without ``end``, for one character."""
    return PromptError(f"{message}\n{caret(source, start, start + 1 if end is None else end)}")


def caret(source: str, start: int, end: int) -> str:
    """Two lines: the source around ``start:end``, and carets under it (at least one).

    Only the line on which the place begins is shown, cut to what fits on a screen. Tabs become
    spaces, so that the carets stand where they should.
    """
    line_start = source.rfind("\n", 0, start) + 1
    line_end = source.find("\n", start)
    line_end = len(source) if line_end < 0 else line_end
    first, last = max(line_start, start - _AROUND), min(line_end, start + _AROUND)
    before = "…" if first > line_start else ""
    after = "…" if last < line_end else ""
    shown = before + source[first:last] + after
    width = max(1, min(end, last) - start)
    return f"{shown.translate(_BLANKS)}\n{' ' * (len(before) + start - first)}{'^' * width}"


_BLANKS = str.maketrans(dict.fromkeys("\t\r\v\f", " "))
