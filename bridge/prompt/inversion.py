"""Textual-inversion words that stand for several vectors, spelt out as diffusers does.

A concept of three vectors is loaded as the added tokens ``<cat>``, ``<cat>_1``, ``<cat>_2``;
where a prompt says ``<cat>`` the model must be given all three
(diffusers, ``TextualInversionLoaderMixin.maybe_convert_prompt``).
"""

from __future__ import annotations

import copy
import re
from functools import lru_cache
from typing import Any

from bridge.errors import OptionError

Origins = list[tuple[int, int]]
"""For each character of a spelt-out text, the source span that it stands for."""


def spell_out(text: str, tokenizer: Any) -> tuple[str, Origins | None]:
    """``text`` with multi-vector words spelt out, and where each character came from.

    The second value is None where nothing was replaced, which is the usual case.
    """
    vectors = _vectors(tokenizer)
    if not vectors:
        return text, None
    # Longest first, so that one concept's name inside another's does not win. CLIP's tokenizer
    # reads <Cat> as <cat>, of which diffusers then gives the model the first vector alone.
    longest = sorted(vectors, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest)), re.IGNORECASE | re.ASCII)
    if pattern.search(text) is None:
        return text, None
    lower = {word.lower(): names for word, names in vectors.items()}
    pieces: list[str] = []
    origins: Origins = []
    at = 0
    for match in pattern.finditer(text):
        pieces.append(text[at : match.start()])
        origins += [(i, i + 1) for i in range(at, match.start())]
        words = " ".join(vectors.get(match.group()) or lower[match.group().lower()])
        pieces.append(words)
        origins += [match.span()] * len(words)
        at = match.end()
    pieces.append(text[at:])
    origins += [(i, i + 1) for i in range(at, len(text))]
    return "".join(pieces), origins


def with_words(tokenizer: Any, words: tuple[tuple[str, int], ...]) -> tuple[Any, tuple[int, ...]]:
    """A copy of a tokenizer that knows more words, and the ids of their vectors, in order.

    Args:
        tokenizer: a fast transformers tokenizer; it stays as it is.
        words: each with its number of vectors; ``("<cat>", 3)`` becomes the added tokens
            ``<cat>``, ``<cat>_1`` and ``<cat>_2``, as in diffusers.

    Raises:
        OptionError: a word that the tokenizer has as a token of its own, or that clashes with
            the vectors of another.
    """
    return _with_words(tokenizer, words, len(tokenizer))


# Copying CLIP's vocabulary takes half a second. ``size`` is in the key because a live pipeline's
# tokenizer may gain words between two calls.
@lru_cache(maxsize=4)
def _with_words(
    tokenizer: Any, words: tuple[tuple[str, int], ...], size: int
) -> tuple[Any, tuple[int, ...]]:
    taken = set(tokenizer.get_vocab())
    for word, count in words:
        names = vector_names(word, count)
        # The name after the last would be spelt out as one vector more.
        clash = next((n for n in (*names, f"{word}_{count}") if n in taken), None)
        if clash is not None:
            raise OptionError(
                f"The textual inversion {word!r} needs the word {clash!r}, which the tokenizer "
                "or another textual inversion has already; give it another word, as in "
                'textual_inversions={"<my-word>": path}.'
            )
        taken.update(names)
    copied = copy.deepcopy(tokenizer)
    names = [name for word, count in words for name in vector_names(word, count)]
    copied.add_tokens(names)
    return copied, tuple(copied.convert_tokens_to_ids(names))


def vector_names(word: str, count: int) -> list[str]:
    """The added tokens of a concept of ``count`` vectors."""
    return [word, *(f"{word}_{i}" for i in range(1, count))]


def _vectors(tokenizer: Any) -> dict[str, list[str]]:
    """Concepts of more than one vector and the added tokens that make them up."""
    added = tokenizer.added_tokens_encoder
    found: dict[str, list[str]] = {}
    for word in added:
        if f"{word}_1" in added:
            words = [word]
            while f"{word}_{len(words)}" in added:
                words.append(f"{word}_{len(words)}")
            found[word] = words
    return found
