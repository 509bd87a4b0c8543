"""Views: square parts of scenes' pictures, as SDXL trains on crops and tells the UNet of them.

Podell et al. 2023 (section 2.2) tell the UNet the size of the picture, where the crop begins
and how large it is; ``time_ids`` says so here. Close views of single sprites have a quarter of
the area of a whole scene and an object nearly all over it: a painter learns the 960 sprites
from them several times faster than from scenes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch

from emoji_world.art import Sprites
from emoji_world.layout import settled
from emoji_world.scenes import BACKGROUNDS, CANVAS, LATTICE, Scene
from emoji_world.train.data import GRID, PATCH, PatchTruth, patch_truth, rendered, scene_batch


@dataclass(frozen=True)
class View:
    """``side`` pixels of a scene's picture from ``x, y``, all three on the lattice."""

    scene: Scene
    x: int = 0
    y: int = 0
    side: int = CANVAS

    @property
    def time_ids(self) -> tuple[int, int, int, int, int, int]:
        """SDXL's micro-conditioning: original size, crop's top and left, target size."""
        return (CANVAS, CANVAS, self.y, self.x, self.side, self.side)


def draw_views(rng: random.Random, count: int, side: int) -> list[View]:
    """Whole scenes of every kind, in the painter's layout, when ``side`` is the canvas'; else
    close views of one object.

    Every ground is as frequent: a latent holds a thing with the ground behind it, so each ground
    is learnt for itself, and half of the world's scenes are on white.
    """
    scenes = scene_batch(rng, count, None if side == CANVAS else "single")
    scenes = [replace(scene, background=rng.choice(tuple(BACKGROUNDS))) for scene in scenes]
    if side == CANVAS:
        return [View(settled(scene, rng)) for scene in scenes]
    return [_close_view(scene, side) for scene in scenes]


def _close_view(scene: Scene, side: int) -> View:
    """A view of the scene's one object, in its middle as far as lattice and canvas allow: where
    it stands is then no guess, and all of the picture follows from the text."""

    def start(place: int, length: int) -> int:
        middle = (place - (side - length) // 2) // LATTICE * LATTICE
        return min(max(0, middle), CANVAS - side)

    (thing,) = scene.objects
    return View(scene, start(thing.x, thing.side), start(thing.y, thing.side), side)


def view_pictures(views: list[View], sprites: Sprites) -> torch.Tensor:
    """What the views show, uint8 (B, side, side, 3); all of one side."""
    whole = rendered([view.scene for view in views], sprites)
    parts = [
        picture[view.y : view.y + view.side, view.x : view.x + view.side]
        for picture, view in zip(whole, views, strict=True)
    ]
    return torch.stack(parts)


def view_truth(views: list[View]) -> PatchTruth:
    """The truth of the views' patches, long (B, patches); all of one side."""
    truth = patch_truth([view.scene for view in views])

    def parts(of_scenes: torch.Tensor) -> torch.Tensor:
        maps = of_scenes.unflatten(1, (GRID, GRID))
        return torch.stack(
            [
                each[_patches(view.y, view.side), _patches(view.x, view.side)].flatten()
                for each, view in zip(maps, views, strict=True)
            ]
        )

    return truth.each(parts)


def _patches(start: int, side: int) -> slice:
    return slice(start // PATCH, (start + side) // PATCH)
