"""What a caption says of a scene, apart from how; said in any language, read from English.

A translation must say what its original says and no more, or a tower that is taught by the pair
learns to guess. So both are made of one ``Said``.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import count

from emoji_world.captions import COUNT_WORDS, caption
from emoji_world.languages import Words, english_names, names_in, words_in
from emoji_world.phrasings import (
    BACKGROUND,
    FRAMES,
    FRAMES_HELD_OUT,
    ON,
    RELATIONS,
    RELATIONS_HELD_OUT,
    STYLE,
)
from emoji_world.scenes import BACKGROUNDS, STYLES, TINTS, Group, Scene

_COUNT_ONE = 0.2  # how often a single thing is counted, where English has its article
_SIDES = {"left": ("left", "right"), "above": ("top", "bottom")}


@dataclass(frozen=True)
class Said:
    """What a caption says; None is what it leaves unsaid.

    ``groups`` in the order in which they are named; ``relation`` as in `Scene`.
    """

    groups: tuple[Group, ...]
    relation: str | None = None
    background: str | None = None
    style: str | None = None


# ---------------------------------------------------------------- saying it


def draw_said(scene: Scene, rng: random.Random) -> Said:
    """What a random caption of the scene says: as often as `captions.caption` says it."""
    return Said(
        scene.groups,
        scene.relation if rng.random() < 0.85 else None,
        scene.background if scene.background != "white" or rng.random() < 0.25 else None,
        scene.style if rng.random() < 0.7 else None,
    )


def pair_captions(scene: Scene, language: str, rng: random.Random) -> tuple[str, str]:
    """A random caption in a language ("en" too) and an English one that says the same.

    A white background may be said in one alone, since unsaid it is white.
    Raises OptionError for a language that bridge has no names in.
    """
    said = draw_said(scene, rng)
    related, styled = said.relation is not None, said.style is not None
    english = caption(scene, rng, relation=related, style=styled)
    if language == "en":
        return caption(scene, rng, relation=related, style=styled), english
    return phrase(said, language, rng), english


def held_out_caption(scene: Scene, language: str, rng: random.Random) -> str:
    """A caption that says everything in a phrasing that training never shows: the ground comes
    first, and of a pair the second thing does."""
    said = Said(scene.groups, scene.relation, scene.background, scene.style)
    words = words_in(language)
    clauses = [_background(said, words, rng), _what(said, words, rng, held_out=True)]
    return words.comma.join([*clauses, scene.style])


def phrase(said: Said, language: str, rng: random.Random | None = None) -> str:
    """What is said, in a language other than English: in a random phrasing, or without ``rng`` in
    the plainest one and in cited forms.

    Raises OptionError for a language that bridge has no names in.
    """
    words = words_in(language)
    what = _what(said, words, rng, held_out=False)
    clauses = [clause for clause in (_background(said, words, rng), said.style) if clause]
    if rng is not None:
        rng.shuffle(clauses)
        if rng.random() < 0.15:
            what = f"{_pick(words.picture, rng)}: {what}"
    return words.comma.join([what, *clauses])


def _pick(forms: Sequence[str], rng: random.Random | None) -> str:
    return forms[0] if rng is None else rng.choice(forms)


def _background(said: Said, words: Words, rng: random.Random | None) -> str:
    if said.background is None:
        return ""
    return _pick(words.background, rng).format(c=_pick(words.colours[said.background], rng))


def _thing(group: Group, words: Words, rng: random.Random | None) -> str:
    """A group in words: "zwei kleine rote Katze"."""
    counted = group.count > 1 or (rng is not None and rng.random() < _COUNT_ONE)
    parts = {
        "count": _pick(words.counts[group.count], rng) if counted else "",
        "size": "" if group.size == "normal" else _pick(words.sizes[group.size], rng),
        "tint": "" if group.tint is None else _pick(words.colours[group.tint], rng),
        "name": names_in(words.code)[group.concept],
    }
    return words.gap.join(parts[part] for part in words.order if parts[part])


def _what(said: Said, words: Words, rng: random.Random | None, *, held_out: bool) -> str:
    """The things' part of a caption."""
    things = [_thing(group, words, rng) for group in said.groups]
    if said.relation is not None:
        first, second = (_pick(getattr(words, side), rng) for side in _SIDES[said.relation])
        placed = [first + words.gap + things[0], second + words.gap + things[1]]
        if held_out:
            return words.comma.join(reversed(placed))
        forms = (*words.relations[said.relation], words.comma.join(placed))
        return _pick(forms, rng).replace("{a}", things[0]).replace("{b}", things[1])
    if rng is not None:
        rng.shuffle(things)
    if len(things) == 1:
        return things[0]
    last = words.gap.join((things[-2], _pick(words.conjunction, rng), things[-1]))
    return words.comma.join([*things[:-2], last])


