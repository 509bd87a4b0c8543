"""Views of scenes: what they show, what is told of them, and their patches' truth."""

from __future__ import annotations

import random
from collections import Counter

import torch
from hypothesis import given
from support.tiny_world import SEEDS, STEADY, synthetic_sprites

from emoji_world.render import render_scene
from emoji_world.scenes import BACKGROUNDS, CANVAS, LATTICE
from emoji_world.train.data import GRID, PATCH, patch_truth, rendered
from emoji_world.train.views import View, draw_views, view_pictures, view_truth

FIELDS = ("concept", "tint", "size", "style")


@given(SEEDS)
@STEADY
def test_a_close_view_has_its_whole_object_and_lies_on_the_lattice(seed: int) -> None:
    for view in draw_views(random.Random(seed), 8, 64):
        (thing,) = view.scene.objects
        assert view.x <= thing.x and thing.x + thing.side <= view.x + 64 <= CANVAS
        assert view.y <= thing.y and thing.y + thing.side <= view.y + 64 <= CANVAS
        assert view.x % LATTICE == view.y % LATTICE == 0 and min(view.x, view.y) >= 0


def test_close_views_show_their_object_in_the_middle_unless_the_canvas_ends() -> None:
    for view in draw_views(random.Random(1), 400, 64):
        (thing,) = view.scene.objects
        for view_start, start in ((view.x, thing.x), (view.y, thing.y)):
            middle = {"small": 16, "normal": 16, "big": 0}[thing.size]
            # At the canvas' left and upper edge there is nothing to begin the view on.
            assert (
                start - view_start == middle
                or (view_start == 0 and start < middle)
                or (view_start == CANVAS - 64 and start - view_start > middle)
            )


def test_views_of_the_canvas_are_whole_scenes_of_several_kinds() -> None:
    views = draw_views(random.Random(2), 40, CANVAS)
    assert all(view.time_ids == (CANVAS, CANVAS, 0, 0, CANVAS, CANVAS) for view in views)
    assert {len(view.scene.objects) for view in views} == {1, 2, 3, 4}
    scenes = [view.scene for view in views]
    sprites = synthetic_sprites()
    assert torch.equal(view_pictures(views, sprites), rendered(scenes, sprites))


def test_every_ground_is_as_frequent() -> None:
    for side in (64, CANVAS):
        drawn = Counter(v.scene.background for v in draw_views(random.Random(4), 1600, side))
        assert set(drawn) == set(BACKGROUNDS)
        assert all(140 < count < 260 for count in drawn.values())  # 200 each, by 4.5 sigma


@given(SEEDS)
@STEADY
def test_pictures_and_truth_are_those_of_the_part(seed: int) -> None:
    sprites = synthetic_sprites()
    views = draw_views(random.Random(seed), 3, 64)
    shown, truth = view_pictures(views, sprites), view_truth(views)
    assert shown.shape == (3, 64, 64, 3) and shown.dtype == torch.uint8
    for i, view in enumerate(views):
        whole = torch.from_numpy(render_scene(view.scene, sprites))
        assert torch.equal(shown[i], whole[view.y : view.y + 64, view.x : view.x + 64])
        everywhere = patch_truth([view.scene])
        for patch in range(16):
            row, column = divmod(patch, 4)
            there = (view.y // PATCH + row) * GRID + view.x // PATCH + column
            for field in FIELDS:
                assert getattr(truth, field)[i, patch] == getattr(everywhere, field)[0, there]


def test_time_ids_are_in_sdxls_order() -> None:
    """Original height and width, crop top and left, target height and width."""
    (view,) = draw_views(random.Random(3), 1, 64)
    moved = View(view.scene, x=16, y=48, side=64)
    assert moved.time_ids == (128, 128, 48, 16, 64, 64)
