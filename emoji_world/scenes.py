"""Scenes of the embedded world: what stands where, drawn at random with known truth.

A scene has one style, one background and one to four objects. Objects stand on a lattice of
16 pixels: the image tower's patch and twice the autoencoder's stride, so that a sprite looks
the same to both wherever it stands, and small models learn it from few examples. Some
combinations are *held out*: never seen in training, used only for scoring.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from zlib import crc32

from emoji_world.concepts import CONCEPTS

CANVAS = 128
LATTICE = 16
STYLES = ("noto", "fluent", "twemoji")
SIZES = {"small": 32, "normal": 48, "big": 64}
TINTS = ("red", "orange", "yellow", "green", "blue", "purple")
BACKGROUNDS = {
    "white": (255, 255, 255),
    "gray": (198, 198, 202),
    "pink": (255, 196, 214),
    "orange": (255, 214, 170),
    "yellow": (255, 242, 165),
    "green": (190, 236, 190),
    "blue": (184, 220, 255),
    "purple": (218, 200, 250),
}
_QUADRANTS = ((0, 0), (64, 0), (0, 64), (64, 64))


@dataclass(frozen=True)
class Group:
    """``count`` objects of one kind that look alike; ``tint`` None means natural colours."""

    concept: int
    count: int = 1
    tint: str | None = None
    size: str = "normal"


@dataclass(frozen=True)
class PlacedObject:
    """One object on the canvas; ``x, y`` is its box's top left corner in pixels."""

    concept: int
    tint: str | None
    size: str
    x: int
    y: int

    @property
    def side(self) -> int:
        return SIZES[self.size]


@dataclass(frozen=True)
class Scene:
    """What is in a picture. With two groups, ``relation`` says how the first stands to the
    second ("left" or "above"); ``objects`` lists the groups' members in the groups' order."""

    style: str
    background: str
    groups: tuple[Group, ...]
    relation: str | None
    objects: tuple[PlacedObject, ...]


def _bucket(*parts: object) -> int:
    """A stable hash: Python's own differs from run to run."""
    return crc32("|".join(map(str, parts)).encode())


def held_out_pair(a: int, b: int) -> bool:
    """One pair of concepts in ten never shares a training scene."""
    first, second = sorted((CONCEPTS[a].name, CONCEPTS[b].name))
    return _bucket("pair", first, second) % 10 == 0


def held_out_tint(concept: int, tint: str | None) -> bool:
    """One tint of a concept in eight is never seen in training."""
    return tint is not None and _bucket("tint", CONCEPTS[concept].name, tint) % 8 == 0


def held_out_count(concept: int, count: int) -> bool:
    """One count above one of a concept in eight is never seen in training."""
    return count > 1 and _bucket("count", CONCEPTS[concept].name, count) % 8 == 0


def is_held_out(scene: Scene) -> bool:
    """True when any pair, tint or count in the scene is held out."""
    groups = scene.groups
    pairs = ((a, b) for i, a in enumerate(groups) for b in groups[i + 1 :])
    return (
        any(held_out_pair(a.concept, b.concept) for a, b in pairs)
        or any(held_out_tint(g.concept, g.tint) for g in groups)
        or any(held_out_count(g.concept, g.count) for g in groups)
    )


def place(
    groups: tuple[Group, ...], relation: str | None, rng: random.Random
) -> list[PlacedObject]:
    """Put the groups' members on the lattice without overlap.

    One object stands near the middle; several of a kind take quadrants; two groups take the
    halves that ``relation`` names; three or more groups take a quadrant each.
    """

    def jitter(low: int, high: int) -> int:
        return rng.randrange(low, high + 1, LATTICE)

    def near_middle(side: int) -> int:
        middle = (CANVAS - side) // 2
        low = -(-(middle - LATTICE) // LATTICE) * LATTICE
        return jitter(low, (middle + LATTICE) // LATTICE * LATTICE)

    def in_quadrant(group: Group, corner: tuple[int, int]) -> PlacedObject:
        free = 64 - SIZES[group.size]
        x, y = corner[0] + jitter(0, free), corner[1] + jitter(0, free)
        return PlacedObject(group.concept, group.tint, group.size, x, y)

    def in_half(group: Group, second: bool) -> list[PlacedObject]:
        """The half along x; the caller swaps the axes for "above"."""
        along = 64 * second
        if group.count == 2:
            return [in_quadrant(group, (along, 0)), in_quadrant(group, (along, 64))]
        side = SIZES[group.size]
        x, y = along + jitter(0, 64 - side), near_middle(side)
        return [PlacedObject(group.concept, group.tint, group.size, x, y)]

    if len(groups) == 1 and groups[0].count == 1:
        group, side = groups[0], SIZES[groups[0].size]
        x, y = near_middle(side), near_middle(side)
        return [PlacedObject(group.concept, group.tint, group.size, x, y)]
    if len(groups) == 2:
        placed = in_half(groups[0], False) + in_half(groups[1], True)
        if relation == "above":
            placed = [PlacedObject(p.concept, p.tint, p.size, p.y, p.x) for p in placed]
        return placed
    members = [group for group in groups for _ in range(group.count)]
    corners = rng.sample(_QUADRANTS, len(members))
    return [in_quadrant(group, corner) for group, corner in zip(members, corners, strict=True)]


# How many scenes of each kind: one object; several of a kind; two groups; three or four kinds.
_KINDS = (("single", 0.26), ("several", 0.2), ("pair", 0.44), ("list", 0.1))


def draw_scene(rng: random.Random, kind: str | None = None) -> Scene:
    """One random scene, held out or not; ``kind`` is drawn too unless it is given."""
    style = rng.choice(STYLES)
    background = "white" if rng.random() < 0.4 else rng.choice(tuple(BACKGROUNDS))
    if kind is None:
        (kind,) = rng.choices([k for k, _ in _KINDS], [w for _, w in _KINDS])

    def group(concept: int, count: int = 1) -> Group:
        tint = rng.choice(TINTS) if rng.random() < 0.4 else None
        size = rng.choice(("small", "big")) if rng.random() < 0.2 else "normal"
        return Group(concept, count, tint, size)

    def concepts(n: int) -> list[int]:
        return rng.sample(range(len(CONCEPTS)), n)

    relation = None
    groups: tuple[Group, ...]
    if kind == "single":
        groups = (group(concepts(1)[0]),)
    elif kind == "several":
        (concept,) = concepts(1)
        groups = (group(concept, rng.choice((2, 3, 4))),)
    elif kind == "pair":
        counts = rng.choices(((1, 1), (1, 2), (2, 1), (2, 2)), (0.7, 0.1, 0.1, 0.1))[0]
        first, second = concepts(2)
        groups = (group(first, counts[0]), group(second, counts[1]))
        relation = rng.choice(("left", "above"))
    else:
        groups = tuple(group(c) for c in concepts(rng.choice((3, 4))))
    objects = tuple(place(groups, relation, rng))
    return Scene(style, background, groups, relation, objects)


def sample_scene(rng: random.Random, *, held_out: bool = False, kind: str | None = None) -> Scene:
    """A random scene of the training side (default) or of the held-out side."""
    while True:
        scene = draw_scene(rng, kind)
        if is_held_out(scene) == held_out:
            return scene
