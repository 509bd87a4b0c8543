"""Emphasis sweeps: each word at each weight, as every prompt dialect writes it."""

from __future__ import annotations

from collections.abc import Iterator

from bridge.errors import PromptError
from bridge.lab.variants.variant import Settings
from bridge.lab.variants.words import SMALL_WORDS, split_words
from bridge.prompt import DIALECTS, parse
from bridge.prompt.prompt import refuse_tags
from bridge.prompt.syntax import Runs

_MOST = 4


def emphasis(prompt: str, settings: Settings) -> Iterator[tuple[str, str, str]]:
    """The first few words that name something, each at each of ``settings.weights``.

    What is written is read back: a text that its dialect would read in another way (compel cannot
    weigh "c++") is left out.
    """
    words = split_words(prompt)
    chosen = [i for i, word in enumerate(words.words) if word.lower() not in SMALL_WORDS]
    spans = words.spans()
    for at in chosen[:_MOST]:
        start, end = spans[at]
        for weight in settings.weights:
            runs = [(prompt[:start], 1.0), (prompt[start:end], weight), (prompt[end:], 1.0)]
            window = [run for run in runs if run[0]]
            for dialect, text in _written(window):
                if _reads_back(text, dialect, window):
                    yield text, f"{words.words[at]} × {weight:g}, {dialect}", dialect


def _written(window: Runs) -> Iterator[tuple[str, str]]:
    """The window as each dialect that has weights writes it."""
    for name, dialect in DIALECTS.items():
        if dialect.has_weights:
            yield name, dialect.write([([window], 1.0)], "one")


def _reads_back(text: str, dialect: str, window: Runs) -> bool:
    """Whether the dialect reads the same characters at the same weights; blanks do not count."""
    try:
        refuse_tags(text, dialect)
        spans = parse(text, dialect).spans
    except PromptError:
        return False
    read = [(span.text, span.weight) for span in spans]
    return not any(span.breaks for span in spans) and _characters(read) == _characters(window)


def _characters(runs: Runs) -> list[tuple[str, float]]:
    return [(c, round(weight, 6)) for text, weight in runs for c in text if not c.isspace()]
