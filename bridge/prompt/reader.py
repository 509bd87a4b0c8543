"""How a tower reads text, where its tokenizer alone does not say.

CLIP's tokenizers state their context and take text as it is. T5 has no context of its own: a
pipeline says how many tokens it is given, and some (PixArt) write all text in small letters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bridge.prompt.inversion import Origins


@dataclass(frozen=True)
class Reader:
    """A tokenizer and how it is used. ``plan`` takes one wherever it takes a tokenizer.

    Attributes:
        tokenizer: a fast transformers tokenizer.
        length: how many tokens the tower is given, special ones included. Such a tower has one
            window: what does not fit is cut off, and ``BREAK`` is read over. None: the
            tokenizer's own ``model_max_length``, in as many windows as it takes.
        lower: whether text is put in small letters and stripped of white space around it.
    """

    tokenizer: Any
    length: int | None = None
    lower: bool = False


def lowered(text: str, origins: Origins) -> tuple[str, Origins]:
    """``text`` in small letters, and where each of them came from (``İ`` becomes two)."""
    small = text.lower()
    if len(small) == len(text):
        return small, origins
    # One letter depends on its neighbours (the final sigma), but not in how many it becomes.
    return small, [
        place for letter, place in zip(text, origins, strict=True) for _ in letter.lower()
    ]


def stripped(text: str, origins: Origins, *, left: bool, right: bool) -> tuple[str, Origins]:
    """``text`` without the white space at its ends."""
    start = len(text) - len(text.lstrip()) if left else 0
    end = len(text.rstrip()) if right else len(text)
    return text[start:end], origins[start:end]
