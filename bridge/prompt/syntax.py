"""The syntax of prompts in every dialect: texts that can be read, places in them, trees and spans.

A tree is made of frozen nodes that know their place in the source. A node's ``start:end`` covers
all that the author wrote for it, brackets and weights included, so ``source[node.start:node.end]``
is the node as written and the root prints back its whole prompt. Trees may be as deep as a prompt
has brackets; walk them with ``walk``, never by recursion. What is left of a tree at one step are
spans: pieces of text, each with one weight and its place.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TypeAlias

from bridge.checks import keywords
from bridge.errors import PromptError

# A tokenizer keeps at most a few hundred tokens; a text this long is a mistake (a file, say).
MAX_CHARACTERS = 1_000_000


@keywords
def check_text(text: object, what: str = "prompt") -> str:
    """Return ``text`` if it can be encoded, else raise PromptError.

    The empty string is legal: it is what classifier-free guidance encodes.

    Raises:
        PromptError: not a string; a NUL; half of a surrogate pair; over a million characters.
    """
    if not isinstance(text, str):
        raise PromptError(f"{what} must be a string, not {type(text).__name__}; pass text.")
    if len(text) > MAX_CHARACTERS:
        raise PromptError(
            f"{what} has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read. Shorten it."
        )
    nul = text.find("\0")
    if nul >= 0:
        raise PromptError(
            f"{what} has a NUL character at position {nul}, which no tokenizer can read; remove it."
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{what} has half of a surrogate pair (U+{ord(text[error.start]):04X}) at position "
            f"{error.start}, so it is no valid Unicode; decode its source again."
        ) from error
    return text


@keywords
def check_prompts(prompt: object, what: str = "prompt") -> tuple[str, ...]:
    """A string or a sequence of strings as a tuple of checked texts. Raises PromptError."""
    if isinstance(prompt, str):
        return (check_text(prompt, what),)
    if not isinstance(prompt, Sequence) or isinstance(prompt, (bytes, bytearray)):
        is_pipeline = isinstance(getattr(prompt, "components", None), Mapping)
        hint = "; give the pipeline as model=pipe" if is_pipeline else ""
        raise PromptError(
            f"{what} must be a string or a list of strings, not {type(prompt).__name__}{hint}."
        )
    if not prompt:
        raise PromptError(f"{what} is an empty list; give at least one text ('' is allowed).")
    return tuple(check_text(text, f"{what} {i}") for i, text in enumerate(prompt))


@keywords
def check_paired(
    text: object, count: int, what: str = "negative_prompt", beside: str = "prompt"
) -> tuple[str, ...] | None:
    """Texts that go with ``count`` prompts: None stays None, one string serves all of them.

    Raises:
        PromptError: as ``check_prompts``, or a list whose length is not ``count``.
    """
    if text is None:
        return None
    texts = check_prompts(text, what)
    if isinstance(text, str):
        return texts * count
    if len(texts) != count:
        raise PromptError(
            f"{what} has {len(texts)} texts for {count} of {beside}; give one for each, "
            "or one string for all."
        )
    return texts


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


# ---------------------------------------------------------------- trees


@dataclass(frozen=True)
class Text:
    """Words for the encoder, escapes undone; but for compel's, whose neighbours say how many are.

    ``glued``: it continues the Text before it, from which only an escape parts it.
    """

    text: str
    start: int
    end: int
    glued: bool = False


@dataclass(frozen=True)
class Break:
    """A1111's ``BREAK``: what follows begins a new window of the text encoder."""

    start: int
    end: int


@dataclass(frozen=True)
class Group:
    """Nodes under one weight. It multiplies the weight around it, or replaces it (ComfyUI)."""

    children: tuple[Node, ...]
    weight: float
    start: int
    end: int
    replaces: bool = False


@dataclass(frozen=True)
class Swap(Group):
    """compel's ``original.swap(replacement)``: the children are the original, encoded apart from
    what stands around it."""


