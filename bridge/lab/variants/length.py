"""Less of a prompt, and more of the same."""

from __future__ import annotations

from collections.abc import Iterator

from bridge.lab.variants.variant import Settings
from bridge.lab.variants.words import SMALL_WORDS, split_words

_MOST = 8


def truncation(prompt: str, settings: Settings) -> Iterator[tuple[str, str]]:
    """The first words only, up to eight lengths spread over the prompt; and its last half."""
    words = split_words(prompt)
    count, spans = len(words.words), words.spans()
    if count < 2:
        return
    lengths = sorted({max(1, round(count * i / _MOST)) for i in range(1, _MOST)} - {count})
    for length in lengths:
        yield prompt[: spans[length - 1][1]], f"first {length} of {count} words"
    yield prompt[spans[count // 2][0] :], f"last {count - count // 2} of {count} words"


def repetition(prompt: str, settings: Settings) -> Iterator[tuple[str, str]]:
    """The whole twice and three times, and each word that names something twice."""
    text = prompt.strip()
    if not text:
        return
    yield f"{text}, {text}", "twice"
    yield f"{text}, {text}, {text}", "three times"
    words = split_words(prompt)
    named = [i for i, word in enumerate(words.words) if word.lower() not in SMALL_WORDS]
    for at in named[:_MOST]:
        word = words.words[at]
        yield words.replaced(at, f"{word} {word}"), f"{word} twice"
