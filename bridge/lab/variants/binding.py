"""Adjectives that change their nouns: does the tower know which is red?"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from bridge.lab.variants.variant import Settings
from bridge.lab.variants.words import ADJECTIVES, split_words

_MOST = 10


def adjective_swaps(prompt: str, settings: Settings) -> Iterator[tuple[str, str]]:
    """Each pair of different adjectives exchanged: "a red cat and a blue dog" and the reverse.

    Adjectives are known by a list (``words.ADJECTIVES``); no grammar is guessed at.
    """
    words = split_words(prompt)
    at = [i for i, word in enumerate(words.words) if word.lower() in ADJECTIVES]
    pairs = [
        (i, j)
        for i, j in combinations(at, 2)
        if words.words[i].lower() != words.words[j].lower()
        # Those of one noun ("a big red cat") bind alike.
        and not all(between in at for between in range(i, j))
    ]
    for i, j in pairs[:_MOST]:
        swapped = list(words.words)
        swapped[i], swapped[j] = swapped[j], swapped[i]
        yield words.with_words(swapped), f"{words.words[i]} ↔ {words.words[j]}"
