"""A prompt as words with what stands between them, so that a change keeps the rest as it was."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# A word keeps its inner apostrophes and hyphens; signs at its ends are punctuation.
_WORD = re.compile(r"\w+(?:['’-]\w+)*")

ARTICLES = frozenset({"a", "an", "the"})
_SMALL = (
    "of in on at to by with without and or from for into over under above below near behind "
    "left right between is are no not"
)
SMALL_WORDS = ARTICLES | frozenset(_SMALL.split())
"""Words that name nothing by themselves."""

# Colours, sizes, materials, patterns, states: what binds to a noun in prompts.
_BINDING = (
    "red orange yellow green blue purple violet pink brown black white grey gray golden gold "
    "silver cyan magenta teal turquoise beige crimson scarlet small big large tiny huge giant "
    "little tall short long wide narrow thick thin wooden metal metallic plastic glass stone "
    "leather paper woolen cotton ceramic striped spotted dotted plain checkered furry fluffy "
    "smooth rough shiny matte old new young ancient modern rusty broken wet dry hot cold happy "
    "sad angry sleepy round square oval triangular flat fresh rotten bright dark pale"
)
ADJECTIVES = frozenset(_BINDING.split())
"""Adjectives that ``adjective-swap`` knows."""

_TO_NINETEEN = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_UNITS = _TO_NINETEEN.split()
NUMBERS = (
    *_UNITS,
    *(f"{ten}-{unit}" if i else ten for ten in _TENS.split() for i, unit in enumerate(_UNITS[:10])),
)
"""The numbers from 0 to 99 in words."""
_VALUES = {word: value for value, word in enumerate(NUMBERS)}


@dataclass(frozen=True)
class SplitText:
    """``gaps[0] words[0] gaps[1] words[1] ... gaps[n]`` is the text."""

    words: tuple[str, ...]
    gaps: tuple[str, ...]

    @property
    def text(self) -> str:
        """The text again."""
        pairs = zip(self.gaps, self.words, strict=False)
        return "".join(f"{gap}{word}" for gap, word in pairs) + self.gaps[-1]

    def with_words(self, words: Sequence[str]) -> str:
        """The text with other words in the same places."""
        return SplitText(tuple(words), self.gaps).text

    def replaced(self, at: int, word: str) -> str:
        """The text with one word changed."""
        return self.with_words([*self.words[:at], word, *self.words[at + 1 :]])

    def without(self, at: int) -> str:
        """The text without one word and one of the two gaps around it."""
        left, right = self.gaps[at], self.gaps[at + 1]
        if at == len(self.words) - 1:
            kept = right.strip() and right
        elif at == 0:
            kept = left
        else:  # what says more than a blank is kept: the comma of "a cat, a dog"
            kept = max(left, right, key=lambda gap: len(gap.strip()))
        gaps = (*self.gaps[:at], kept, *self.gaps[at + 2 :])
        return SplitText((*self.words[:at], *self.words[at + 1 :]), gaps).text.strip()

    def spans(self) -> tuple[tuple[int, int], ...]:
        """Where each word stands in the text."""
        found, at = [], 0
        for gap, word in zip(self.gaps, self.words, strict=False):
            at += len(gap)
            found.append((at, at + len(word)))
            at += len(word)
        return tuple(found)


def split_words(text: str) -> SplitText:
    """The words of a text and the gaps around them."""
    found = list(_WORD.finditer(text))
    ends = [0, *(match.end() for match in found)]
    starts = [*(match.start() for match in found), len(text)]
    gaps = tuple(text[a:b] for a, b in zip(ends, starts, strict=True))
    return SplitText(tuple(match.group() for match in found), gaps)


def core_of(prompt: str) -> str:
    """What a prompt is a picture of: "a photo of a cat" and "the cat." are "cat"."""
    lead = r"(?:an?|the)\s+(?:\w+\s+)?(?:photo|picture|image|drawing|painting|icon)\s+of\s+"
    core = re.sub(f"^{lead}", "", prompt.strip(), flags=re.IGNORECASE)
    core = re.sub(r"^(?:an?|the)\s+", "", core, flags=re.IGNORECASE)
    return core.rstrip(" .!?,;")


def article_for(word: str) -> str:
    """The indefinite article by its first letter, right for all but a few words."""
    return "an" if word[:1].lower() in set("aeiou") else "a"


def value_of(word: str) -> int | None:
    """What a word counts, from 0 to 99; None for other words."""
    if word.isascii() and word.isdecimal() and len(word) <= 2:
        return int(word)
    return _VALUES.get(word.lower())
