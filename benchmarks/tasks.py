"""Drawing tasks with known truth: GenEval's six kinds, from what training never showed.

The kinds follow GenEval (Ghosh et al., 2023): single object, two objects, counting, colours,
position, attribute binding. All prompts use held-out phrasings. The scenes use held-out
combinations: pairs (two_objects, position, binding), counts (counting), tints (colour);
single_object has no combination, so only its phrasing is held out.

What counts as right:

- single_object: the concept is found exactly once.
- two_objects: both concepts are found.
- counting: the concept is found exactly as often as asked (2-4).
- colour: the concept is found, and every one found has the asked tint.
- position: both concepts are found, and the mean centre of the one named as left (above) lies
  at least 16 pixels left of (above) the other's.
- binding: each concept is found in its own tint, and never in the other's.

The background and, where the prompt names it, the style are scored apart, for every kind.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

from emoji_world.captions import caption
from emoji_world.concepts import CONCEPTS
from emoji_world.judge import ObjectMatch, PictureContent
from emoji_world.scenes import (
    BACKGROUNDS,
    STYLES,
    TINTS,
    Group,
    Scene,
    held_out_count,
    held_out_pair,
    held_out_tint,
    place,
)

KINDS = ("single_object", "two_objects", "counting", "colour", "position", "binding")
_APART = 16  # pixels


@dataclass(frozen=True)
class Task:
    """A prompt with its truth. ``scene`` is one picture that would be right."""

    kind: str
    prompt: str
    scene: Scene
    says_style: bool
    seed: int


@dataclass(frozen=True)
class Verdict:
    """``style`` is None where the prompt leaves it open."""

    right: bool
    background: bool
    style: bool | None


def make_tasks(kind: str, n: int, seed: int = 0) -> list[Task]:
    """``n`` different prompts of a kind; the same for the same seed."""
    rng = random.Random(f"{kind}/{seed}")
    tasks: dict[str, Task] = {}
    while len(tasks) < n:
        groups = _GROUPS[kind](rng)
        style = rng.choice(STYLES)
        background = "white" if rng.random() < 0.4 else rng.choice(tuple(BACKGROUNDS))
        relation = rng.choice(("left", "above")) if len(groups) == 2 else None
        objects = tuple(place(groups, relation, rng))
        scene = Scene(style, background, groups, relation, objects)
        says_style = rng.random() < 0.7
        prompt = caption(
            scene, rng, held_out=True, relation=kind in ("position", "binding"), style=says_style
        )
        tasks.setdefault(prompt, Task(kind, prompt, scene, says_style, rng.randrange(2**31)))
    return list(tasks.values())


def interleaved(n: int, seed: int = 0, kinds: tuple[str, ...] = KINDS) -> list[Task]:
    """``n`` tasks of each kind, one kind after the other in turn, so that a run cut short has
    as many of each."""
    columns = [make_tasks(kind, n, seed) for kind in kinds]
    return [task for row in zip(*columns, strict=True) for task in row]


def judge_task(task: Task, seen: PictureContent) -> Verdict:
    """Whether what the judge saw is what the prompt asked for."""
    return Verdict(
        right=_RULES[task.kind](task.scene, seen),
        background=seen.background == task.scene.background,
        style=(seen.style == task.scene.style) if task.says_style else None,
    )


def _concepts(rng: random.Random, n: int) -> list[int]:
    return rng.sample(range(len(CONCEPTS)), n)


def _pair(rng: random.Random) -> tuple[int, int]:
    while True:
        first, second = _concepts(rng, 2)
        if held_out_pair(first, second):
            return first, second


def _one(rng: random.Random) -> tuple[Group, ...]:
    return (Group(_concepts(rng, 1)[0]),)


def _two(rng: random.Random) -> tuple[Group, ...]:
    first, second = _pair(rng)
    return Group(first), Group(second)


def _several(rng: random.Random) -> tuple[Group, ...]:
    while True:
        (concept,), count = _concepts(rng, 1), rng.choice((2, 3, 4))
        if held_out_count(concept, count):
            return (Group(concept, count),)


def _dyed(rng: random.Random) -> tuple[Group, ...]:
    while True:
        (concept,), tint = _concepts(rng, 1), rng.choice(TINTS)
        if held_out_tint(concept, tint):
            return (Group(concept, tint=tint),)


def _two_dyed(rng: random.Random) -> tuple[Group, ...]:
    first, second = _pair(rng)
    tints = rng.sample(TINTS, 2)
    return Group(first, tint=tints[0]), Group(second, tint=tints[1])


_GROUPS: dict[str, Callable[[random.Random], tuple[Group, ...]]] = {
    "single_object": _one,
    "two_objects": _two,
    "counting": _several,
    "colour": _dyed,
    "position": _two,
    "binding": _two_dyed,
}


def _single_right(scene: Scene, seen: PictureContent) -> bool:
    return seen.count(scene.groups[0].concept) == 1


def _two_right(scene: Scene, seen: PictureContent) -> bool:
    return all(seen.count(group.concept) for group in scene.groups)


def _count_right(scene: Scene, seen: PictureContent) -> bool:
    return seen.count(scene.groups[0].concept) == scene.groups[0].count


def _colour_right(scene: Scene, seen: PictureContent) -> bool:
    things = seen.of(scene.groups[0].concept)
    return bool(things) and all(thing.tint == scene.groups[0].tint for thing in things)


def _position_right(scene: Scene, seen: PictureContent) -> bool:
    if not _two_right(scene, seen):
        return False
    axis = 0 if scene.relation == "left" else 1
    first, second = (_middle(seen.of(group.concept), axis) for group in scene.groups)
    return second - first >= _APART


def _middle(things: tuple[ObjectMatch, ...], axis: int) -> float:
    return fmean(thing.centre[axis] for thing in things)


def _binding_right(scene: Scene, seen: PictureContent) -> bool:
    tints = {group.tint for group in scene.groups}
    for group in scene.groups:
        worn = {thing.tint for thing in seen.of(group.concept)}
        if group.tint not in worn or worn & (tints - {group.tint}):
            return False
    return True


_RULES: dict[str, Callable[[Scene, PictureContent], bool]] = {
    "single_object": _single_right,
    "two_objects": _two_right,
    "counting": _count_right,
    "colour": _colour_right,
    "position": _position_right,
    "binding": _binding_right,
}
