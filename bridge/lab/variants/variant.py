"""What an operation gives, what it may be told, and what it is."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.prompt.dialect import DialectName

ORIGINAL = "original"
"""The operation of the prompt itself."""


@dataclass(frozen=True)
class Variant:
    """One phrasing.

    Attributes:
        operation: the name of what made it; ``ORIGINAL`` for the prompt itself.
        text: the phrasing.
        detail: what was done, in a few words.
        dialect: how the text is read; "plain" but for emphasis.
    """

    operation: str
    text: str
    detail: str = ""
    dialect: DialectName = "plain"


@dataclass(frozen=True)
class Settings:
    """What operations may be told.

    Attributes:
        seed: of those that choose at random; the same seed gives the same variants.
        count: how many variants such an operation gives at most.
        names: for ``language``: language -> English words -> the words of that language, or
            languages that bridge has names in; empty for all of these.
        weights: for ``emphasis``.
    """

    seed: int = 0
    count: int = 6
    names: Mapping[str, Mapping[str, str]] | Sequence[str] = ()
    weights: tuple[float, ...] = (0.5, 0.8, 1.2, 1.5, 2.0)

    def random(self, operation: str, prompt: str) -> random.Random:
        """A generator that depends on nothing but the seed, the operation and the prompt."""
        return random.Random(f"{self.seed}\0{operation}\0{prompt}")


Made = Iterable[tuple[str, str] | tuple[str, str, str]]
"""``(text, detail)`` or ``(text, detail, dialect)``, duplicates and the prompt itself allowed."""


@dataclass(frozen=True)
class Operation:
    """A row of the table.

    Attributes:
        about: what it does, in a line.
        make: from a prompt and the settings to its phrasings.
        check: refuses, before anything is made, settings that it cannot work with.
        usual: whether it is among those of a study that names none.
    """

    about: str
    make: Callable[[str, Settings], Made]
    check: Callable[[Settings], Any] = lambda settings: None
    usual: bool = True
