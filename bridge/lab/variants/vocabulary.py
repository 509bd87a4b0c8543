"""What 320 things and their looks are called in 27 languages beside English.

``names.tsv.gz`` has the things' names, ``words.tsv`` the few other words of a caption, written by
hand: colours, sizes, counts, places, how they are put together. A cell may hold several forms,
parted by ``|``; the first is the one that is cited in a dictionary.

It is keyword-like language in its natural order without a grammar: nouns stay in their cited form,
adjectives take any of the forms listed, whatever the noun asks for ("zwei rote Katze"), cases and
articles are left out, and languages that count with classifiers count with the commonest one.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bridge.errors import OptionError

NAMES_FILE, WORDS_FILE = (Path(__file__).parent / name for name in ("names.tsv.gz", "words.tsv"))
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "gray", "pink")
SIZES = ("small", "big")
COUNT_WORDS = {1: "one", 2: "two", 3: "three", 4: "four"}
Forms = tuple[str, ...]


@dataclass(frozen=True)
class Words:
    """The words of a language; forms are alternatives, the first the one to cite.

    Attributes:
        code: of the language, such as "zh-hant".
        language: its English name.
        gap: what stands between words: a blank, or nothing.
        comma: what parts clauses.
        order: in which order "count", "size", "tint" and "name" are said.
        colours, sizes, counts: English word or number -> forms.
        conjunction, picture: "and"; "picture".
        background: a template of ``{c}``, the colour.
        left, right, top, bottom: where a thing is, said by itself.
        relations: "left" and "above" -> templates of ``{a}`` and ``{b}``; none where the language
            would have to inflect what it names.
    """

    code: str
    language: str
    gap: str
    comma: str
    order: tuple[str, ...]
    colours: dict[str, Forms]
    sizes: dict[str, Forms]
    counts: dict[int, Forms]
    conjunction: Forms
    picture: Forms
    background: Forms
    left: Forms
    right: Forms
    top: Forms
    bottom: Forms
    relations: dict[str, Forms]


def _table(file: Path) -> list[dict[str, str]]:
    data = file.read_bytes()
    text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode("utf-8")
    head, *rows = (line.split("\t") for line in text.splitlines())
    return [dict(zip(head, row, strict=True)) for row in rows]


def _words(row: dict[str, str]) -> Words:
    forms = {key: tuple(filter(None, cell.split("|"))) for key, cell in row.items()}
    return Words(
        code=row["code"],
        language=row["language"],
        gap=row["gap"],
        comma=row["comma"],
        order=tuple(row["order"].split()),
        colours={colour: forms[colour] for colour in COLOURS},
        sizes={size: forms[size] for size in SIZES},
        counts={count: forms[word] for count, word in COUNT_WORDS.items()},
        conjunction=forms["and"],
        picture=forms["picture"],
        background=forms["background"],
        left=forms["left"],
        right=forms["right"],
        top=forms["top"],
        bottom=forms["bottom"],
        relations={"left": forms["left_of"], "above": forms["above"]},
    )


WORDS: dict[str, Words] = {row["code"]: _words(row) for row in _table(WORDS_FILE)}
LANGUAGES: tuple[str, ...] = tuple(WORDS)
"""The codes of the languages, English itself left out."""


def words_in(language: str) -> Words:
    """The words of a language.

    Raises:
        OptionError: a language that bridge has no names in.
    """
    if not isinstance(language, str) or language not in WORDS:
        raise OptionError(
            f"bridge has no names in the language {language!r}; it has them in "
            f"{', '.join(LANGUAGES)}. For another give your own: names={{{language!r}: "
            "{'cat': ...}}."
        )
    return WORDS[language]


@cache
def _names() -> dict[str, tuple[str, ...]]:
    rows = _table(NAMES_FILE)
    return {column: tuple(row[column] for row in rows) for column in rows[0]}


def names_in(language: str) -> tuple[str, ...]:
    """The names of all things in a language, in the order of the table.

    Raises:
        OptionError: a language that bridge has no names in.
    """
    return _names()[words_in(language).code]


@cache
def english_names() -> dict[str, int]:
    """Every English form of every thing, in lower case -> its place in the table."""
    names = _names()
    columns = (names["many"], names["one"], names["name"])
    return {
        form.lower(): place
        for place, forms in enumerate(zip(*columns, strict=True))
        for form in forms
    }


@cache
def dictionary(language: str) -> dict[str, str]:
    """English word or name -> what it is in a language, in its cited form.

    Raises:
        OptionError: a language that bridge has no names in.
    """
    words, names = words_in(language), names_in(language)
    known = {english: names[place] for english, place in english_names().items()}
    known |= {COUNT_WORDS[count]: forms[0] for count, forms in words.counts.items()}
    for group in (words.colours, words.sizes, {"and": words.conjunction}):
        known |= {english: forms[0] for english, forms in group.items()}
    return known
