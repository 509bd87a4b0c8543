"""The table of operations, and ``vary``, which runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, cast

from bridge.checks import keywords, nearest
from bridge.errors import OptionError
from bridge.lab.variants.languages import check_names, languages
from bridge.lab.variants.rewrites import (
    adjective_swaps,
    articles,
    case,
    check_wordnet,
    emphasis,
    negation,
    numbers,
    punctuation,
    repetition,
    synonyms,
    templates,
    truncation,
    typos,
    word_order,
)
from bridge.lab.variants.variant import ORIGINAL, Operation, Settings, Variant
from bridge.prompt import check_text

OperationName = Literal[
    "template",
    "article",
    "punctuation",
    "case",
    "word-order",
    "negation",
    "number",
    "adjective-swap",
    "emphasis",
    "truncation",
    "repetition",
    "typo",
    "synonym",
    "language",
]
OPERATIONS: dict[OperationName, Operation] = {
    "template": Operation("the prompt in other frames: a photo of, a drawing of ...", templates),
    "article": Operation("a, an, the, and none", articles),
    "punctuation": Operation("signs at the end, commas, quotes", punctuation),
    "case": Operation("lower, UPPER, Title, Sentence", case),
    "word-order": Operation("reversed, exchanged, shuffled", word_order),
    "negation": Operation("no, without, not", negation),
    "number": Operation("two and 2, and their neighbours", numbers),
    "adjective-swap": Operation("a red cat and a blue dog, and the reverse", adjective_swaps),
    "emphasis": Operation("each word at each weight, in every dialect", emphasis),
    "truncation": Operation("the first words only", truncation),
    "repetition": Operation("the whole or a word twice", repetition),
    "typo": Operation("one slip of the finger", typos),
    "synonym": Operation("WordNet's; needs nltk", synonyms, check_wordnet, usual=False),
    "language": Operation("other languages, 27 of them known", languages, check_names, usual=False),
}
"""The operations by name. What needs nothing beyond bridge is ``usual``."""

USUAL = tuple(name for name, operation in OPERATIONS.items() if operation.usual)
"""Those that ``bridge.study`` makes where none are named."""
_DEFAULT = Settings()


def check_operations(names: Sequence[OperationName], settings: Settings) -> None:
    """Refuse what ``vary`` could not run.

    Raises:
        OptionError: no operations at all, an unknown one (the nearest are named), a language
            without names.
        MissingDependencyError: "synonym" without nltk's WordNet.
    """
    if not names:
        raise OptionError(
            f"variants is empty, so there is nothing to study; name some of {', '.join(USUAL)}, "
            "or give texts of your own."
        )
    for name in names:
        if name not in OPERATIONS:
            near = nearest(str(name), OPERATIONS, cutoff=0.5)
            hint = f"did you mean {near}? " if near else ""
            raise OptionError(
                f"No operation {name!r}: {hint}There are {', '.join(OPERATIONS)}. "
                'For texts of your own: variants={"mine": [...]}.'
            )
        OPERATIONS[name].check(settings)


@keywords
def vary(
    prompt: str, operations: Sequence[OperationName] = USUAL, settings: Settings = _DEFAULT
) -> list[Variant]:
    """The variants of a prompt, in the order of ``operations``.

    None is the prompt itself, and none occurs twice in one operation. Two operations may give one
    text; it is then encoded once. An operation that finds nothing to change gives none.

    Raises:
        PromptError: a prompt that no tokenizer can read.
        OptionError: as ``check_operations``; for "language", a prompt without a name known.
        MissingDependencyError: as ``check_operations``.
    """
    check_text(prompt)
    check_operations(operations, settings)
    found: dict[Variant, None] = {}
    for name in operations:
        seen: set[tuple[str, Any]] = {(prompt, "plain")}
        for text, detail, *dialect in OPERATIONS[name].make(prompt, settings):
            key: tuple[str, Any] = (text, dialect[0] if dialect else "plain")
            if key not in seen and text.strip():
                seen.add(key)
                found[Variant(name, text, detail, key[1])] = None
    return list(found)


@keywords
def own(texts: Sequence[str], label: str = "own") -> list[Variant]:
    """The user's own phrasings as variants, without repeats.

    Raises:
        PromptError: a text that no tokenizer can read.
        OptionError: no texts, or a single string in place of a list.
    """
    if isinstance(texts, str) or not texts:
        raise OptionError(f"{label!r} must be a list of at least one text, not {texts!r}.")
    checked = [check_text(text, f"{label} {i}") for i, text in enumerate(texts)]
    return [Variant(label, text) for text in dict.fromkeys(checked)]


def original(prompt: str) -> Variant:
    """The prompt itself, which all others are compared with."""
    return Variant(ORIGINAL, check_text(prompt))


Variants: TypeAlias = (
    OperationName | Sequence[OperationName | Variant] | Mapping[str, Sequence[str]]
)
"""Names of operations, ready variants, or labels with texts of the user's own."""


def read_variants(variants: object, prompt: str, settings: Settings) -> list[Variant]:
    """What a caller may write for ``variants``, as the variants of one prompt.

    Args:
        variants: None for the usual operations; a name; a list of names and ``Variant``s; or a
            mapping from labels to lists of own texts.
        prompt: the prompt.
        settings: for the operations.

    Raises:
        OptionError, PromptError, MissingDependencyError: as ``vary`` and ``own``.
    """
    if variants is None:
        return vary(prompt, USUAL, settings)
    if isinstance(variants, str):
        return vary(prompt, [cast(OperationName, variants)], settings)
    if isinstance(variants, Mapping) and variants:
        return [each for label, texts in variants.items() for each in own(texts, str(label))]
    if not isinstance(variants, Sequence):
        raise OptionError(
            f"variants must be names of operations, Variants or a mapping of own texts, not "
            f"{type(variants).__name__}."
        )
    names: list[Any] = [each for each in variants if not isinstance(each, Variant)]
    ready = [each for each in variants if isinstance(each, Variant)]
    for each in ready:
        check_text(each.text, "variant")
    made = vary(prompt, names, settings) if names or not ready else []
    return [*made, *dict.fromkeys(ready)]
