"""Batches of scenes: pictures and what stands in each of their patches."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from emoji_world.art import Sprites
from emoji_world.concepts import CONCEPTS
from emoji_world.render import render_scene
from emoji_world.scenes import CANVAS, SIZES, STYLES, TINTS, Scene, sample_scene

PATCH = 16
GRID = CANVAS // PATCH


def scene_rng(seed: int, step: int) -> random.Random:
    """The generator of one step's scenes: resumption sees what a straight run would see."""
    return random.Random(seed * 1_000_003 + step)


def scene_batch(rng: random.Random, size: int, kind: str | None = None) -> list[Scene]:
    """``size`` training scenes (never held-out ones), all of one kind if it is given."""
    return [sample_scene(rng, kind=kind) for _ in range(size)]


def rendered(scenes: Sequence[Scene], sprites: Sprites) -> torch.Tensor:
    """The scenes' pictures, uint8 (B, 128, 128, 3)."""
    return torch.from_numpy(np.stack([render_scene(scene, sprites) for scene in scenes]))


def pixels(images: torch.Tensor) -> torch.Tensor:
    """uint8 (B, h, w, 3) as the models read them: float (B, 3, h, w) in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def pictures(scenes: Sequence[Scene], sprites: Sprites) -> torch.Tensor:
    """The scenes rendered, float (B, 3, 128, 128) in [-1, 1]."""
    return pixels(rendered(scenes, sprites))


@dataclass(frozen=True)
class PatchTruth:
    """Class ids of each 16-pixel patch, long (B, 64): what stands over the patch's centre.

    ``concept`` counts the empty background as its last class; the others are -100 there,
    which cross-entropy ignores.
    """

    concept: torch.Tensor
    tint: torch.Tensor
    size: torch.Tensor
    style: torch.Tensor

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> PatchTruth:
        """The same with every tensor changed alike."""
        return PatchTruth(*map(change, (self.concept, self.tint, self.size, self.style)))

    def to(self, device: torch.device) -> PatchTruth:
        """The same on ``device``."""
        return self.each(lambda column: column.to(device))


def patch_truth(scenes: Sequence[Scene]) -> PatchTruth:
    """The truth of every patch, for the dense loss beside the contrastive one."""
    shape = (len(scenes), GRID, GRID)
    concept = np.full(shape, len(CONCEPTS), dtype=np.int64)
    tint, size, style = (np.full(shape, -100, dtype=np.int64) for _ in range(3))
    tints, sizes = (None, *TINTS), tuple(SIZES)
    for i, scene in enumerate(scenes):
        for thing in scene.objects:
            rows = slice(*_covered(thing.y, thing.side))
            columns = slice(*_covered(thing.x, thing.side))
            concept[i, rows, columns] = thing.concept
            tint[i, rows, columns] = tints.index(thing.tint)
            size[i, rows, columns] = sizes.index(thing.size)
            style[i, rows, columns] = STYLES.index(scene.style)
    flat = [torch.from_numpy(a).flatten(1) for a in (concept, tint, size, style)]
    return PatchTruth(*flat)


def _covered(start: int, side: int) -> tuple[int, int]:
    """Patches whose centre lies in [start, start + side)."""
    half = PATCH // 2
    return -(-(start - half) // PATCH), -(-(start + side - half) // PATCH)
