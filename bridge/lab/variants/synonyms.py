"""Synonyms from WordNet (Miller 1995), through nltk if it is installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bridge.errors import MissingDependencyError
from bridge.lab.variants.variant import Settings
from bridge.lab.variants.words import SMALL_WORDS, split_words

_HOW = "pip install nltk, then python -m nltk.downloader wordnet; or leave 'synonym' out."


def synonyms(prompt: str, settings: Settings) -> Iterator[tuple[str, str]]:
    """Each word's synonyms in its most frequent senses, most frequent first.

    Raises MissingDependencyError without nltk or its WordNet.
    """
    wordnet = _wordnet()
    words = split_words(prompt)
    for at, word in enumerate(words.words):
        if word.lower() in SMALL_WORDS:
            continue
        found: dict[str, None] = {}
        for sense in wordnet.synsets(word.lower()):
            for name in sense.lemma_names():
                text = name.replace("_", " ")
                if text.lower() != word.lower():
                    found.setdefault(text)
        for text in list(found)[: settings.count]:
            yield words.replaced(at, text), f"{word} → {text}"


def check_wordnet(settings: Settings) -> None:
    """Raise MissingDependencyError unless WordNet can be read."""
    _wordnet()


def _wordnet() -> Any:
    try:
        from nltk.corpus import wordnet
    except ImportError as error:
        raise MissingDependencyError(f"Synonyms need nltk, which is not here: {_HOW}") from error
    try:
        wordnet.ensure_loaded()
    except (LookupError, OSError) as error:
        raise MissingDependencyError(f"nltk has no WordNet here: {_HOW}") from error
    return wordnet