@dataclass(frozen=True)
class Branch:
    """Nodes that stand alone: a whole prompt, a part of several, one side of a schedule.

    ``weight`` is that of a part of a conjunction or blend; elsewhere it is 1. ``scan`` is what its
    dialect found on the way and ``Dialect.spans`` needs again, if anything.
    """

    children: tuple[Node, ...]
    start: int
    end: int
    weight: float = 1.0
    scan: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Schedule:
    """A1111's ``[before:after:when]``; ``when`` is the number as written."""

    before: Branch
    after: Branch
    when: str
    start: int
    end: int


@dataclass(frozen=True)
class Alternation:
    """A1111's ``[a|b|c]``: each step takes the next option, round and round."""

    options: tuple[Branch, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Conjunction:
    """Prompts encoded apart. A1111's ``AND`` adds up their noise predictions by weight; compel's
    ``.and()`` sets their states end to end, each interpolated from the empty prompt's by weight."""

    parts: tuple[Branch, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Blend:
    """compel's ``.blend()``: the weighted sum of the parts' states.

    ``normalize``: the weights are divided by their sum first.
    """

    parts: tuple[Branch, ...]
    normalize: bool
    start: int
    end: int


Node: TypeAlias = Text | Break | Group | Schedule | Alternation
Edit: TypeAlias = Schedule | Alternation
Tree: TypeAlias = Branch | Conjunction | Blend
Choose: TypeAlias = Callable[[Edit], Branch]
"""Says which side of a schedule, or which option of an alternation, holds at one step."""


def texts(source: str, start: int, end: int, escape: re.Pattern[str]) -> list[Text]:
    """``source[start:end]``, cut so that no piece holds what ``escape`` matches."""
    # In a copy, where `escape` cannot look behind the start.
    spans = [match.span() for match in escape.finditer(source[start:end])]
    cuts = [(start + a, start + b) for a, b in spans]
    starts = [start, *(after for _, after in cuts)]
    ends = [*(before for before, _ in cuts), end]
    pieces = [(a, b) for a, b in zip(starts, ends, strict=True) if a < b]
    return [Text(source[a:b], a, b, glued=i > 0) for i, (a, b) in enumerate(pieces)]


def parts_of(tree: Tree) -> tuple[Branch, ...]:
    """The prompts that a tree encodes apart; most have one."""
    return (tree,) if isinstance(tree, Branch) else tree.parts


def walk(
    children: tuple[Node, ...], choose: Choose | None = None, weight: float = 1.0
) -> Iterator[tuple[Node, float]]:
    """Every node in the order of the source, each with the weight that holds where it stands.

    A group comes before its children, with its own weight applied. Schedules and alternations are
    entered at every side, or only at the one that ``choose`` gives.
    """
    stack = [(weight, iter(children))]
    while stack:
        held, rest = stack[-1]
        node = next(rest, None)
        if node is None:
            stack.pop()
        elif isinstance(node, Group):
            inner = node.weight if node.replaces else held * node.weight
            yield node, inner
            stack.append((inner, iter(node.children)))
        else:
            yield node, held
            if isinstance(node, (Schedule, Alternation)):
                sides = sides_of(node) if choose is None else (choose(node),)
                stack += [(held, iter(side.children)) for side in reversed(sides)]


def sides_of(edit: Edit) -> tuple[Branch, ...]:
    """The sides of a schedule or the options of an alternation, as written."""
    return (edit.before, edit.after) if isinstance(edit, Schedule) else edit.options


# ---------------------------------------------------------------- flat text

Runs: TypeAlias = Sequence[tuple[str, float]]
"""Text to be written in a dialect: texts, each with its weight."""
Written: TypeAlias = Sequence[tuple[Sequence[Runs], float]]
"""Prompts that go together: each in runs, window by window, with its own weight."""


def written_number(value: float) -> str:
    """A weight to ten digits, without an exponent, which A1111 lacks: ``1.21``."""
    return f"{Decimal(f'{value:.10g}'):f}"


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
