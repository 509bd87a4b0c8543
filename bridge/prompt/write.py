"""Flat weighted text as each dialect writes it, everything else escaped.

A window is a list of runs: texts, each with its weight. Not every text can be written in every
dialect (compel cannot weigh ``c++``), so a caller that must know reads the result back, as
``translate`` does. Weights are written to ten digits, without an exponent, which A1111 lacks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import TypeAlias

from bridge.prompt.dialects.a1111_edits import part_weight
from bridge.prompt.dialects.compel_words import Words

Window: TypeAlias = Sequence[tuple[str, float]]

_A1111_SPECIAL = re.compile(r"[\\()\[\]]|\bBREAK\b|\bAND\b")
_COMFY_SPECIAL = re.compile(r"[()]")
_COMPEL_SPECIAL = re.compile(r'[()"]')


def write_plain(windows: Iterable[Window]) -> str:
    """The text alone, a space between windows."""
    return " ".join("".join(text for text, _ in window) for window in windows)


def write_a1111(parts: Sequence[tuple[Sequence[Window], float]]) -> str:
    """Parts of windows, each part with its weight: ``a BREAK (b:1.2) AND c :0.5``."""
    written = []
    for windows, weight in parts:
        text = " BREAK ".join("".join(map(_a1111_run, window)) for window in windows)
        # Text that ends like a part's weight needs one after it to be text.
        if weight != 1.0 or part_weight(text, 0, len(text)) is not None:
            text = f"{text} :{number(weight)}"
        written.append(text)
    return " AND ".join(written)


def write_comfy(windows: Iterable[Window]) -> str:
    """Runs as ``(text:weight)``, a space between windows."""
    return " ".join("".join(map(_comfy_run, window)) for window in windows)


def write_compel(window: Window) -> str:
    """One prompt: words, and ``(words)weight``."""
    return " ".join(piece for run in window for piece in _compel_run(*run))


def write_compel_and(prompts: Sequence[tuple[Window, float]]) -> str:
    """Several prompts: ``("a", "b").and(0.5, 1)``."""
    quoted = []
    for window, _ in prompts:
        text = write_compel(window)
        # A backslash at the end would escape the quote.
        quoted.append(f'"{text} "' if text.endswith("\\") else f'"{text}"')
    weights = [number(weight) for _, weight in prompts]
    shown = "" if set(weights) == {"1"} else ", ".join(weights)
    return f"({', '.join(quoted)}).and({shown})"


def number(value: float) -> str:
    """A weight to ten digits, without an exponent: ``1.21``."""
    return f"{Decimal(f'{value:.10g}'):f}"


def _a1111_run(run: tuple[str, float]) -> str:
    # A lone backslash is dropped, so that one in a word keeps it from being BREAK or AND.
    text = _A1111_SPECIAL.sub(
        lambda m: f"{m.group()[0]}\\{m.group()[1:]}" if len(m.group()) > 1 else f"\\{m.group()}",
        run[0],
    )
    shown = number(run[1])
    return text if shown == "1" else f"({text}:{shown})"


def _comfy_run(run: tuple[str, float]) -> str:
    text = _COMFY_SPECIAL.sub(r"\\\g<0>", run[0])
    shown = number(run[1])
    # A backslash at the end would escape the next bracket.
    return text if shown == "1" and not text.endswith("\\") else f"({text}:{shown})"


def _compel_run(text: str, weight: float) -> Iterable[str]:
    """The words of a run; those that brackets can hold are in brackets if they have a weight."""
    shown = number(max(weight, 0.0))
    held: list[str] = []
    for word in text.split():
        escaped = _COMPEL_SPECIAL.sub(r"\\\g<0>", word)
        if shown != "1" and _fits_brackets(escaped):
            held.append(escaped)
            continue
        if held:
            yield f"({' '.join(held)}){shown}"
            held = []
        yield from _loose(escaped)
    if held:
        yield f"({' '.join(held)}){shown}"


def _loose(word: str) -> Iterable[str]:
    """A word at weight 1: signs behind its first part would weigh that, so they stand apart."""
    end = Words(word, 0, frozenset()).word(0)
    if 0 < end < len(word) and word[end] in "+-":
        return word[:end], word[end:]
    return (word,)


def _fits_brackets(word: str) -> bool:
    """Whether compel reads a word inside brackets as the text that it is."""
    words = Words(word, 0, frozenset())
    at = 0
    while at < len(word):
        end = words.word(at)
        if end > at and word[end : end + 1] in ("+", "-"):
            return False
        if end == at and word[at] not in ",.":
            return False
        at = max(end, at + 1)
    return True
