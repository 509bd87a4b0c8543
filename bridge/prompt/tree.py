"""One syntax tree for every prompt dialect: frozen nodes that know their place in the source.

A node's ``start:end`` covers all that the author wrote for it, brackets and weights included, so
``source[node.start:node.end]`` is the node as written and the root prints back its whole prompt.
Trees may be as deep as a prompt has brackets; walk them with ``walk``, never by recursion.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias


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

    ``weight`` is that of a part of a conjunction or blend; elsewhere it is 1.
    """

    children: tuple[Node, ...]
    start: int
    end: int
    weight: float = 1.0


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
