"""Training batches: the patches' truth against a look at every centre, and pictures' range."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from support.tiny_models import tiny_clip_tokenizer
from support.tiny_world import SEEDS, STEADY, scenes_at, synthetic_sprites

from emoji_world.concepts import CONCEPTS
from emoji_world.render import render_scene
from emoji_world.scenes import CANVAS, SIZES, STYLES, TINTS, PlacedObject, Scene, is_held_out
from emoji_world.train import clip
from emoji_world.train.data import GRID, PATCH, patch_truth, pictures, scene_batch, scene_rng

FIELDS = ("concept", "tint", "size", "style")


def truth_of_patch(scene: Scene, row: int, column: int) -> tuple[int, int, int, int]:
    """What covers the patch's middle point, by trying every object."""
    y, x = (row + 0.5) * CANVAS / GRID, (column + 0.5) * CANVAS / GRID
    for thing in scene.objects:
        if thing.x <= x < thing.x + thing.side and thing.y <= y < thing.y + thing.side:
            return (
                thing.concept,
                0 if thing.tint is None else 1 + TINTS.index(thing.tint),
                list(SIZES).index(thing.size),
                STYLES.index(scene.style),
            )
    return (len(CONCEPTS), -100, -100, -100)


def assert_truth(scenes: list[Scene]) -> None:
    truth = patch_truth(scenes)
    for field in FIELDS:
        assert getattr(truth, field).shape == (len(scenes), GRID * GRID)
        assert getattr(truth, field).dtype == torch.long
    for i, scene in enumerate(scenes):
        for patch in range(GRID * GRID):
            told = tuple(getattr(truth, field)[i, patch].item() for field in FIELDS)
            assert told == truth_of_patch(scene, *divmod(patch, GRID))


def test_the_grid_is_the_image_towers() -> None:
    assert GRID * PATCH == CANVAS and GRID * GRID == 64
    vision = clip.build(tiny_clip_tokenizer()).config.vision_config
    assert (vision.image_size, vision.patch_size) == (CANVAS, PATCH)


@given(SEEDS)
@STEADY
def test_patch_truth_of_scenes(seed: int) -> None:
    assert_truth(scenes_at(seed, 2, held_out=None))


@given(SEEDS)
@STEADY
def test_patch_truth_off_the_lattice(seed: int) -> None:
    rng = random.Random(seed)
    size = rng.choice(list(SIZES))
    x, y = (rng.randrange(CANVAS - SIZES[size] + 1) for _ in range(2))
    thing = PlacedObject(rng.randrange(len(CONCEPTS)), rng.choice((None, *TINTS)), size, x, y)
    assert_truth([Scene("twemoji", "white", (), None, (thing,))])


def test_every_object_has_a_patch() -> None:
    scenes = scenes_at(1, 100)
    concepts = patch_truth(scenes).concept
    for scene, row in zip(scenes, concepts, strict=True):
        assert {t.concept for t in scene.objects} == set(row.tolist()) - {len(CONCEPTS)}


def test_pictures_are_the_renderings_in_the_towers_range() -> None:
    scenes, sprites = scenes_at(2, 3), synthetic_sprites()
    batch = pictures(scenes, sprites)
    assert batch.shape == (3, 3, CANVAS, CANVAS) and batch.dtype == torch.float32
    assert batch.min() >= -1 and batch.max() <= 1
    for scene, picture in zip(scenes, batch, strict=True):
        back = ((picture + 1) * 127.5).round().permute(1, 2, 0).numpy().astype(np.uint8)
        assert (back == render_scene(scene, sprites)).all()


def test_a_steps_scenes_depend_on_seed_and_step_alone() -> None:
    assert scene_batch(scene_rng(21, 5), 8) == scene_batch(scene_rng(21, 5), 8)
    first = scene_batch(scene_rng(21, 5), 8)
    assert first != scene_batch(scene_rng(21, 6), 8)
    assert first != scene_batch(scene_rng(22, 5), 8)


@pytest.mark.parametrize("kind", [None, "list"])
def test_batches_are_of_the_training_side(kind: str | None) -> None:
    scenes = scene_batch(scene_rng(3, 0), 200, kind=kind)
    assert not any(is_held_out(scene) for scene in scenes)
    assert kind is None or all(len(scene.groups) >= 3 for scene in scenes)
