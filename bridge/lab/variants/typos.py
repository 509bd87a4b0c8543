"""Slips of the finger, by the seed."""

from __future__ import annotations

import random
from collections.abc import Iterator

from bridge.lab.variants.variant import Settings
from bridge.lab.variants.words import split_words

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def typos(prompt: str, settings: Settings) -> Iterator[tuple[str, str]]:
    """One slip in one word each: two letters exchanged, one left out, doubled, or its neighbour
    on a QWERTY keyboard."""
    words = split_words(prompt)
    long = [i for i, word in enumerate(words.words) if len(word) > 2]
    if not long:
        return
    chance = settings.random("typo", prompt)
    for number in range(settings.count):
        at = chance.choice(long)
        slip = _SLIPS[number % len(_SLIPS)]
        word = slip(words.words[at], chance)
        yield words.replaced(at, word), f"{words.words[at]} → {word}"


def _exchange(word: str, chance: random.Random) -> str:
    at = chance.randrange(len(word) - 1)
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def _drop(word: str, chance: random.Random) -> str:
    at = chance.randrange(1, len(word))
    return word[:at] + word[at + 1 :]


def _double(word: str, chance: random.Random) -> str:
    at = chance.randrange(len(word))
    return word[:at] + word[at] + word[at:]


def _neighbour(word: str, chance: random.Random) -> str:
    at = chance.randrange(len(word))
    row = next((row for row in _ROWS if word[at].lower() in row), None)
    if row is None:  # no letter of that keyboard
        return _exchange(word, chance)
    place = row.index(word[at].lower())
    near = row[place - 1] if place else row[1]
    return word[:at] + near + word[at + 1 :]


_SLIPS = (_exchange, _drop, _double, _neighbour)
