"""``memorise``: is a picture of a held-out combination a copy of a training scene?

No training scene shows a held-out combination, so a picture that shows one must lie nearer to
a rendering of what was asked than to any training scene. For every drawn picture of a kind with
held-out combinations that the judge calls right, three distances are measured, as root mean
square differences of pixels (levels of 255):

- truth: to the asked scene, rendered with its objects where the judge found them;
- random: to the nearest of ``--gallery`` random training scenes;
- nearest possible: to the nearest of the training scenes that differ from the asked one in one
  thing only (one object's concept or tint, or one object left out), objects in the same places.

It is a copy when either of the last two is smaller than the first. Of all the pictures, right or
not, the share is given that lies as near to a random training scene as 95 % of the right ones
lie to their truth: such a picture may well *be* that scene.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.drawn import kept_pictures, pictures_file, source_of
from benchmarks.results import Row, median_row, report, results_file, save, share_row, show
from benchmarks.tasks import KINDS, Task, interleaved, judge_task
from bridge.errors import OptionError
from emoji_world.art import Sprites
from emoji_world.concepts import CONCEPTS
from emoji_world.judge import Judge, PictureContent
from emoji_world.judge.templates import pool
from emoji_world.render import render_scene
from emoji_world.scenes import CANVAS, TINTS, Group, PlacedObject, Scene, is_held_out
from emoji_world.train.views import draw_views

COMBINED = tuple(kind for kind in KINDS if kind != "single_object")
_BLOCK = 4  # the gallery is compared at 32 x 32 first
_EDITS = 150


@dataclass(frozen=True)
class Distances:
    """Root mean square pixel differences of one picture; ``truth`` and ``possible`` are None
    when the picture does not show what was asked."""

    truth: float | None
    possible: float | None
    random: float

    @property
    def copy(self) -> bool:
        assert self.truth is not None and self.possible is not None
        return min(self.possible, self.random) < self.truth


@dataclass(frozen=True)
class Gallery:
    """Training scenes and their pictures at 32 x 32, float (N, 32·32·3)."""

    scenes: list[Scene]
    small: np.ndarray
    lengths: np.ndarray


def make_gallery(n: int, sprites: Sprites, seed: int = 77) -> Gallery:
    """Scenes as the painter learns them, in its layout and on its grounds."""
    scenes = [view.scene for view in draw_views(random.Random(seed), n, CANVAS)]
    small = np.stack([_small(render_scene(scene, sprites)) for scene in scenes])
    return Gallery(scenes, small, np.einsum("nk,nk->n", small, small))


def run_memorise(args: argparse.Namespace) -> None:
    """Measure the pictures that ``draw`` kept, with the same options; writes memorise.json."""
    path = pictures_file(args.model, args.seed)
    prompts, pictures = kept_pictures(path, source_of(args))
    by_prompt = {task.prompt: task for task in interleaved(args.n, args.seed)}
    judge = Judge()
    print(f"  rendering {args.gallery} training scenes", flush=True)
    gallery = make_gallery(args.gallery, judge.bank.sprites)
    rng = random.Random(args.seed)
    measured = []
    for prompt, pixels in zip(prompts, pictures, strict=True):
        task = by_prompt.get(prompt)
        if task is not None and task.kind in COMBINED:
            measured.append(measure(task, pixels, judge, gallery, rng))
    rows = memorise_rows(measured)
    show(rows)
    table = report(args.command, rows, test="benchmarks/memorise.py")
    save(results_file(args.out, "memorise.json", (args.model, "emoji-xl")), table)


def memorise_rows(measured: Sequence[Distances]) -> list[Row]:
    """Raises OptionError where no picture shows what was asked, so that nothing is measured."""
    right = [d for d in measured if d.truth is not None]
    truths = [d.truth for d in right if d.truth is not None]
    possible = [d.possible for d in right if d.possible is not None]
    if not right:
        raise OptionError(
            f"none of {len(measured)} pictures shows the held-out combination that was asked for, "
            "so there is nothing to measure: draw more (--n), or with another model"
        )
    close = float(np.percentile(truths, 95))
    nearest = [d.random for d in right]
    return [
        share_row("memorise/copies_among_right", [d.copy for d in right]),
        median_row("memorise/distance_to_truth", truths, "rms", 2),
        median_row("memorise/distance_to_nearest_possible", possible, "rms", 2),
        median_row("memorise/distance_to_nearest_of_gallery", nearest, "rms", 2),
        share_row("memorise/near_duplicates_among_all", [d.random <= close for d in measured]),
    ]


def measure(
    task: Task, pixels: np.ndarray, judge: Judge, gallery: Gallery, rng: random.Random
) -> Distances:
    """The distances of one picture."""
    nearest = nearest_of(pixels, gallery, judge.bank.sprites)
    seen = judge.look(pixels)
    truth = as_seen(task, seen) if judge_task(task, seen).right else None
    if truth is None:
        return Distances(None, None, nearest)
    sprites = judge.bank.sprites
    possible = min(
        (_rms(pixels, render_scene(scene, sprites)) for scene in edits(truth, rng)),
        default=float("inf"),
    )
    return Distances(_rms(pixels, render_scene(truth, sprites)), possible, nearest)


def as_seen(task: Task, seen: PictureContent) -> Scene | None:
    """The asked scene with its objects where the judge found them, in the style and on the
    background that it saw; None when objects beyond the asked ones were found too."""
    asked = {group.concept: group for group in task.scene.groups}
    if any(thing.concept not in asked for thing in seen.objects):
        return None
    if seen.background is None or seen.style is None:
        return None
    objects = tuple(
        PlacedObject(
            thing.concept,
            thing.tint,
            thing.size,
            min(max(thing.x, 0), 128 - thing.side),
            min(max(thing.y, 0), 128 - thing.side),
        )
        for thing in seen.objects
    )
    groups = tuple(replace(group, count=seen.count(concept)) for concept, group in asked.items())
    scene = Scene(seen.style, seen.background, groups, task.scene.relation, objects)
    return scene if is_held_out(scene) else None


def edits(scene: Scene, rng: random.Random, n: int = _EDITS) -> Iterator[Scene]:
    """Training scenes that differ from ``scene`` in one thing: ``n`` with another concept in an
    object's place, every other tint, and every object left out."""
    for i, thing in enumerate(scene.objects):
        others = [c for c in range(len(CONCEPTS)) if c != thing.concept]
        concepts = rng.sample(others, min(n // len(scene.objects), len(others)))
        changed = [replace(thing, concept=concept) for concept in concepts]
        changed += [replace(thing, tint=tint) for tint in (None, *TINTS) if tint != thing.tint]
        variants: list[tuple[PlacedObject, ...]] = [
            (*scene.objects[:i], other, *scene.objects[i + 1 :]) for other in changed
        ]
        if len(scene.objects) > 1:
            variants.append((*scene.objects[:i], *scene.objects[i + 1 :]))
        for objects in variants:
            edited = replace(scene, objects=objects, groups=_groups(objects))
            if not is_held_out(edited):
                yield edited


def _groups(objects: tuple[PlacedObject, ...]) -> tuple[Group, ...]:
    """The groups that a list of objects makes: equal looks are one group."""
    counts: dict[tuple[int, str | None, str], int] = {}
    for thing in objects:
        look = (thing.concept, thing.tint, thing.size)
        counts[look] = counts.get(look, 0) + 1
    return tuple(Group(c, count, tint, size) for (c, tint, size), count in counts.items())


def nearest_of(pixels: np.ndarray, gallery: Gallery, sprites: Sprites) -> float:
    """The distance to the gallery's nearest picture: the 20 nearest at 32 x 32, then in full."""
    small = _small(pixels)
    squared = gallery.lengths - 2 * (gallery.small @ small)
    best = np.argsort(squared)[:20]
    return min(_rms(pixels, render_scene(gallery.scenes[i], sprites)) for i in best)


def _small(pixels: np.ndarray) -> np.ndarray:
    return pool(pixels.astype(np.float32), _BLOCK).ravel()


def _rms(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2)))
