"""The painter's layouts: one place for each thing, where the text leaves it open.

Scenes put their things anywhere that agrees with the caption, so that the image tower knows
them everywhere. A painter trained on that must first guess among hundreds of arrangements, and
at pure noise all it can give is their average. So it learns the one arrangement that a person
would draw: things gathered round the middle, in the order in which the text names them. What a
picture shows then follows from its text, but for a style that is not named.
"""

from __future__ import annotations

import random
from dataclasses import replace

from emoji_world.scenes import CANVAS, LATTICE, Group, PlacedObject, Scene

UNRELATED = 0.2  # of the pairs, whose caption names no relation: they stand side by side
_HALF = CANVAS // 2

# A place on one axis: in the first half, in the middle, or in the second half.
_FIRST, _MIDDLE, _SECOND = range(3)
_ROWS = {
    1: ((_MIDDLE, _MIDDLE),),
    2: ((_FIRST, _MIDDLE), (_SECOND, _MIDDLE)),
    3: ((_FIRST, _FIRST), (_SECOND, _FIRST), (_MIDDLE, _SECOND)),
    4: ((_FIRST, _FIRST), (_SECOND, _FIRST), (_FIRST, _SECOND), (_SECOND, _SECOND)),
}


def settled(scene: Scene, rng: random.Random) -> Scene:
    """The scene in the painter's layout; some pairs lose their relation.

    One thing stands in the middle, two side by side (or one above the other), three in a
    triangle, four in a square, in the groups' order. Two groups take a half each.
    """
    if scene.relation is not None and rng.random() < UNRELATED:
        scene = replace(scene, relation=None)
    if len(scene.groups) == 2:
        members = _in_half(scene.groups[0], _FIRST) + _in_half(scene.groups[1], _SECOND)
    else:
        things = [group for group in scene.groups for _ in range(group.count)]
        members = [(group, *where) for group, where in zip(things, _ROWS[len(things)], strict=True)]
    if scene.relation == "above":
        members = [(group, y, x) for group, x, y in members]
    return replace(scene, objects=tuple(_put(*member) for member in members))


def _in_half(group: Group, half: int) -> list[tuple[Group, int, int]]:
    """A group's members in one half along x."""
    across = (_MIDDLE,) if group.count == 1 else (_FIRST, _SECOND)
    return [(group, half, place) for place in across]


def _put(group: Group, x: int, y: int) -> PlacedObject:
    thing = PlacedObject(group.concept, group.tint, group.size, 0, 0)
    return replace(thing, x=_start(thing.side, x), y=_start(thing.side, y))


def _start(side: int, place: int) -> int:
    """Where a thing begins: against the middle line, or over it as the lattice allows."""
    if place == _MIDDLE:
        return (CANVAS - side) // 2 // LATTICE * LATTICE
    return _HALF - side if place == _FIRST else _HALF
