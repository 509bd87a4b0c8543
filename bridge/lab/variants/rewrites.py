"""The operations on a prompt's own words: each takes a prompt and the settings, and gives its
phrasings with what was done, in a few words."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from itertools import combinations
from typing import Any

from bridge.errors import MissingDependencyError, PromptError
from bridge.lab.variants.variant import Settings
from bridge.lab.variants.words import (
    ADJECTIVES,
    ARTICLES,
    NUMBERS,
    SMALL_WORDS,
    article_for,
    core_of,
    split_words,
    value_of,
)
from bridge.prompt import DIALECTS, parse
from bridge.prompt.dialect import DialectName
from bridge.prompt.prompt import refuse_tags
from bridge.prompt.syntax import Runs

# Past this an operation says nothing new, and a prompt of a thousand words would flood.
_MOST_SWAPS, _MOST_PAIRS, _MOST_LENGTHS, _MOST_WORDS = 8, 10, 8, 4

# ---------------------------------------------------------------- frames

TEMPLATES = (
    "itap of a [].",
    "a bad photo of the [].",
    "a origami [].",
    "a photo of the large [].",
    "a [] in a video game.",
    "art of the [].",
    "a photo of the small [].",
    "a photo of {}",
    "a picture of {}",
    "a drawing of {}",
    "there is {} in the picture",
    "{}, highly detailed",
    "{}, simple background",
)
"""``[]`` takes the core without an article, ``{}`` with the one that the prompt has. The first
seven are those that OpenAI's CLIP notebook found to serve zero-shot ImageNet best (the
"Prompt_Engineering_for_ImageNet" notebook of github.com/openai/CLIP); the others are frames that
people write for pictures."""

_OF_ONE = ("a []", "a origami []")


def templates(prompt: str, settings: Settings) -> Iterator[tuple[str, str]]:
    """The prompt in each of ``TEMPLATES``; of several things, in those that are not of one."""
    core = core_of(prompt)
    if not core:
        return
    several = value_of(core.split()[0]) not in (None, 1)
    whole = _with_article(core, prompt)
    for template in TEMPLATES:
        if several and any(frame in template for frame in _OF_ONE):
            continue
        # Not str.format: a prompt may hold braces of its own. A template has one place.
        yield (
            template.replace("[]", core) if "[]" in template else template.replace("{}", whole),
            template.replace("[]", "{}"),
        )


def _with_article(core: str, prompt: str) -> str:
    """The core behind the article that the prompt has for it."""
    before = prompt[: prompt.rfind(core)].split()
    article = before[-1].lower() if before else ""
    if article not in ARTICLES:
        return core
    return f"{article if article == 'the' else article_for(core)} {core}"


# ---------------------------------------------------------------- articles, punctuation, case


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
    words = split_words(prompt)
    yield words.with_words([word.capitalize() for word in words.words]), "title"
    yield prompt[:1].upper() + prompt[1:], "sentence"


# ---------------------------------------------------------------- order


def word_order(prompt: str, settings: Settings) -> Iterator[tuple[str, str]]:
    """Reversed, halves exchanged, neighbours swapped, and shuffles by the seed.

    Words keep the gaps of their new places, so the text has its own blanks and commas still.
    """
    words = split_words(prompt)
    order = words.words
    if len(order) < 2:
        return
    yield words.with_words(order[::-1]), "reversed"
    half = (len(order) + 1) // 2
    yield words.with_words(order[half:] + order[:half]), "halves exchanged"
    for at in range(min(len(order) - 1, _MOST_SWAPS)):
        swapped = [*order[:at], order[at + 1], order[at], *order[at + 2 :]]
        yield words.with_words(swapped), f"{order[at]} ↔ {order[at + 1]}"
    chance = settings.random("word-order", prompt)
    for number in range(settings.count):
        yield words.with_words(chance.sample(order, len(order))), f"shuffle {number + 1}"


def adjective_swaps(prompt: str, settings: Settings) -> Iterator[tuple[str, str]]:
    """Each pair of different adjectives exchanged: "a red cat and a blue dog" and the reverse.

    Adjectives are known by a list (``words.ADJECTIVES``); no grammar is guessed at.
    """
    words = split_words(prompt)
    at = [i for i, word in enumerate(words.words) if word.lower() in ADJECTIVES]
    pairs = [
        (i, j)
        for i, j in combinations(at, 2)
        if words.words[i].lower() != words.words[j].lower()
        # Those of one noun ("a big red cat") bind alike.
        and not all(between in at for between in range(i, j))
    ]
    for i, j in pairs[:_MOST_PAIRS]:
        swapped = list(words.words)
        swapped[i], swapped[j] = swapped[j], swapped[i]
        yield words.with_words(swapped), f"{words.words[i]} ↔ {words.words[j]}"


# ---------------------------------------------------------------- negation and numbers

_WITH = re.compile(r"\bwith\b", re.IGNORECASE)
_AND = re.compile(r"\band\b", re.IGNORECASE)


def negation(prompt: str, settings: Settings) -> Iterator[tuple[str, str]]:
    """ "no", "without", "not" and "nothing but", of the whole and of its second half."""
    core = core_of(prompt)
    if not core:
        return
    yield f"no {core}", "no"
    yield f"without {core}", "without"
    yield f"not {prompt.strip()}", "not"
    yield f"a picture without {core}", "a picture without"
    yield f"nothing but {prompt.strip()}", "nothing but"
    for pattern, words in ((_WITH, ("without", "with no")), (_AND, ("but no", "without"))):
        found = pattern.search(prompt)
        if found is None:
            continue
        for word in words:
            text = pattern.sub(word, prompt, count=1)
            # "without a dog" is English, "but no a dog" is not.
            yield re.sub(r"\bno an? ", "no ", text), f"{found.group()} → {word}"


def numbers(prompt: str, settings: Settings) -> Iterator[tuple[str, str]]:
    """Each number in its other writing, alone and all together, and each one up or down by one."""
    words = split_words(prompt)
    other: dict[int, str] = {}
    for at, word in enumerate(words.words):
        value = value_of(word)
        if value is None:
            continue
        other[at] = NUMBERS[value] if word.isdecimal() else str(value)
        yield words.replaced(at, other[at]), f"{word} → {other[at]}"
        for near in (value - 1, value + 1):
            if 1 <= near < len(NUMBERS):
                text = str(near) if word.isdecimal() else NUMBERS[near]
                yield words.replaced(at, text), f"{word} → {text}"
    if len(other) > 1:
        changed = [other.get(at, word) for at, word in enumerate(words.words)]
        yield words.with_words(changed), "all numbers"


# ---------------------------------------------------------------- length


def truncation(prompt: str, settings: Settings) -> Iterator[tuple[str, str]]:
    """The first words only, up to eight lengths spread over the prompt; and its last half."""
    words = split_words(prompt)
    count, spans = len(words.words), words.spans()
    if count < 2:
        return
    lengths = {max(1, round(count * i / _MOST_LENGTHS)) for i in range(1, _MOST_LENGTHS)}
    for length in sorted(lengths - {count}):
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
    for at in named[:_MOST_LENGTHS]:
        word = words.words[at]
        yield words.replaced(at, f"{word} {word}"), f"{word} twice"


# ---------------------------------------------------------------- typing slips

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def typos(prompt: str, settings: Settings) -> Iterator[tuple[str, str]]:
    """One slip in one word each: two letters exchanged, one left out, doubled, or its neighbour
    on a QWERTY keyboard."""
    words = split_words(prompt)
    long = [i for i, word in enumerate(words.words) if len(word) > 2]
    if not long:
        return
    chance = settings.random("typo", prompt)
    for number in range(settings.count):
        at = chance.choice(long)
        slip = _SLIPS[number % len(_SLIPS)]
        word = slip(words.words[at], chance)
        yield words.replaced(at, word), f"{words.words[at]} → {word}"


def _exchange(word: str, chance: random.Random) -> str:
    at = chance.randrange(len(word) - 1)
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def _drop(word: str, chance: random.Random) -> str:
    at = chance.randrange(1, len(word))
    return word[:at] + word[at + 1 :]


def _double(word: str, chance: random.Random) -> str:
    at = chance.randrange(len(word))
    return word[:at] + word[at] + word[at:]


def _neighbour(word: str, chance: random.Random) -> str:
    at = chance.randrange(len(word))
    row = next((row for row in _ROWS if word[at].lower() in row), None)
    if row is None:  # no letter of that keyboard
        return _exchange(word, chance)
    place = row.index(word[at].lower())
    near = row[place - 1] if place else row[1]
    return word[:at] + near + word[at + 1 :]


_SLIPS = (_exchange, _drop, _double, _neighbour)

# ---------------------------------------------------------------- synonyms

_HOW = "pip install nltk, then python -m nltk.downloader wordnet; or leave 'synonym' out."


def synonyms(prompt: str, settings: Settings) -> Iterator[tuple[str, str]]:
    """Each word's WordNet synonyms (Miller 1995) in its most frequent senses, most frequent first.

    Raises:
        MissingDependencyError: without nltk or its WordNet.
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


# ---------------------------------------------------------------- emphasis


def emphasis(prompt: str, settings: Settings) -> Iterator[tuple[str, str, str]]:
    """The first few words that name something, each at each of ``settings.weights``.

    What is written is read back: a text that its dialect would read in another way (compel cannot
    weigh "c++") is left out.
    """
    words = split_words(prompt)
    chosen = [i for i, word in enumerate(words.words) if word.lower() not in SMALL_WORDS]
    spans = words.spans()
    for at in chosen[:_MOST_WORDS]:
        start, end = spans[at]
        for weight in settings.weights:
            runs = [(prompt[:start], 1.0), (prompt[start:end], weight), (prompt[end:], 1.0)]
            window = [run for run in runs if run[0]]
            for dialect, text in _written(window):
                if _reads_back(text, dialect, window):
                    yield text, f"{words.words[at]} × {weight:g}, {dialect}", dialect


def _written(window: Runs) -> Iterator[tuple[DialectName, str]]:
    """The window as each dialect that has weights writes it."""
    for dialect in DIALECTS.values():
        if dialect.has_weights:
            yield dialect.name, dialect.write([([window], 1.0)], "one")


def _reads_back(text: str, dialect: DialectName, window: Runs) -> bool:
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
