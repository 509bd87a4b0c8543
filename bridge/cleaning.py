"""How tools mend a text before its tokenizer reads it, and where the mended text came from.

================  ====================================================================
``none``          not at all: transformers 5, diffusers, ComfyUI, compel
``ftfy``          ftfy (broken encodings, quotes, ligatures, widths), white space, small
                  letters: the CLIPTokenizer of transformers 4 where ftfy is installed,
                  as it is beside the webui
``whitespace``    ftfy, HTML character references (twice), white space: open_clip beside
                  a tokenizer of transformers
``lower``         and small letters: open_clip and OpenAI's CLIP
``canonicalize``  and without ASCII punctuation: SigLIP, CLIPA
================  ====================================================================

The last three are the values of ``clean`` in open_clip's ``tokenizer_kwargs`` (open_clip 3.3).
"""

from __future__ import annotations

import html
import re
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Literal, get_args

Origins = list[tuple[int, int]]
"""For each character of a text, the span of another text that it stands for."""

_WORD = re.compile(r"\S+")
_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))
# Letters times letters that are compared one by one; in longer stretches each stands for all.
_COMPARED = 200_000


def _ftfy(text: str) -> str:
    import ftfy

    return ftfy.fix_text(text)


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _whitespace(text: str) -> str:
    return _spaced(html.unescape(html.unescape(_ftfy(text))))


Cleaning = Literal["none", "ftfy", "whitespace", "lower", "canonicalize"]
_CLEANERS: dict[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "ftfy": lambda text: _spaced(_ftfy(text)).lower(),
    "whitespace": _whitespace,
    "lower": lambda text: _whitespace(text).lower(),
    "canonicalize": lambda text: _spaced(_whitespace(text).translate(_PUNCTUATION).lower()),
}
CLEANINGS = get_args(Cleaning)
"""The names of the table above."""
UNCHANGED = {
    way: re.compile(f"(?:{letter}+(?: {letter}+)*)?")
    for way in CLEANINGS
    for letter in ("[a-z0-9]" if way == "canonicalize" else r"[!-%'-@\[-~]",)
}
"""For each way the texts that it surely leaves as they are: small ASCII letters, without ``&``,
one space between words."""


@dataclass(frozen=True)
class Cleaned:
    """A text as a tokenizer is given it.

    Attributes:
        text: the cleaned text.
        origins: for each of its characters the span of the text as it was written.
        changes: what was written and what is read instead, where more changed than white space
            and the case of letters.
    """

    text: str
    origins: Origins
    changes: tuple[tuple[str, str], ...] = ()


def clean(text: str, how: str) -> Cleaned:
    """Clean a text by a way of `CLEANINGS`."""
    after = _CLEANERS[how](text)
    if after == text:
        return Cleaned(text, [(at, at + 1) for at in range(len(text))])
    places: Origins = [(-1, -1)] * len(after)
    changes = []
    for (a, b), (c, d), same in _stretches(text, after):
        if not same:
            changes.append((text[a:b], after[c:d]))
        places[c:d] = [(a + start, a + end) for start, end in _places(text[a:b], after[c:d])]
    return Cleaned(after, _with_gaps(places, len(text)), tuple(changes))


def clean_between(text: str, origins: Origins, how: str, kept: re.Pattern[str] | None) -> Cleaned:
    """Clean a text with places of its own, but for the words that ``kept`` finds in it."""
    inner = (at for match in kept.finditer(text) for at in match.span()) if kept else ()
    texts: list[str] = []
    places: Origins = []
    changes: list[tuple[str, str]] = []
    for number, (a, b) in enumerate(pairwise([0, *inner, len(text)])):
        stretch = clean(text[a:b], "none" if number % 2 else how)
        if not stretch.text:
            continue
        if texts:
            places.append(origins[a])
        texts.append(stretch.text)
        places += [
            (origins[a + start][0], origins[a + end - 1][1]) for start, end in stretch.origins
        ]
        changes += stretch.changes
    return Cleaned(" ".join(texts), places, tuple(changes))


def lowered(text: str, origins: Origins) -> tuple[str, Origins]:
    """``text`` in small letters, and where each of them came from (``İ`` becomes two)."""
    small = text.lower()
    if len(small) == len(text):
        return small, origins
    # One letter depends on its neighbours (the final sigma), but not in how many it becomes.
    return small, [
        place for letter, place in zip(text, origins, strict=True) for _ in letter.lower()
    ]


_Bounds = tuple[int, int]


def _stretches(before: str, after: str) -> Iterator[tuple[_Bounds, _Bounds, bool]]:
    """Where the words of both stand: pairs of equal words, and of runs that differ."""
    old, new = ([match.span() for match in _WORD.finditer(text)] for text in (before, after))
    matcher = SequenceMatcher(
        None, [before[a:b].lower() for a, b in old], [after[a:b].lower() for a, b in new]
    )
    for kind, i, j, k, m in matcher.get_opcodes():
        if kind == "equal":
            yield from ((one, two, True) for one, two in zip(old[i:j], new[k:m], strict=True))
        else:
            yield _around(old, i, j), _around(new, k, m), False


def _around(words: list[_Bounds], first: int, last: int) -> _Bounds:
    """From a run's first word to its last; where it is empty, the end of the word before."""
    if first < last:
        return words[first][0], words[last - 1][1]
    end = words[first - 1][1] if first else 0
    return end, end


def _places(before: str, after: str) -> Origins:
    """For each letter of ``after`` the letters of ``before`` that it stands for."""
    if not after or not before or len(before) * len(after) > _COMPARED:
        return [(0, len(before))] * len(after)
    if len(before) == len(after) and before.lower() == after.lower():
        return [(at, at + 1) for at in range(len(after))]
    places: Origins = []
    letters = [letter.lower() for letter in before]
    for kind, i, j, k, m in SequenceMatcher(None, letters, after, autojunk=False).get_opcodes():
        if kind == "delete" and places:  # "&amp;" is one letter, not one and four more
            places[-1] = (places[-1][0], i + len(before[i:j].rstrip()))
        elif j - i == m - k:
            places += [(at, at + 1) for at in range(i, j)]
        else:
            places += [(min(i, len(before) - 1), max(j, 1))] * (m - k)
    return places


def _with_gaps(places: Origins, length: int) -> Origins:
    """The places with those of the white space between words, which stands for what was there."""
    known = [-1, *(at for at, place in enumerate(places) if place != (-1, -1)), len(places)]
    for left, right in pairwise(known):
        start = places[left][1] if left >= 0 else 0
        end = places[right][0] if right < len(places) else length
        places[left + 1 : right] = [(start, end)] * (right - left - 1)
    # Where nothing was, the letter beside it stands for what was put there.
    starts = [min(start, length - 1) for start, _ in places]
    return [(a, max(end, a + 1)) for a, (_, end) in zip(starts, places, strict=True)]
