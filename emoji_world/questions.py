"""Questions about scenes with their answers, by kind, for training and scoring the VLM."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from emoji_world.captions import COUNT_WORDS, article, noun_phrase, plain_caption
from emoji_world.concepts import CONCEPTS
from emoji_world.scenes import TINTS, Group, Scene, held_out_tint


@dataclass(frozen=True)
class Question:
    """``answer`` is the one right answer, in lower case without a full stop."""

    kind: str
    text: str
    answer: str


def _name(group: Group) -> str:
    """A thing without its looks: "a cat", "two cats"."""
    return noun_phrase(Group(group.concept, group.count))


def _bare(group: Group) -> str:
    return CONCEPTS[group.concept].one if group.count == 1 else CONCEPTS[group.concept].many


# Where a thing is asked for; " in the picture" is kept for scoring.
_PLACES = ("", "", "", " here", " in this picture", " in the image", " in this image")


def _pick(rng: random.Random, held_out: bool, seen: list[str], kept: list[str]) -> str:
    """A phrasing; ``{in}`` in one that training sees becomes a place or nothing."""
    if held_out:
        return rng.choice(kept)
    return rng.choice(seen).replace("{in}", rng.choice(_PLACES))


def _object(scene: Scene, rng: random.Random, held_out: bool) -> Question | None:
    if len(scene.groups) != 1:
        return None
    text = _pick(
        rng,
        held_out,
        [
            "what is this{in}?",
            "what is in the picture?",
            "what do you see{in}?",
            "what can you see?",
        ],
        ["what do you see in the picture?", "what is in this?"],
    )
    return Question("object", text, _name(scene.groups[0]))


def _position(scene: Scene, rng: random.Random, held_out: bool) -> Question | None:
    if scene.relation is None:
        return None
    first, second = scene.groups
    ends = ("left", "right") if scene.relation == "left" else ("top", "bottom")
    preposition = "on" if scene.relation == "left" else "at"
    side, answer = rng.choice(((ends[0], first), (ends[1], second)))
    text = _pick(
        rng,
        held_out,
        [
            f"what is {preposition} the {side}{{in}}?",
            f"what do you see {preposition} the {side}{{in}}?",
            f"which thing is {preposition} the {side}?",
        ],
        [f"what is {preposition} the {side} in the picture?"],
    )
    return Question("position", text, _name(answer))


def _relation(scene: Scene, rng: random.Random, held_out: bool) -> Question | None:
    if scene.relation is None:
        return None
    first, second = scene.groups
    a, b = f"the {_bare(first)}", f"the {_bare(second)}"
    forward, backward = ("left of", "right of") if scene.relation == "left" else ("above", "below")
    draw = rng.random()
    if draw < 0.5:
        word, asked, answer = rng.choice(((forward, b, first), (backward, a, second)))
        text = _pick(
            rng,
            held_out,
            [f"what is {word} {asked}{{in}}?", f"which thing is {word} {asked}?"],
            [f"what do you see {word} {asked}?"],
        )
        return Question("position", text, _name(answer))
    # The second group is asked for as often as the first, or the words alone would tell.
    turned = rng.random() < 0.5
    subject, a, b = (second, b, a) if turned else (first, a, b)
    word = rng.choice((forward, backward))
    asked = f"{'are' if subject.count > 1 else 'is'} {a} {word} {b}"
    text = _pick(rng, held_out, [asked + "{in}?"], [asked + " in the picture?"])
    right = (word == forward) != turned
    return Question("position", text, "yes" if right else "no")


def _count(scene: Scene, rng: random.Random, held_out: bool) -> Question | None:
    group = rng.choice(scene.groups)
    many = CONCEPTS[group.concept].many
    text = _pick(
        rng,
        held_out,
        [
            f"how many {many} are there{{in}}?",
            f"how many {many}{{in}}?",
            f"how many {many} do you see{{in}}?",
        ],
        [f"how many {many} are in the picture?"],
    )
    return Question("count", text, COUNT_WORDS[group.count])


def _count_all(scene: Scene, rng: random.Random, held_out: bool) -> Question | None:
    text = _pick(
        rng,
        held_out,
        ["how many things are there{in}?", "how many things do you see{in}?"],
        ["how many things are in the picture?"],
    )
    return Question("count", text, COUNT_WORDS[len(scene.objects)])


def _colour(scene: Scene, rng: random.Random, held_out: bool) -> Question | None:
    dyed = [g for g in scene.groups if g.tint]
    group = rng.choice(dyed) if dyed and rng.random() < 0.8 else rng.choice(scene.groups)
    verb = "is" if group.count == 1 else "are"
    bare = _bare(group)
    text = _pick(
        rng,
        held_out,
        [
            f"what colour {verb} the {bare}{{in}}?",
            f"what color {verb} the {bare}{{in}}?",
            f"which colour {verb} the {bare}?",
            f"what is the color of the {bare}?",
        ],
        [f"what is the colour of the {bare}?"],
    )
    return Question("colour", text, group.tint or "natural")


def _binding(scene: Scene, rng: random.Random, held_out: bool) -> Question | None:
    if len(scene.groups) < 2:
        return None
    dyed = [g for g in scene.groups if g.tint]
    only = [g for g in dyed if sum(o.tint == g.tint for o in scene.groups) == 1]
    if not only:
        return None
    group = rng.choice(only)
    text = _pick(
        rng,
        held_out,
        [f"what is {group.tint}{{in}}?", f"which thing is {group.tint}{{in}}?"],
        [f"what do you see that is {group.tint}?"],
    )
    return Question("binding", text, _name(group))


def _exists(scene: Scene, rng: random.Random, held_out: bool) -> Question | None:
    present = {g.concept for g in scene.groups}
    if rng.random() < 0.5:
        concept, answer = rng.choice(sorted(present)), "yes"
    else:
        concept = rng.choice([c for c in range(len(CONCEPTS)) if c not in present])
        answer = "no"
    thing = article(CONCEPTS[concept].one)
    text = _pick(
        rng,
        held_out,
        [
            f"is there {thing}{{in}}?",
            f"do you see {thing}{{in}}?",
            f"can you see {thing}{{in}}?",
        ],
        [f"is there {thing} in the picture?"],
    )
    return Question("exists", text, answer)


def _exists_tinted(scene: Scene, rng: random.Random, held_out: bool) -> Question | None:
    """Right thing, right or wrong colour: the question that binding decides."""
    dyed = [g for g in scene.groups if g.tint and g.count == 1]
    if not dyed:
        return None
    group = rng.choice(dyed)
    right = rng.random() < 0.5
    # In training a held-out colour is not asked for either: it would always be wrong.
    others = [
        tint
        for tint in TINTS
        if tint != group.tint and (held_out or not held_out_tint(group.concept, tint))
    ]
    tint = group.tint if right else rng.choice(others)
    thing = article(f"{tint} {CONCEPTS[group.concept].one}")
    text = _pick(
        rng,
        held_out,
        [f"is there {thing}{{in}}?", f"can you see {thing}{{in}}?"],
        [f"do you see {thing} in the picture?"],
    )
    return Question("binding", text, "yes" if right else "no")


def _style(scene: Scene, rng: random.Random, held_out: bool) -> Question | None:
    text = _pick(
        rng,
        held_out,
        ["which style is this{in}?", "what style is it{in}?", "what is the style?"],
        ["which style is it?"],
    )
    return Question("style", text, scene.style)


def _background(scene: Scene, rng: random.Random, held_out: bool) -> Question | None:
    text = _pick(
        rng,
        held_out,
        [
            "what colour is the background{in}?",
            "what color is the background{in}?",
            "which background is this?",
        ],
        ["what is the colour of the background?"],
    )
    return Question("background", text, scene.background)


def _caption(scene: Scene, rng: random.Random, held_out: bool) -> Question | None:
    text = _pick(
        rng,
        held_out,
        [
            "describe the picture.",
            "describe this picture.",
            "describe the image.",
            "what does the picture show?",
        ],
        ["describe what the picture shows."],
    )
    return Question("caption", text, plain_caption(scene))


_Maker = Callable[[Scene, random.Random, bool], Question | None]
_MAKERS: tuple[_Maker, ...] = (
    _object,
    _position,
    _relation,
    _count,
    _count_all,
    _colour,
    _binding,
    _exists,
    _exists_tinted,
    _style,
    _background,
    _caption,
)
KINDS = (
    "object",
    "position",
    "count",
    "colour",
    "binding",
    "exists",
    "style",
    "background",
    "caption",
)


def questions(scene: Scene, rng: random.Random, *, held_out: bool = False) -> list[Question]:
    """Every kind of question the scene allows, in random order; held-out phrasings if asked."""
    made = [question for make in _MAKERS if (question := make(scene, rng, held_out))]
    rng.shuffle(made)
    return made
