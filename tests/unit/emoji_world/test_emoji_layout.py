"""The painter's layouts: one place for each thing, in the order in which the text names them."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given
from support.tiny_world import SEEDS, STEADY, scenes_at

from emoji_world.captions import caption, noun_phrase
from emoji_world.layout import settled
from emoji_world.scenes import CANVAS, LATTICE, Group, Scene, is_held_out


def scene_of(*groups: Group, relation: str | None = None) -> Scene:
    return Scene("noto", "white", groups, relation, ())


def related(scene: Scene) -> Scene:
    """The settled scene with its relation kept."""
    rng = random.Random(0)
    while True:
        found = settled(scene, rng)
        if found.relation == scene.relation:
            return found


def corners(scene: Scene) -> list[tuple[int, int]]:
    return [(thing.x, thing.y) for thing in related(scene).objects]


@given(SEEDS)
@STEADY
def test_things_stand_apart_on_the_lattice_within_the_canvas(seed: int) -> None:
    rng = random.Random(seed)
    for scene in scenes_at(seed, 8):
        things = settled(scene, rng).objects
        assert [(t.concept, t.tint, t.size) for t in things] == [
            (g.concept, g.tint, g.size) for g in scene.groups for _ in range(g.count)
        ]
        for i, thing in enumerate(things):
            assert thing.x % LATTICE == thing.y % LATTICE == 0
            assert 0 <= thing.x <= CANVAS - thing.side and 0 <= thing.y <= CANVAS - thing.side
            for other in things[:i]:
                apart_in_x = thing.x >= other.x + other.side or other.x >= thing.x + thing.side
                apart_in_y = thing.y >= other.y + other.side or other.y >= thing.y + thing.side
                assert apart_in_x or apart_in_y


@given(SEEDS)
@STEADY
def test_settled_things_stand_as_their_relation_says(seed: int) -> None:
    rng = random.Random(seed)
    for scene in (settled(scene, rng) for scene in scenes_at(seed, 12)):
        if len(scene.groups) != 2:
            continue
        first = scene.objects[: scene.groups[0].count]
        second = scene.objects[scene.groups[0].count :]
        if scene.relation == "above":
            assert max(t.y + t.side for t in first) <= min(t.y for t in second)
        else:  # side by side where no relation is named
            assert max(t.x + t.side for t in first) <= min(t.x for t in second)


def test_the_text_alone_decides_where_things_stand() -> None:
    """Scenes of the same groups have one layout, wherever the world had put them."""
    for scene in scenes_at(4, 60):
        elsewhere = replace(scene, objects=scene.objects[::-1])
        assert corners(scene) == corners(elsewhere)


def test_counts_have_layouts_of_their_own() -> None:
    assert corners(scene_of(Group(5))) == [(32, 32)]
    assert corners(scene_of(Group(5, 2))) == [(16, 32), (64, 32)]
    assert corners(scene_of(Group(5, 3))) == [(16, 16), (64, 16), (32, 64)]
    assert corners(scene_of(Group(5, 4))) == [(16, 16), (64, 16), (16, 64), (64, 64)]
    assert corners(scene_of(Group(5), Group(6, 2), relation="above")) == [
        (32, 16),
        (16, 64),
        (64, 64),
    ]


def test_some_pairs_lose_their_relation_and_nothing_else_changes() -> None:
    rng = random.Random(3)
    pairs = [scene for scene in scenes_at(5, 900) if scene.relation]
    found = [settled(scene, rng) for scene in pairs]
    unrelated = sum(scene.relation is None for scene in found)
    assert 0.12 < unrelated / len(pairs) < 0.28
    for before, after in zip(pairs, found, strict=True):
        assert replace(after, relation=before.relation, objects=before.objects) == before
        assert not is_held_out(after)


@given(SEEDS)
@STEADY
def test_captions_in_order_name_groups_in_order_and_every_relation(seed: int) -> None:
    rng = random.Random(seed)
    for scene in scenes_at(seed, 6):
        if len(scene.groups) < 2 or len({g.concept for g in scene.groups}) < len(scene.groups):
            continue
        text = caption(replace(scene, relation=None), rng, in_order=True, style=False)
        said = [noun_phrase(group, count_word=" ") for group in scene.groups]
        nouns = [phrase.split("  ")[-1].removeprefix("a ").removeprefix("an ") for phrase in said]
        places = [text.find(noun) for noun in nouns]
        assert -1 not in places and places == sorted(places), (text, nouns)
        if scene.relation:
            other = replace(scene, relation="above" if scene.relation == "left" else "left")
            texts = {caption(s, random.Random(seed), in_order=True) for s in (scene, other)}
            assert len(texts) == 2
