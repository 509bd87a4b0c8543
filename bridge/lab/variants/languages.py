"""Other languages: captions of counted, coloured things, read from English and written in them,
and the operation ``language``, by bridge's own names or by names that a caller gives.

How the English ones are phrased lies beside the weights (``captions.json``), since they are the
captions that the embedded models were trained on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from typing import Any

from bridge.embedded import weights_file
from bridge.errors import OptionError
from bridge.files import read_json
from bridge.lab.variants.variant import Settings
from bridge.lab.variants.vocabulary import (
    COUNT_WORDS,
    LANGUAGES,
    SIZES,
    Words,
    dictionary,
    english_names,
    names_in,
    words_in,
)
from bridge.prompt import check_text

CAPTIONS_FILE = "captions.json"
_SIDES = {"left": ("left", "right"), "above": ("top", "bottom")}
Pick = Callable[[Sequence[str]], str]


@dataclass(frozen=True)
class Thing:
    """``count`` things of one kind that look alike.

    Attributes:
        concept: the place of its names in the vocabulary.
        count: from 1 to 4.
        tint: a colour, or None for its own.
        size: "small", "normal" or "big".
    """

    concept: int
    count: int = 1
    tint: str | None = None
    size: str = "normal"


@dataclass(frozen=True)
class CaptionMeaning:
    """What a caption says, apart from how; None is what it leaves unsaid.

    Attributes:
        things: in the order in which they are named.
        relation: how the first of two stands to the second, "left" or "above".
        background: a colour.
        style: the name of a style of drawing, the same in all languages.
    """

    things: tuple[Thing, ...]
    relation: str | None = None
    background: str | None = None
    style: str | None = None


# ---------------------------------------------------------------- writing


def cited(forms: Sequence[str]) -> str:
    """The form that a dictionary cites."""
    return forms[0]


def write_caption(meaning: CaptionMeaning, language: str) -> str:
    """A caption in a language other than English, in the plainest phrasing and cited forms.

    Raises:
        OptionError: a language that bridge has no names in.
    """
    words = words_in(language)
    things = [write_thing(t, words, cited, counted=t.count > 1) for t in meaning.things]
    clauses = [join_things(things, meaning.relation, words, cited)]
    if meaning.background is not None:
        clauses.append(write_background(meaning.background, words, cited))
    if meaning.style is not None:
        clauses.append(meaning.style)
    return words.comma.join(clauses)


def write_background(colour: str, words: Words, pick: Pick) -> str:
    """The clause that says on which ground the things stand."""
    return pick(words.background).format(c=pick(words.colours[colour]))


def write_thing(thing: Thing, words: Words, pick: Pick, *, counted: bool) -> str:
    """A thing in words: "zwei kleine rote Katze"."""
    parts = {
        "count": pick(words.counts[thing.count]) if counted else "",
        "size": "" if thing.size == "normal" else pick(words.sizes[thing.size]),
        "tint": "" if thing.tint is None else pick(words.colours[thing.tint]),
        "name": names_in(words.code)[thing.concept],
    }
    return words.gap.join(parts[part] for part in words.order if parts[part])


def place_things(things: Sequence[str], relation: str, words: Words, pick: Pick) -> list[str]:
    """Two things in words, each with where it stands."""
    sides = [pick(getattr(words, side)) for side in _SIDES[relation]]
    return [side + words.gap + thing for side, thing in zip(sides, things, strict=True)]


def join_things(things: Sequence[str], relation: str | None, words: Words, pick: Pick) -> str:
    """Things in words, as one clause that says how they stand, if that is known."""
    if relation is not None:
        placed = words.comma.join(place_things(things, relation, words, pick))
        form = pick((*words.relations[relation], placed))
        return form.replace("{a}", things[0]).replace("{b}", things[1])
    if len(things) == 1:
        return things[0]
    last = words.gap.join((things[-2], pick(words.conjunction), things[-1]))
    return words.comma.join([*things[:-2], last])


# ---------------------------------------------------------------- reading


@cache
def _phrasings() -> dict[str, Any]:
    return read_json(weights_file(CAPTIONS_FILE))


def read_caption(text: str) -> CaptionMeaning | None:
    """What an English caption says, or None for a text of another kind.

    It reads the phrasings of ``captions.json`` and lists of things in them, in any case, with or
    without a full stop.
    """
    plain = " ".join(text.split()).rstrip(".").lower()
    for frame in _frames():
        found = frame.fullmatch(plain)
        if found:
            meaning = _read_what(found["what"])
            if meaning is not None:
                said = {key.rstrip("0123456789"): w for key, w in found.groupdict().items() if w}
                return replace(meaning, background=said.get("background"), style=said.get("style"))
    return None


def _any(words: Sequence[str]) -> str:
    return "|".join(map(re.escape, sorted(words, key=lambda word: (-len(word), word))))


@cache
def _frames() -> tuple[re.Pattern[str], ...]:
    phrasings, number = _phrasings(), count()

    def clause(says: str, forms: Sequence[str]) -> str:
        """Any of the forms, or none; the word is in a group of its own name."""
        words, patterns = _any(phrasings["words"][says]), []
        for form in forms:
            word = f"(?P<{says}{next(number)}>{words})"
            patterns.append(_pattern(form, {"c": word, "a": f"an? {word}"}))
        return f"(?:{'|'.join(patterns)})?"

    fields = {"what": "(?P<what>.+?)", "there": "there (?:is|are)"}
    for name, told in phrasings["clauses"].items():
        fields[name] = clause(told["says"], told["forms"])
    # The frames that begin with words of their own go first: "{what}" alone fits all of them.
    frames = sorted(phrasings["frames"], key=lambda frame: (frame[0] == "{", frame))
    return tuple(re.compile(_pattern(frame, fields)) for frame in frames)


def _pattern(template: str, fields: dict[str, str]) -> str:
    """A template as a regular expression, its fields replaced."""
    parts = re.split(r"\{(\w+)\}", template)
    return "".join(
        fields[part] if at % 2 else re.escape(part.lower()) for at, part in enumerate(parts)
    )


@cache
def _relations() -> tuple[tuple[str, re.Pattern[str]], ...]:
    fields = {"a": "(?P<a>.+)", "b": "(?P<b>.+)"}
    return tuple(
        (relation, re.compile(_pattern(joined, fields)))
        for relation, forms in _phrasings()["relations"].items()
        for form in forms
        for joined in dict.fromkeys(form.replace("{joint}", j) for j in _phrasings()["joints"])
    )


@cache
def _thing_pattern() -> re.Pattern[str]:
    counts = _any([*COUNT_WORDS.values(), "an", "a", "the", *map(str, COUNT_WORDS)])
    tints = _any(_phrasings()["words"]["tint"])
    return re.compile(
        rf"(?:(?P<count>{counts}) )?(?:(?P<size>{_any(SIZES)}) )?(?:(?P<tint>{tints}) )?"
        rf"(?P<name>{_any(tuple(english_names()))})(?: x(?P<times>[2-4]))?"
    )


def _read_thing(text: str) -> Thing | None:
    found = _thing_pattern().fullmatch(text)
    if found is None:
        return None
    numbers = {word: count for count, word in COUNT_WORDS.items()}
    numbers |= {str(count): count for count in COUNT_WORDS}
    many = int(found["times"] or numbers.get(found["count"] or "", 1))
    concept = english_names()[found["name"]]
    return Thing(concept, many, found["tint"], found["size"] or "normal")


def _read_what(text: str) -> CaptionMeaning | None:
    for meaning in _related(text):
        return meaning
    things = [_read_thing(part) for part in re.split(r",? and |, ", text)]
    known = tuple(thing for thing in things if thing is not None)
    return CaptionMeaning(known) if len(known) == len(things) else None


def _related(text: str) -> Iterator[CaptionMeaning]:
    for relation, pattern in _relations():
        found = pattern.fullmatch(text)
        if found:
            first, second = _read_thing(found["a"]), _read_thing(found["b"])
            if first is not None and second is not None:
                yield CaptionMeaning((first, second), relation)


# ---------------------------------------------------------------- the operation


def languages(prompt: str, settings: Settings) -> Iterator[tuple[str, str]]:
    """The prompt in each language of ``settings.names``, or in all that bridge has names in.

    By bridge's names: a caption of the embedded world as a whole, in the order and with the words
    of the language; of any other prompt the names and words known. By given names: the whole
    prompt's translation if there is one, else the prompt with each known name replaced, longest
    first. A language whose given names are not in the prompt gives none.

    Raises:
        OptionError: a prompt without a name that bridge knows.
    """
    if isinstance(settings.names, Mapping):
        return _by_given(prompt, settings.names)
    return _by_own(prompt, settings.names or LANGUAGES)


def _by_given(prompt: str, names: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, str]]:
    for language, own in names.items():
        folded = {english.casefold(): word for english, word in own.items()}
        whole = folded.get(prompt.strip().casefold())
        if whole is not None:
            yield whole, f"{language}, whole prompt"
            continue
        text, count = _replaced(prompt, folded)
        if count:
            yield text, f"{language}, {_counted(count)}"


def _by_own(prompt: str, chosen: Sequence[str]) -> Iterator[tuple[str, str]]:
    meaning = read_caption(prompt)
    known = len(_whole_words(english_names()).findall(prompt))
    if meaning is None and not known:
        raise OptionError(
            f"The prompt {prompt!r} has no name that bridge knows in other languages; it knows the "
            "embedded world's things (cat, apple, rocket ...). Use one of them, or give names of "
            "your own: names={'de': {'cat': 'Katze'}}."
        )
    for language in chosen:
        if meaning is not None:
            yield write_caption(meaning, language), f"{language}, whole prompt"
        else:
            text, _ = _replaced(prompt, dictionary(language))
            yield text, f"{language}, {_counted(known)}"


def _counted(names: int) -> str:
    return f"{names} {'name' if names == 1 else 'names'}"


def _whole_words(names: Iterable[str]) -> re.Pattern[str]:
    some = [name for name in names if name.strip()]
    return re.compile(rf"(?<!\w)(?:{_any(some)})(?!\w)", re.IGNORECASE)


def _replaced(prompt: str, names: Mapping[str, str]) -> tuple[str, int]:
    if not any(name.strip() for name in names):
        return prompt, 0
    return _whole_words(names).subn(
        lambda found: names.get(found.group().casefold(), found.group()), prompt
    )


def check_names(settings: Settings) -> None:
    """Raise OptionError for a language without names, of bridge's or given."""
    names = settings.names
    if isinstance(names, str) or not isinstance(names, Mapping | Sequence):
        raise OptionError(
            f"names is {names!r}; give languages, such as ['de', 'ja'], or names of your own: "
            "{'de': {'cat': 'Katze'}}."
        )
    if not isinstance(names, Mapping):
        for language in names:
            words_in(language)
        return
    for language, own in names.items():
        if not isinstance(own, Mapping) or not own:
            raise OptionError(
                f"The language {language!r} has no names; give a mapping of English words or whole "
                f"prompts to its own, or leave it out. (names={[str(language)]!r} takes bridge's.)"
            )
        for english, word in own.items():
            check_text(english, f"names[{language!r}]")
            check_text(word, f"names[{language!r}][{english!r}]")
