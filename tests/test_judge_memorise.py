"""The memorisation test tells a training scene from a held-out composition."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np

from benchmarks.judge import Found, Seen
from benchmarks.memorise import Distances, as_seen, edits, make_gallery, nearest_of
from benchmarks.tasks import make_tasks
from bridge.emoji.render import render_scene
from bridge.emoji.scenes import Scene, is_held_out
from tests.emoji_world import synthetic_sprites


def _seen(scene: Scene) -> Seen:
    things = tuple(
        Found(o.concept, scene.style, o.size, o.tint, o.x, o.y, o.side, 1.0, 1.0)
        for o in scene.objects
    )
    return Seen(scene.background, scene.style, things, 0)


def test_a_training_scene_is_found_in_the_gallery() -> None:
    sprites = synthetic_sprites()
    gallery = make_gallery(50, sprites)
    assert not any(is_held_out(scene) for scene in gallery.scenes)
    # As the painter learns them: half of all scenes, but few of its own, are on white.
    assert sum(scene.background == "white" for scene in gallery.scenes) < 16
    copy = render_scene(gallery.scenes[17], sprites)
    assert nearest_of(copy, gallery, sprites) == 0
    assert nearest_of(255 - copy, gallery, sprites) > 1


def test_the_truth_is_rebuilt_from_what_was_seen() -> None:
    for task in make_tasks("position", 20) + make_tasks("counting", 20):
        rebuilt = as_seen(task, _seen(task.scene))
        assert rebuilt is not None
        assert rebuilt.objects == task.scene.objects
        assert is_held_out(rebuilt)


def test_pictures_with_other_things_have_no_truth() -> None:
    task = make_tasks("two_objects", 1)[0]
    stranger = Found(task.scene.groups[0].concept + 1, "noto", "normal", None, 0, 0, 48, 1.0, 1.0)
    seen = _seen(task.scene)
    assert as_seen(task, replace(seen, objects=(*seen.objects, stranger))) is None
    assert as_seen(task, replace(seen, style=None)) is None


def test_edits_are_training_scenes_that_differ_in_one_thing() -> None:
    for task in make_tasks("binding", 5) + make_tasks("counting", 5) + make_tasks("colour", 5):
        found = list(edits(task.scene, random.Random(0)))
        assert len(found) > 20
        for scene in found:
            assert not is_held_out(scene)
            shared = set(scene.objects) & set(task.scene.objects)
            assert len(shared) == len(task.scene.objects) - 1


def test_a_copy_is_nearer_to_a_training_scene_than_to_its_truth() -> None:
    assert not Distances(truth=3.0, possible=9.0, random=20.0).copy
    assert Distances(truth=3.0, possible=2.0, random=20.0).copy
    assert Distances(truth=3.0, possible=9.0, random=1.0).copy


def test_the_nearest_possible_copy_of_a_rendered_truth_is_another_picture() -> None:
    sprites = synthetic_sprites()
    truth = make_tasks("binding", 1)[0].scene
    picture = render_scene(truth, sprites).astype(float)
    for scene in edits(truth, random.Random(0)):
        assert np.abs(render_scene(scene, sprites) - picture).max() > 0
