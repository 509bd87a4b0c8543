"""The leave-one-out effect of a word: how far the pooled state moves when it is gone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bridge.lab.measures.drift import cosines
from bridge.lab.variants.words import split_words


def texts_without(prompt: str) -> list[str]:
    """The prompt without its first word, without its second, and so on."""
    words = split_words(prompt)
    return [words.without(at) for at in range(len(words.words))]


def effects(whole: Tensor, without: Tensor, mean: Tensor | None = None) -> Sequence[float]:
    """``1 - cosine`` for each text that lacks a word.

    Args:
        whole: ``(D,)`` pooled state of the prompt.
        without: ``(N, D)`` those of the texts.
        mean: ``(D,)``, taken off first.
    """
    return (1 - cosines(whole.expand_as(without), without, mean)).tolist()
