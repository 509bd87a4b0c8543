"""Marks of another tool in a prompt, which its own dialect reads as text.

Whoever copies a prompt into another tool keeps its weights' syntax, and there each mark is a token
like any other, without a word. Only what is hardly ever meant as text is told: ``red++`` and
``(red)1.3``, but not ``C++`` or ``(x)``; ``(red:1.3)``, but not ``(16:9)``; a LoRA's tag. In
``plain``, where all characters are meant as they are, it is the tag alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from bridge.errors import DialectWarning, quoted, warn
from bridge.prompt.dialect import DialectName

# Each begins with a character that few texts have, so that a search costs next to nothing: what
# stands before it is looked at after.
_COMPEL = (
    r"(?P<compel>\+\+(?<=[^\W\d_]{3}\+\+)\+*(?![\w+])"
    r"|\)(?<!\\\))(?:(?:\++|--+)(?=[\s,]|\Z)|\d*\.\d+(?!\w)|\.(?:and|blend|swap)\())"
)
_A1111 = r"(?P<a1111>\([^()]*:\s*\d*\.\d+\s*\))"
_TAG = r"(?P<tag><lora:[^<>]+>)"
_MARKS: dict[DialectName, re.Pattern[str]] = {
    "a1111": re.compile(_COMPEL),
    "comfy": re.compile(f"{_COMPEL}|{_TAG}"),
    "compel": re.compile(f"{_A1111}|{_TAG}"),
    "plain": re.compile(_TAG),
}


def warn_of_marks(texts: Iterable[str], dialect: DialectName) -> None:
    """A ``DialectWarning`` for each text with a mark that its dialect reads as text; the first is
    named."""
    for text in dict.fromkeys(texts):
        found = _MARKS[dialect].search(text)
        if found is None:
            continue
        start = found.start()
        while start and text[start - 1].isalpha() and found.group()[0] == "+":
            start -= 1  # the word that a plus is after
        mark = quoted(text[start : found.end()], 60)
        if found.lastgroup == "tag":
            told = (
                f"{mark} is read as text, and no LoRA acts by it: tags belong to the dialect "
                f'a1111. In {dialect}, take it out and give loras=(file, strength); or say '
                'dialect="a1111".'
            )  # fmt: skip
        else:
            told = (
                f"{mark} is how {found.lastgroup} weighs text; the dialect {dialect} reads these "
                f'characters as they are. If a weight is meant, say dialect="{found.lastgroup}".'
            )
        warn(DialectWarning, f"{quoted(text, 60)}: {told}")
