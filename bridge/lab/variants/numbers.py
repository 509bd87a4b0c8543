"""Number words and digits."""

from __future__ import annotations

from collections.abc import Iterator

from bridge.lab.variants.variant import Settings
from bridge.lab.variants.words import split_words

_TO_NINETEEN = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_UNITS = _TO_NINETEEN.split()
WORDS = (
    *_UNITS,
    *(f"{ten}-{unit}" if i else ten for ten in _TENS.split() for i, unit in enumerate(_UNITS[:10])),
)
"""The numbers from 0 to 99 in words."""
_VALUES = {word: value for value, word in enumerate(WORDS)}


def numbers(prompt: str, settings: Settings) -> Iterator[tuple[str, str]]:
    """Each number in its other writing, alone and all together, and each one up or down by one."""
    words = split_words(prompt)
    other: dict[int, str] = {}
    for at, word in enumerate(words.words):
        value = value_of(word)
        if value is None:
            continue
        other[at] = WORDS[value] if word.isdecimal() else str(value)
        yield words.replaced(at, other[at]), f"{word} → {other[at]}"
        for near in (value - 1, value + 1):
            if 1 <= near < len(WORDS):
                text = str(near) if word.isdecimal() else WORDS[near]
                yield words.replaced(at, text), f"{word} → {text}"
    if len(other) > 1:
        changed = [other.get(at, word) for at, word in enumerate(words.words)]
        yield words.with_words(changed), "all numbers"


def value_of(word: str) -> int | None:
    """What a word counts, from 0 to 99; None for words that are no such number."""
    if word.isascii() and word.isdecimal() and len(word) <= 2:
        return int(word)
    return _VALUES.get(word.lower())
