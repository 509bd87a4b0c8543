"""The same words in another order."""

from __future__ import annotations

from collections.abc import Iterator

from bridge.lab.variants.variant import Settings
from bridge.lab.variants.words import split_words

# Past this a rotation or a swap says nothing new, and a prompt of a thousand words would flood.
_MOST = 8


def word_order(prompt: str, settings: Settings) -> Iterator[tuple[str, str]]:
    """Reversed, halves exchanged, neighbours swapped, and shuffles by the seed.

    Words keep the gaps of their new places, so the text has its own blanks and commas still.
    """
    words = split_words(prompt)
    order = words.words
    if len(order) < 2:
        return
    yield words.with_words(order[::-1]), "reversed"
    half = (len(order) + 1) // 2
    yield words.with_words(order[half:] + order[:half]), "halves exchanged"
    for at in range(min(len(order) - 1, _MOST)):
        swapped = [*order[:at], order[at + 1], order[at], *order[at + 2 :]]
        yield words.with_words(swapped), f"{order[at]} ↔ {order[at + 1]}"
    chance = settings.random("word-order", prompt)
    for number in range(settings.count):
        yield words.with_words(chance.sample(order, len(order))), f"shuffle {number + 1}"
