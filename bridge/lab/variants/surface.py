"""What a reader hardly sees: articles, punctuation, case."""

from __future__ import annotations

from collections.abc import Iterator

from bridge.lab.variants.variant import Settings
from bridge.lab.variants.words import ARTICLES, article_for, split_words


def articles(prompt: str, settings: Settings) -> Iterator[tuple[str, str]]:
    """Without articles, with "the" for them, with the indefinite one, with one put in front."""
    words = split_words(prompt)
    at = [i for i, word in enumerate(words.words) if word.lower() in ARTICLES]
    if not at:
        if words.words:
            yield f"{article_for(words.words[0])} {prompt.lstrip()}", "article in front"
            yield f"the {prompt.lstrip()}", "the in front"
        return
    kept = words
    for i in reversed(at):
        kept = split_words(kept.without(i))
    yield kept.text.strip(), "no articles"
    following = [*words.words[1:], ""]
    yield words.with_words(["the" if i in at else w for i, w in enumerate(words.words)]), "the"
    indefinite = [
        article_for(following[i]) if i in at else word for i, word in enumerate(words.words)
    ]
    yield words.with_words(indefinite), "a or an"


def punctuation(prompt: str, settings: Settings) -> Iterator[tuple[str, str]]:
    """A sign at the end, none at all, commas for small joints, quotes around."""
    bare = prompt.rstrip(" .!?,;")
    for sign in (".", "!", "?", ",", "..."):
        yield bare + sign, f"ends in {sign}"
    yield bare, "no sign at the end"
    words = split_words(prompt)
    yield " ".join(words.words), "words alone"
    yield ", ".join(words.words), "commas between words"
    yield f'"{bare}"', "in quotes"


def case(prompt: str, settings: Settings) -> Iterator[tuple[str, str]]:
    """Small, capital, title and sentence case."""
    yield prompt.lower(), "lower"
    yield prompt.upper(), "upper"
    yield (
        split_words(prompt).with_words([w.capitalize() for w in split_words(prompt).words]),
        ("title"),
    )
    yield prompt[:1].upper() + prompt[1:], "sentence"
