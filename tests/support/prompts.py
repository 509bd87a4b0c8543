"""Texts that are hard to tokenize, and any text at all."""

from __future__ import annotations

from hypothesis import strategies as st

from bridge.prompt import Prompt, parse

# Any text that a person can hand over: no surrogates (they are refused), no NUL (refused too).
TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=120)

HARD = [
    "",
    "   ",
    "two red apples left of a cat",
    "Two  RED\tapples,\n\n left OF a CAT",
    "e\u0301 \u212b İstanbul ﬁ ß ǅ",
    "🎈👩‍👩‍👧 🇳🇴 ☺️",
    "مرحبا بالعالم two שלום",
    "1234 'S we'll <|endoftext|> a <|startoftext|>",
    "cat " * 500,
    "🎈" * 90,
    "\x85\u3000\x1c a",
]


def plain(text: str) -> Prompt:
    """The text as it is, in which no character has a meaning of its own."""
    return parse(text, "plain")
