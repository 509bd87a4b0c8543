"""The judge recovers scenes of known truth, clean and spoilt, and sees nothing in mush."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image
from support.judge_world import picture, sample_judge, sample_scenes

from benchmarks.degrade import degrade, noise
from benchmarks.judge_check import Tally, blend, framed_noise, matched
from emoji_world.judge import Judge, Limits
from emoji_world.scenes import BACKGROUNDS, TINTS, Group, PlacedObject, Scene


def _one(concept: int, **changes: object) -> Scene:
    values = {"tint": None, "size": "normal", "x": 32, "y": 48, **changes}
    thing = PlacedObject(concept, **values)  # type: ignore[arg-type]
    group = Group(concept, tint=thing.tint, size=thing.size)
    return Scene("noto", "blue", (group,), None, (thing,))


def test_every_attribute_of_clean_scenes_is_right() -> None:
    tally = Tally()
    for scene in sample_scenes(40, seed=1):
        tally.add(scene, sample_judge().look(picture(scene)))
    shares = {name: np.mean(outcomes) for name, outcomes in tally.outcomes.items()}
    assert min(shares.values()) >= 0.97, shares


def test_attributes_of_degraded_scenes_are_right() -> None:
    tally, rng = Tally(), np.random.default_rng(2)
    for scene in sample_scenes(40, seed=2):
        tally.add(scene, sample_judge().look(degrade(picture(scene), rng)))
    shares = {name: np.mean(outcomes) for name, outcomes in tally.outcomes.items()}
    assert min(value for name, value in shares.items() if name != "all") >= 0.97, shares
    assert shares["all"] >= 0.9, shares


@pytest.mark.parametrize("size", ["small", "normal", "big"])
@pytest.mark.parametrize("tint", [None, *TINTS])
def test_size_tint_and_place_of_one_object(size: str, tint: str | None) -> None:
    scene = _one(2, size=size, tint=tint)
    seen = sample_judge().look(picture(scene))
    (found,) = seen.objects
    assert (found.concept, found.size, found.tint, found.style) == (2, size, tint, "noto")
    assert (found.x, found.y) == (32, 48)
    assert (seen.background, seen.style, seen.unrecognised) == ("blue", "noto", 0)


@pytest.mark.parametrize("shift", [(-4, 3), (1, 2), (4, -4)])
def test_objects_off_the_lattice_are_found(shift: tuple[int, int]) -> None:
    moved = np.roll(picture(_one(0)), shift, axis=(0, 1))
    (found,) = sample_judge().look(moved).objects
    assert found.concept == 0
    assert (found.y, found.x) == (48 + shift[0], 32 + shift[1])


def test_an_object_half_outside_does_not_break_the_judge() -> None:
    moved = np.roll(picture(_one(0, x=80)), 24, axis=1)
    assert sample_judge().look(moved).background == "blue"


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_blank_pictures_have_a_background_and_nothing_else(background: str) -> None:
    blank = np.full((128, 128, 3), BACKGROUNDS[background], dtype=np.uint8)
    seen = sample_judge().look(blank)
    assert (seen.background, seen.objects, seen.unrecognised) == (background, (), 0)
    assert seen.style is None


def test_nothing_is_seen_in_noise() -> None:
    rng = np.random.default_rng(3)
    for _ in range(10):
        assert not sample_judge().look(noise(rng)).objects
        assert not sample_judge().look(framed_noise(rng)).objects


def test_blends_of_two_sprites_are_not_recognised() -> None:
    rng = random.Random(4)
    recognised = [bool(sample_judge().look(blend(sample_judge(), rng)).objects) for _ in range(30)]
    assert np.mean(recognised) <= 0.1


def test_a_blob_counts_as_unrecognised() -> None:
    pixels = picture(_one(0, x=0, y=0))
    pixels[80:110, 80:110] = np.random.default_rng(5).integers(0, 255, (30, 30, 3))
    seen = sample_judge().look(pixels)
    assert [thing.concept for thing in seen.objects] == [0]
    assert seen.unrecognised >= 1


def test_a_background_of_no_known_colour_is_told() -> None:
    seen = sample_judge().look(np.zeros((128, 128, 3), dtype=np.uint8))
    assert (seen.background, seen.objects, seen.unrecognised) == (None, (), 1)


def test_limits_decide_what_counts() -> None:
    strict = Judge(sample_judge().bank, Limits(fit=1.1))
    seen = strict.look(picture(_one(0)))
    assert seen.objects == () and seen.unrecognised >= 1


def test_pil_and_array_give_the_same_and_other_sizes_are_refused() -> None:
    pixels = picture(_one(0))
    assert sample_judge().look(Image.fromarray(pixels)) == sample_judge().look(pixels)
    with pytest.raises(ValueError, match="128"):
        sample_judge().look(pixels[:64])


def test_matching_pairs_each_object_once() -> None:
    scene = sample_scenes(1, seed=9)[0]
    seen = sample_judge().look(picture(scene))
    found = [found for _, found in matched(scene, seen)]
    assert None not in found and len(set(found)) == len(scene.objects)
