"""How a tokenizer splits a text: the pieces of each word."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.lab.variants.words import split_words

Offsets = Sequence[tuple[int, int] | None]
"""Where each token stands in the text; None for special ones and padding."""


def tokens_of_words(text: str, offsets: Offsets) -> list[list[int]]:
    """For each word of ``text`` (``split_words``) the places of the tokens that touch it.

    A word that was cut off has none.
    """
    return [
        [at for at, span in enumerate(offsets) if span and span[0] < end and span[1] > start]
        for start, end in split_words(text).spans()
    ]


def pieces_per_word(text: str, offsets: Offsets) -> float:
    """Tokens a word, over the words that were not cut off; the "fertility" of a tokenizer.

    NaN for a text without words.
    """
    found = [len(places) for places in tokens_of_words(text, offsets) if places]
    return sum(found) / len(found) if found else float("nan")


def content(offsets: Offsets) -> list[int]:
    """The places of the tokens that stand for text."""
    return [at for at, span in enumerate(offsets) if span]
