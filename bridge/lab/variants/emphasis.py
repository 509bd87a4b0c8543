"""Emphasis sweeps: each word at each weight, as every prompt dialect writes it."""

from __future__ import annotations

from collections.abc import Iterator

from bridge.errors import PromptError
from bridge.lab.variants.variant import Settings
from bridge.lab.variants.words import SMALL_WORDS, split_words
from bridge.prompt import parse
from bridge.prompt.loras import refuse_tags
from bridge.prompt.write import Window, write_a1111, write_comfy, write_compel

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


def _written(window: Window) -> Iterator[tuple[str, str]]:
    yield "a1111", write_a1111([([window], 1.0)])
    yield "comfy", write_comfy([window])
    yield "compel", write_compel(window)


def _reads_back(text: str, dialect: str, window: Window) -> bool:
    """Whether the dialect reads the same characters at the same weights; blanks do not count."""
    try:
        if dialect == "a1111":
            refuse_tags(text)
        spans = parse(text, dialect).spans
    except PromptError:
        return False
    read = [(span.text, span.weight) for span in spans]
    return not any(span.breaks for span in spans) and _characters(read) == _characters(window)


def _characters(runs: Window) -> list[tuple[str, float]]:
    return [(c, round(weight, 6)) for text, weight in runs for c in text if not c.isspace()]
