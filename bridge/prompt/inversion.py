"""Textual-inversion words that stand for several vectors, spelt out as diffusers does.

A concept of three vectors is loaded as the added tokens ``<cat>``, ``<cat>_1``, ``<cat>_2``;
where a prompt says ``<cat>`` the model must be given all three
(diffusers, ``TextualInversionLoaderMixin.maybe_convert_prompt``).
"""

from __future__ import annotations

import re
from typing import Any

Origins = list[tuple[int, int]]
"""For each character of a spelt-out text, the source span that it stands for."""


def spell_out(text: str, tokenizer: Any) -> tuple[str, Origins | None]:
    """``text`` with multi-vector words spelt out, and where each character came from.

    The second value is None where nothing was replaced, which is the usual case.
    """
    vectors = _vectors(tokenizer)
    present = [word for word in vectors if word in text]
    if not present:
        return text, None
    # Longest first, so that one concept's name inside another's does not win.
    pattern = re.compile("|".join(re.escape(w) for w in sorted(present, key=len, reverse=True)))
    pieces: list[str] = []
    origins: Origins = []
    at = 0
    for match in pattern.finditer(text):
        pieces.append(text[at : match.start()])
        origins += [(i, i + 1) for i in range(at, match.start())]
        words = " ".join(vectors[match.group()])
        pieces.append(words)
        origins += [match.span()] * len(words)
        at = match.end()
    pieces.append(text[at:])
    origins += [(i, i + 1) for i in range(at, len(text))]
    return "".join(pieces), origins


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
