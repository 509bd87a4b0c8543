"""What is left of a tree at one step: pieces of text, each with one weight and its place."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bridge.prompt.caret import prompt_error


@dataclass(frozen=True)
class Span:
    """A piece of text at ``source[start:end]`` that carries one weight.

    Attributes:
        text: what is encoded. It is ``source[start:end]`` itself, but for a space that compel
            sets between two words that touch (``start == end``), and but for breaks.
        joined: the dialect's tool hands this text to the tokenizer together with that of the span
            before it. Spans that are not joined are tokenized apart.
        breaks: no text, but a border: what follows begins a new window (A1111's ``BREAK``).
    """

    text: str
    start: int
    end: int
    weight: float = 1.0
    joined: bool = False
    breaks: bool = False


class SpanList:
    """Gathers spans from left to right; pieces that are joined and touch become one."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._spans: list[Span] = []
        # The span under construction: start, end, weight, joined.
        self._open: tuple[int, int, float, bool] | None = None

    def add(self, start: int, end: int, weight: float, joined: bool) -> None:
        """Source text. Raises PromptError if the weight is not finite."""
        if start == end:
            return
        if not math.isfinite(weight):
            raise prompt_error(
                f"The weight here is {weight}, which no encoder can use; nest fewer brackets or "
                "write a smaller number.", self._source, start, end,
            )  # fmt: skip
        if self._open is not None and joined and self._open[1:3] == (start, weight):
            self._open = (self._open[0], end, weight, self._open[3])
            return
        self._close()
        self._open = (start, end, weight, joined)

    def add_space(self, at: int, weight: float, joined: bool) -> None:
        """A space that the dialect's tool sets: the one at ``at``, or one of its own there."""
        if self._source[at : at + 1] == " ":
            self.add(at, at + 1, weight, joined)
            return
        self._close()
        self._spans.append(Span(" ", at, at, weight, joined))

    def add_break(self, start: int, end: int) -> None:
        """The border between two windows."""
        self._close()
        self._spans.append(Span("", start, end, breaks=True))

    def done(self) -> tuple[Span, ...]:
        """The spans."""
        self._close()
        return tuple(self._spans)

    def _close(self) -> None:
        if self._open is not None:
            start, end, weight, joined = self._open
            self._spans.append(Span(self._source[start:end], start, end, weight, joined))
            self._open = None
