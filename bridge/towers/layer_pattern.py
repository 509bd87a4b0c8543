"""Regular expressions that peft's configs name layers by, matched in linear time.

Keys of ``alpha_pattern`` come from a file, and Python's ``re`` goes back and forth for ever on
some of them. Here all places of a path that a part of the pattern can reach are followed at once
(Thompson 1968), so nothing is ever tried twice. Read are characters, ``.``, classes, ``\\d``,
``\\w`` and ``\\s``, groups, ``|``, ``? * + {2,3}``, ``^`` and ``$``; refused are repeats inside a
repeated group, references and look-arounds, which no layer's name needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache, reduce
from operator import or_

LONGEST = 200
"""Characters of a pattern."""

Reach = Callable[[str, int], int]
"""From a path and places in it to the places where a part of a pattern can end; bit i of the
number stands for place i."""

_PLAIN = re.compile(r"\w+(\\?\.\w+)*", re.ASCII)
_PART = re.compile(
    r"(?P<open>\((?:\?:)?(?!\?))|(?P<close>\))|(?P<bar>\|)|(?P<start>\^)|(?P<end>\$)"
    r"|(?P<repeat>(?:[*+?]|\{[0-9]{1,3}(?:,[0-9]{0,3})?\})\??)"
    r"|(?P<one>\\[dDwWsS]|\\[^A-Za-z0-9]|\[\^?\]?(?:[^\]\\]|\\.)*\]|[^\\\[\](){}*+?|^$])"
)
_LETTERS = [chr(code) for code in range(128)]


class LayerPatternError(ValueError):
    """A pattern that is not read here, or no pattern at all; the message says why."""


def is_plain(pattern: str) -> bool:
    """Whether a pattern is a layer's name, or the end of one, and no expression."""
    return _PLAIN.fullmatch(pattern) is not None


def matches(pattern: str, path: str) -> bool:
    """Whether ``pattern`` is the end of a layer's path: ``re.fullmatch(rf"(.*\\.)?({pattern})",
    path)``. Raises LayerPatternError."""
    if is_plain(pattern):
        name = pattern.replace("\\", "")
        return path == name or path.endswith("." + name)
    starts = 1 | _places(path, frozenset(".")) << 1
    return bool(compile_pattern(pattern)(path, starts) >> len(path))


@lru_cache(maxsize=256)
def compile_pattern(pattern: str) -> Reach:
    """A pattern as a function. Raises LayerPatternError."""
    if len(pattern) > LONGEST:
        raise LayerPatternError(f"has {len(pattern)} characters; at most {LONGEST} are read")
    parts = _parts(pattern)
    reach, rest, _ = _either(parts)
    if rest:
        raise LayerPatternError("closes a bracket that is not open")
    return reach


def _parts(pattern: str) -> list[tuple[str, str]]:
    found, at = [], 0
    while at < len(pattern):
        match = _PART.match(pattern, at)
        if match is None:
            raise LayerPatternError(f"has {pattern[at : at + 8]!r}, which is not read in it")
        found.append((match.lastgroup or "", match.group()))
        at = match.end()
    return found


def _either(parts: list[tuple[str, str]]) -> tuple[Reach, list[tuple[str, str]], bool]:
    """Alternatives up to a closing bracket; also what is left, and whether any part repeats."""
    options, repeats = [], False
    while True:
        reach, parts, own = _row(parts)
        options.append(reach)
        repeats |= own
        if not parts or parts[0][0] != "bar":
            return _union(options), parts, repeats
        parts = parts[1:]


def _row(parts: list[tuple[str, str]]) -> tuple[Reach, list[tuple[str, str]], bool]:
    row: list[Reach] = []
    repeats = False
    while parts and parts[0][0] not in ("bar", "close"):
        (kind, text), *parts = parts
        inner = False
        match kind:
            case "open":
                reach, parts, inner = _either(parts)
                if not parts:
                    raise LayerPatternError("opens a bracket and does not close it")
                parts = parts[1:]
            case "one":
                reach = _one(text)
            case "start" | "end" if parts and parts[0][0] == "repeat":
                raise LayerPatternError(f"repeats {text!r}, which takes no room")
            case "start":
                reach = lambda path, at: at & 1  # noqa: E731
            case "end":
                reach = lambda path, at: at & 1 << len(path)  # noqa: E731
            case _:
                raise LayerPatternError(f"has {text!r} with nothing before it to repeat")
        if parts and parts[0][0] == "repeat":
            if inner:
                raise LayerPatternError("has a repeat inside a repeated group")
            reach, parts, inner = _repeated(reach, parts[0][1]), parts[1:], True
        repeats |= inner
        row.append(reach)
    return _chain(row), parts, repeats


def _one(text: str) -> Reach:
    try:
        letters = frozenset(filter(re.compile(text, re.ASCII).fullmatch, _LETTERS))
    except re.error as error:
        raise LayerPatternError(f"has {text!r}: {error}") from error
    return lambda path, at: (at & _places(path, letters)) << 1


@lru_cache(maxsize=4096)
def _places(path: str, letters: frozenset[str]) -> int:
    """Where a path has one of ``letters``."""
    return sum(1 << at for at, letter in enumerate(path) if letter in letters)


def _chain(row: list[Reach]) -> Reach:
    def reach(path: str, at: int) -> int:
        for part in row:
            at = part(path, at)
        return at

    return reach


def _union(options: list[Reach]) -> Reach:
    return lambda path, at: reduce(or_, (option(path, at) for option in options))


def _repeated(part: Reach, text: str) -> Reach:
    text = text if len(text) == 1 else text.removesuffix("?")
    least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(text) or _counts(text)

    def reach(path: str, at: int) -> int:
        for _ in range(least):
            # What stays as it is stays so: no more rounds than a path has places.
            before, at = at, part(path, at)
            if at == before:
                break
        reached = fresh = at
        count = least
        while fresh and (most is None or count < most):
            fresh = part(path, fresh) & ~reached
            reached |= fresh
            count += 1
        return reached

    return reach


def _counts(text: str) -> tuple[int, int | None]:
    least, comma, most = text[1:-1].partition(",")
    if not comma:
        return int(least), int(least)
    return int(least), int(most) if most else None
