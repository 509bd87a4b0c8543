"""What the judge's tests share: ten real sprites and a judge that knows only them."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from functools import cache

import numpy as np
from PIL import Image

from emoji_world.art import Sprites, _shrink
from emoji_world.judge import Judge
from emoji_world.judge.templates import build_bank
from emoji_world.render import render_scene
from emoji_world.scenes import SIZES, STYLES, Scene, draw_scene
from support.places import DATA

_SAMPLE = DATA / "sprites_sample.npz"


@cache
def sample_sprites() -> Sprites:
    """The sample in the shape of the full artwork, with ten columns instead of 320.

    The largest sprites are the artwork's own; smaller ones are reduced from them as the artwork
    is from what is drawn of it.
    """
    with np.load(_SAMPLE) as stored:
        count = len(stored["names"])
        atlas = np.asarray(Image.open(io.BytesIO(stored["webp"].tobytes())))
    largest = max(SIZES.values())
    rows = atlas.reshape(len(STYLES), largest, count, largest, 4).swapaxes(1, 2)
    return Sprites(
        {
            size: rows if side == largest else np.stack([_reduced(row, side) for row in rows])
            for size, side in SIZES.items()
        }
    )


def _reduced(sprites: np.ndarray, side: int) -> np.ndarray:
    """Sprites without their one-pixel margins, reduced to ``side`` pixels with margins."""
    return np.stack([_shrink(Image.fromarray(one[1:-1, 1:-1]), side) for one in sprites])


@cache
def sample_judge() -> Judge:
    """A judge whose concept ids are the sample's columns."""
    return Judge(build_bank(sample_sprites()))


def sample_scenes(n: int, seed: int) -> list[Scene]:
    """Random scenes of the sample's concepts only."""
    rng = random.Random(seed)
    columns = sample_sprites().images["normal"].shape[1]
    scenes = []
    while len(scenes) < n:
        scene = draw_scene(rng)
        known = dict(
            zip(
                dict.fromkeys(group.concept for group in scene.groups),
                rng.sample(range(columns), len(scene.groups)),
                strict=True,
            )
        )
        scenes.append(
            replace(
                scene,
                groups=tuple(replace(g, concept=known[g.concept]) for g in scene.groups),
                objects=tuple(replace(o, concept=known[o.concept]) for o in scene.objects),
            )
        )
    return scenes


def picture(scene: Scene) -> np.ndarray:
    return render_scene(scene, sample_sprites())
