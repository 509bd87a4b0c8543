"""Captions of scenes, in several phrasings; some frames and relations are for scoring only.

What a caption leaves unsaid has a default the models can learn: no background means white,
no size means normal, no tint means natural colours. An unnamed style may be any of the three,
and an unnamed relation any arrangement.
"""

from __future__ import annotations

import random

from bridge.lab.variants.vocabulary import COUNT_WORDS
from emoji_world.concepts import CONCEPTS
from emoji_world.phrasings import (
    BACKGROUND,
    BACKGROUND_HELD_OUT,
    FRAMES,
    FRAMES_HELD_OUT,
    ON,
    RELATIONS,
    RELATIONS_HELD_OUT,
    STYLE,
    STYLE_HELD_OUT,
)
from emoji_world.scenes import Group, Scene


def article(phrase: str) -> str:
    """``phrase`` with its indefinite article."""
    vowel = phrase[0] in "aeio" or phrase.startswith(("hour", "umb"))
    return f"{'an' if vowel else 'a'} {phrase}"


def noun_phrase(group: Group, *, count_word: str | None = None) -> str:
    """The group in words: "two small red cats", "a big dog"."""
    concept = CONCEPTS[group.concept]
    size = "" if group.size == "normal" else group.size + " "
    tint = "" if group.tint is None else group.tint + " "
    if group.count == 1:
        return article(size + tint + concept.one)
    return f"{count_word or COUNT_WORDS[group.count]} {size}{tint}{concept.many}"


def _keywords(scene: Scene, rng: random.Random) -> str:
    """The keyword list a diffusion user types: "cat x2, red, blue background, noto"."""
    parts = []
    for group in scene.groups:
        words = [] if group.size == "normal" else [group.size]
        words += [] if group.tint is None else [group.tint]
        words.append(CONCEPTS[group.concept].name)
        parts.append(" ".join(words) + (f" x{group.count}" if group.count > 1 else ""))
    if scene.background != "white" or rng.random() < 0.3:
        parts.append(f"{scene.background} background")
    if rng.random() < 0.7:
        parts.append(scene.style)
    return ", ".join(parts)


def _emoji(scene: Scene) -> str:
    """The scene typed in emoji characters, with the words they cannot say."""
    said = []
    for group in scene.groups:
        looks = "" if group.size == "normal" else group.size + " "
        looks += "" if group.tint is None else group.tint + " "
        said.append(looks + CONCEPTS[group.concept].emoji * group.count)
    joint = {"left": " left of ", "above": " above ", None: ", "}[scene.relation]
    background = "" if scene.background == "white" else f", {scene.background} background"
    return joint.join(said) + background + f", {scene.style}"


def _objects(scene: Scene, rng: random.Random, held_out: bool, relate: bool, in_order: bool) -> str:
    """The objects' part of a sentence."""
    digits = rng.random() < 0.25
    phrases = [noun_phrase(g, count_word=str(g.count) if digits else None) for g in scene.groups]
    if scene.relation and relate:
        forms = (RELATIONS_HELD_OUT if held_out else RELATIONS)[scene.relation]
        return rng.choice(forms).format(a=phrases[0], b=phrases[1])
    if not in_order:
        rng.shuffle(phrases)
    if len(phrases) == 1:
        return phrases[0]
    return ", ".join(phrases[:-1]) + " and " + phrases[-1]


def _begins_with_one(what: str) -> bool:
    """Whether the first thing named, with or without its place before it, is a single one."""
    numbers = {"a", "an", *COUNT_WORDS.values(), *map(str, COUNT_WORDS)}
    return next(word for word in what.split() if word in numbers) in ("a", "an")


def caption(
    scene: Scene,
    rng: random.Random,
    *,
    held_out: bool = False,
    relation: bool | None = None,
    style: bool | None = None,
    in_order: bool = False,
) -> str:
    """One caption of the scene in a random phrasing.

    Args:
        held_out: use a frame and, where it is named, a relation that training never shows; the
            clauses of ground and style are some of those that it does.
        relation, style: force the relation or the style to be named (True) or left out
            (False); None leaves it to chance.
        in_order: the order and the relation of the groups are part of what the text says
            (see layout.py): they are named in order, and a relation is always named.
    """
    if not held_out and relation is None and style is None:
        draw = rng.random()
        if draw < 0.05:
            return _emoji(scene)
        if draw < 0.15 and scene.relation is None:
            return _keywords(scene, rng)
    relate = (in_order or rng.random() < 0.85) if relation is None else relation
    say_style = rng.random() < 0.7 if style is None else style
    say_background = scene.background != "white" or rng.random() < 0.25
    ground = {"c": scene.background, "a": article(scene.background)}
    # Drawn where it is unused too: the held-out captions, and so what is scored, stay as ever.
    background = (
        rng.choice(BACKGROUND_HELD_OUT if held_out else BACKGROUND).format(**ground)
        if say_background
        else ""
    )
    frame = rng.choice(FRAMES_HELD_OUT if held_out else FRAMES)
    # Left without its background, that frame would be one that training shows.
    say_background = say_background or "{Bg}" in frame
    what = _objects(scene, rng, held_out, relate, in_order)
    return frame.format(
        what=what,
        there="there is" if _begins_with_one(what) else "there are",
        bg="" if "{Bg}" in frame or "{On}" in frame else background,
        On=rng.choice(ON).format(**ground) if say_background and "{On}" in frame else "",
        Bg=f"{scene.background} background, " if say_background else "",
        style=rng.choice(STYLE_HELD_OUT if held_out else STYLE).format(scene.style)
        if say_style
        else "",
        Style=f"{scene.style} style, " if say_style else "",
    )


def plain_caption(scene: Scene) -> str:
    """The one full description that names everything: what the VLM answers to "describe"."""
    phrases = [noun_phrase(group) for group in scene.groups]
    if scene.relation == "left":
        what = f"{phrases[0]} to the left of {phrases[1]}"
    elif scene.relation == "above":
        what = f"{phrases[0]} above {phrases[1]}"
    else:
        what = " and ".join(phrases)
    return f"{what} on {article(scene.background)} background in {scene.style} style"
