"""Scenes: their two sides never mix, and everything stands where its relation says."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from itertools import combinations
from zlib import crc32

import pytest
from hypothesis import given
from support.tiny_world import SEEDS, STEADY, scenes_at

from emoji_world.concepts import CONCEPTS
from emoji_world.scenes import (
    BACKGROUNDS,
    CANVAS,
    LATTICE,
    SIZES,
    STYLES,
    TINTS,
    Scene,
    draw_scene,
    held_out_count,
    held_out_pair,
    held_out_tint,
    is_held_out,
    sample_scene,
)

KINDS = {"single": 0.26, "several": 0.2, "pair": 0.44, "list": 0.1}


def held_out_parts(scene: Scene) -> int:
    """How many held-out pairs, tints and counts a scene has, from the rule itself."""

    def bucket(text: str, out_of: int) -> bool:
        return crc32(text.encode()) % out_of == 0

    names = [CONCEPTS[group.concept].name for group in scene.groups]
    found = sum(bucket("pair|" + "|".join(sorted(two)), 10) for two in combinations(names, 2))
    for name, group in zip(names, scene.groups, strict=True):
        found += group.tint is not None and bucket(f"tint|{name}|{group.tint}", 8)
        found += group.count > 1 and bucket(f"count|{name}|{group.count}", 8)
    return found


def kind_of(scene: Scene) -> str:
    if len(scene.groups) == 1:
        return "single" if scene.groups[0].count == 1 else "several"
    return "pair" if len(scene.groups) == 2 else "list"


# ---------------------------------------------------------------- the vocabulary


def test_concepts_have_distinct_names_and_an_icon_in_every_style() -> None:
    assert len(CONCEPTS) >= 300
    for field in ("emoji", "name", "one", "many"):
        values = [getattr(concept, field) for concept in CONCEPTS]
        assert all(v and v == v.strip() for v in values)
        assert len(set(values)) == len(values), field
    assert all(set(concept.icons) == set(STYLES) for concept in CONCEPTS)
    assert all(all(concept.icons.values()) for concept in CONCEPTS)
    # Said by one word of the grammar, a concept could not be told from a style or a tint.
    assert not {c.name for c in CONCEPTS} & {*STYLES, *TINTS, *BACKGROUNDS, *SIZES}


# ---------------------------------------------------------------- held out


@given(SEEDS)
@STEADY
def test_training_scenes_hold_nothing_that_is_held_out(seed: int) -> None:
    for scene in scenes_at(seed, 20):
        assert held_out_parts(scene) == 0
        assert not is_held_out(scene)


@given(SEEDS)
@STEADY
def test_held_out_scenes_always_hold_something_held_out(seed: int) -> None:
    for scene in scenes_at(seed, 5, held_out=True):
        assert held_out_parts(scene) > 0
        assert is_held_out(scene)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("held_out", [False, True])
def test_each_kind_can_be_asked_for_on_both_sides(kind: str, held_out: bool) -> None:
    rng = random.Random(3)
    for _ in range(30):
        scene = sample_scene(rng, held_out=held_out, kind=kind)
        assert kind_of(scene) == kind
        assert (held_out_parts(scene) > 0) == held_out


def test_held_out_rates_are_the_stated_ones() -> None:
    everything = range(len(CONCEPTS))
    pairs = [held_out_pair(a, b) for a, b in combinations(everything, 2)]
    assert sum(pairs) / len(pairs) == pytest.approx(1 / 10, abs=0.01)
    tints = [held_out_tint(c, tint) for c in everything for tint in TINTS]
    assert sum(tints) / len(tints) == pytest.approx(1 / 8, abs=0.02)
    counts = [held_out_count(c, count) for c in everything for count in (2, 3, 4)]
    assert sum(counts) / len(counts) == pytest.approx(1 / 8, abs=0.02)


def test_every_tint_and_count_is_learnt_and_scored_on_some_concepts() -> None:
    everything = range(len(CONCEPTS))
    for tint in TINTS:
        assert 0.05 < sum(held_out_tint(c, tint) for c in everything) / len(CONCEPTS) < 0.2
    for count in (2, 3, 4):
        assert 0.05 < sum(held_out_count(c, count) for c in everything) / len(CONCEPTS) < 0.2
    # A concept with every tint held out would never be seen dyed.
    assert all(sum(held_out_tint(c, tint) for tint in TINTS) < 4 for c in everything)


def test_natural_colours_and_single_things_are_never_held_out() -> None:
    for concept in range(len(CONCEPTS)):
        assert not held_out_tint(concept, None)
        assert not held_out_count(concept, 1)


def test_a_pair_is_held_out_in_both_orders() -> None:
    rng = random.Random(0)
    for _ in range(500):
        a, b = rng.sample(range(len(CONCEPTS)), 2)
        assert held_out_pair(a, b) == held_out_pair(b, a)


# ---------------------------------------------------------------- placement


@given(SEEDS)
@STEADY
def test_everything_stands_whole_on_the_lattice_apart_from_the_rest(seed: int) -> None:
    for scene in scenes_at(seed, 20, held_out=None):
        for thing in scene.objects:
            assert thing.side == SIZES[thing.size]
            assert thing.x % LATTICE == 0 and thing.y % LATTICE == 0
            assert thing.x >= 0 and thing.x + thing.side <= CANVAS
            assert thing.y >= 0 and thing.y + thing.side <= CANVAS
        for a, b in combinations(scene.objects, 2):
            beside = a.x + a.side <= b.x or b.x + b.side <= a.x
            over = a.y + a.side <= b.y or b.y + b.side <= a.y
            assert beside or over


def test_the_lattice_suits_the_autoencoder() -> None:
    assert LATTICE % 8 == 0


@given(SEEDS)
@STEADY
def test_relations_are_true_of_every_member(seed: int) -> None:
    for scene in scenes_at(seed, 20, held_out=None):
        assert (scene.relation is not None) == (len(scene.groups) == 2)
        if scene.relation is None:
            continue
        assert scene.relation in ("left", "above")
        count = scene.groups[0].count
        for a in scene.objects[:count]:
            for b in scene.objects[count:]:
                if scene.relation == "left":
                    assert a.x + a.side <= CANVAS // 2 <= b.x
                else:
                    assert a.y + a.side <= CANVAS // 2 <= b.y


@given(SEEDS)
@STEADY
def test_objects_are_the_groups_members_in_order(seed: int) -> None:
    for scene in scenes_at(seed, 20, held_out=None):
        told = [g for g in scene.groups for _ in range(g.count)]
        assert len(scene.objects) == len(told) <= 4
        for group, thing in zip(told, scene.objects, strict=True):
            assert (thing.concept, thing.tint, thing.size) == (
                group.concept,
                group.tint,
                group.size,
            )
        assert len({g.concept for g in scene.groups}) == len(scene.groups)
        assert scene.style in STYLES and scene.background in BACKGROUNDS
        assert all(g.tint is None or g.tint in TINTS for g in scene.groups)


def test_positions_vary() -> None:
    rng = random.Random(5)
    singles = {
        (o.size, o.x, o.y) for _ in range(400) for o in draw_scene(rng, kind="single").objects
    }
    for size in SIZES:
        assert len({(x, y) for s, x, y in singles if s == size}) >= 4


# ---------------------------------------------------------------- sampling


def test_a_seed_gives_the_same_scenes_again() -> None:
    for held_out in (False, True):
        again = scenes_at(11, 20, held_out=held_out)
        assert scenes_at(11, 20, held_out=held_out) == again
        assert scenes_at(12, 20, held_out=held_out) != again


def test_scenes_do_not_depend_on_the_process_hash_seed() -> None:
    code = (
        "import random; from emoji_world.scenes import sample_scene\n"
        "rng = random.Random(11); print([sample_scene(rng, held_out=True) for _ in range(5)])"
    )
    environment = os.environ | {"PYTHONHASHSEED": "77"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == repr(scenes_at(11, 5, held_out=True))


def test_kinds_looks_and_grounds_come_at_the_stated_rates() -> None:
    rng = random.Random(1)
    scenes = [draw_scene(rng) for _ in range(4000)]
    kinds = Counter(map(kind_of, scenes))
    for kind, share in KINDS.items():
        assert kinds[kind] / len(scenes) == pytest.approx(share, abs=0.03)
    groups = [g for s in scenes for g in s.groups]
    assert sum(g.tint is not None for g in groups) / len(groups) == pytest.approx(0.4, abs=0.03)
    assert sum(g.size != "normal" for g in groups) / len(groups) == pytest.approx(0.2, abs=0.03)
    white = sum(s.background == "white" for s in scenes) / len(scenes)
    assert white == pytest.approx(0.4 + 0.6 / len(BACKGROUNDS), abs=0.03)
    styles = Counter(s.style for s in scenes)
    assert all(styles[s] / len(scenes) == pytest.approx(1 / 3, abs=0.03) for s in STYLES)
    relations = Counter(s.relation for s in scenes if s.relation)
    assert relations["left"] / relations.total() == pytest.approx(0.5, abs=0.04)
    assert len({g.concept for g in groups}) == len(CONCEPTS)