# ---------------------------------------------------------------- reading it


def read_caption(text: str) -> Said | None:
    """What an English caption of the embedded world says, or None for any other text.

    It reads the phrasings of `captions.caption` (but those in emoji) and lists of things in
    them, in any case, with or without a full stop.
    """
    plain = " ".join(text.split()).rstrip(".").lower()
    for frame in _frames():
        found = frame.fullmatch(plain)
        if found:
            said = _read_what(found["what"])
            if said is not None:
                parts = found.groupdict()
                ground = next((parts[k] for k in parts if k.startswith("bg") and parts[k]), None)
                style = next((parts[k] for k in parts if k.startswith("st") and parts[k]), None)
                return replace(said, background=ground, style=style)
    return None


def _any(words: Sequence[str]) -> str:
    return "|".join(map(re.escape, sorted(words, key=lambda word: (-len(word), word))))


@cache
def _frames() -> tuple[re.Pattern[str], ...]:
    grounds, styles = _any(tuple(BACKGROUNDS)), _any(STYLES)
    number = count()

    def one_of(templates: Sequence[str], group: str, words: str) -> str:
        """Any of the templates, or none; the word is in a group of its own name."""
        forms = []
        for form in templates:
            word = f"(?P<{group}{next(number)}>{words})"
            forms.append(_pattern(form.replace("{}", "{c}"), {"c": word, "a": f"an? {word}"}))
        return f"(?:{'|'.join(forms)})?"

    fields = {
        "what": "(?P<what>.+?)",
        "there": "there (?:is|are)",
        "bg": one_of(BACKGROUND, "bg", grounds),
        "Bg": one_of(("{c} background, ",), "bg", grounds),
        "On": one_of(ON, "bg", grounds),
        "style": one_of(STYLE, "st", styles),
        "Style": one_of(("{} style, ",), "st", styles),
    }
    # The frames that begin with words of their own go first: "{what}" alone fits all of them.
    frames = sorted({*FRAMES, *FRAMES_HELD_OUT}, key=lambda frame: (frame[0] == "{", frame))
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
        (relation, re.compile(_pattern(form, fields)))
        for table in (RELATIONS, RELATIONS_HELD_OUT)
        for relation, forms in table.items()
        for form in dict.fromkeys(forms)  # which has the usual ones several times
    )


@cache
def _thing_pattern() -> re.Pattern[str]:
    counts = _any([*COUNT_WORDS.values(), "an", "a", "the", *map(str, COUNT_WORDS)])
    return re.compile(
        rf"(?:(?P<count>{counts}) )?(?:(?P<size>small|big) )?(?:(?P<tint>{_any(TINTS)}) )?"
        rf"(?P<name>{_any(tuple(english_names()))})(?: x(?P<times>[2-4]))?"
    )


def _read_thing(text: str) -> Group | None:
    found = _thing_pattern().fullmatch(text)
    if found is None:
        return None
    numbers = {word: count for count, word in COUNT_WORDS.items()}
    numbers |= {str(count): count for count in COUNT_WORDS}
    count = int(found["times"] or numbers.get(found["count"] or "", 1))
    concept = english_names()[found["name"]]
    return Group(concept, count, found["tint"], found["size"] or "normal")


def _read_what(text: str) -> Said | None:
    for said in _related(text):
        return said
    things = [_read_thing(part) for part in re.split(r",? and |, ", text)]
    groups = tuple(thing for thing in things if thing is not None)
    return Said(groups) if len(groups) == len(things) else None


def _related(text: str) -> Iterator[Said]:
    for relation, pattern in _relations():
        found = pattern.fullmatch(text)
        if found:
            first, second = _read_thing(found["a"]), _read_thing(found["b"])
            if first is not None and second is not None:
                yield Said((first, second), relation)
