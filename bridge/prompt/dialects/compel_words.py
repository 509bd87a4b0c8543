r"""The words of compel's grammar: what a word, a number, an operator and a list of options are.

Facts from compel 2.5.1, ``prompt_parser.py`` (``build_parser_syntax``), and the whitespace rules of
pyparsing 3.3 that it rests on: space, tab and newlines may stand before any element.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_BLANK = " \t\n\r"
# Python's string.whitespace ends a word, though a vertical tab or a form feed begins nothing.
_SPACE = r" \t\n\r\v\f"
_NUMBER_PATTERN = r"(?:[+-]?(?:\d+\.\d*|\.\d+)|-?[0-9]+)"
_BLANKS = re.compile(f"[{_BLANK}]*")
# A word: escapes; a sign with an ordinary character after it; any other character.
_WORD = re.compile(rf"""\\[()",.+\-=]|[+-](?![{_BLANK}()",.+\-=]|\Z)|[^{_SPACE}()",.+\-=]""")
_RUN = re.compile(r"\++|-+")
_NUMBER = re.compile(_NUMBER_PATTERN)
_KEYWORD = re.compile(r"[A-Za-z0-9_-]+")
_FREE = re.compile(f"[^{_SPACE},]*,?")  # to a comma, with it
_LORA = re.compile(
    rf"(?:useLora|withLora)[{_BLANK}]*\([{_BLANK}]*[A-Za-z0-9_-]+[{_BLANK}]*"
    rf"(?:,[{_BLANK}]*{_NUMBER_PATTERN}[{_BLANK}]*)?\)"
)


@dataclass(frozen=True)
class Option:
    """An option of an operator: its number or name (its value dropped), at ``start:end``."""

    text: str
    start: int
    end: int


class Words:
    """Reads the words of ``text``, which begins at ``base`` of the prompt.

    compel writes a space after each comma that has none, before all else. ``parted`` has the
    places in the prompt where it does so: they part words here too, although no space is there.
    """

    def __init__(self, text: str, base: int, parted: frozenset[int]) -> None:
        self.text = text
        self._base = base
        self._parted = parted

    def blank(self, at: int) -> int:
        """Where the blanks at ``at`` end."""
        found = _BLANKS.match(self.text, at)
        return at if found is None else found.end()

    def literal(self, wanted: str, at: int | None) -> int | None:
        """Where ``wanted`` ends, blanks before it allowed; None if something else stands there."""
        if at is None:
            return None
        at = self.blank(at)
        return at + len(wanted) if self.text.startswith(wanted, at) else None

    def word(self, at: int) -> int:
        """Where the word at ``at`` ends; ``at`` itself if none begins there."""
        start = at
        while at == start or self._base + at not in self._parted:
            unit = _WORD.match(self.text, at)
            if unit is None:
                break
            at = unit.end()
        return at

    def free(self, at: int) -> int:
        """Where the characters up to the next space end, whatever they are."""
        while (found := _FREE.match(self.text, at)) and found.end() > at:
            at = found.end()
            if self._base + at in self._parted and self.text[at - 1] == ",":
                break
        return at

    def strength(self, at: int, numbers: bool) -> tuple[float, int] | None:
        """The weight at ``at`` and its end: pluses, minuses or, if allowed, a number."""
        run = _RUN.match(self.text, at)
        if run is not None:
            return _power(run.group()), run.end()
        number = _NUMBER.match(self.text, at) if numbers else None
        return None if number is None else (float(number.group()), number.end())

    def attached(self, at: int, numbers: bool) -> tuple[float, int] | None:
        """As ``strength``, of a target that ends at ``at``: nothing may part them."""
        return None if self._base + at in self._parted else self.strength(at, numbers)

    def lora(self, at: int) -> int | None:
        """Where a ``withLora(name, weight)`` ends."""
        found = _LORA.match(self.text, at)
        return None if found is None else found.end()

    def options(self, at: int) -> tuple[list[Option], int]:
        """The options at ``at`` (``0.6, no_normalize``) and where they end."""
        found: list[Option] = []
        after = at
        start = self.blank(at)
        while (option := self._option(start)) is not None:
            found.append(option[0])
            after = option[1]
            comma = self.literal(",", after)
            if comma is None:
                break
            start = self.blank(comma)
        return found, after

    def _option(self, at: int) -> tuple[Option, int] | None:
        name = _KEYWORD.match(self.text, at)
        equals = None if name is None else self.literal("=", name.end())
        if name is not None and equals is not None:
            value = self.blank(equals)
            found = _NUMBER.match(self.text, value) or _KEYWORD.match(self.text, value)
            if found is not None:
                return Option(name.group(), *name.span()), found.end()
        plain = _NUMBER.match(self.text, at) or name
        return None if plain is None else (Option(plain.group(), *plain.span()), plain.end())


def _power(run: str) -> float:
    """``+`` is 1.1 each, ``-`` is 0.9 each; infinite where Python's floats end."""
    try:
        return (1.1 if run[0] == "+" else 0.9) ** len(run)
    except OverflowError:
        return math.inf
