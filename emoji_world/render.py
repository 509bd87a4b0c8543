"""From a scene to its picture: sprites composed over a plain background."""

from __future__ import annotations

from functools import cache

import numpy as np

from emoji_world.art import Sprites
from emoji_world.scenes import BACKGROUNDS, CANVAS, Scene

TINT_RGB = {
    "red": (222, 38, 38),
    "orange": (244, 134, 20),
    "yellow": (238, 204, 22),
    "green": (44, 160, 60),
    "blue": (42, 100, 228),
    "purple": (146, 56, 196),
}


@cache
def _ramp(tint: str) -> np.ndarray:
    """A lightness → colour table, float (256, 3): dark shade, the colour itself, light shade."""
    colour = np.array(TINT_RGB[tint], dtype=np.float32)
    light = np.linspace(0, 1, 256, dtype=np.float32)[:, None]
    shade = colour * (0.45 + 0.55 * np.minimum(light / 0.6, 1))
    glow = np.clip((light - 0.6) / 0.4, 0, 1) * 0.6
    return shade * (1 - glow) + 255 * glow


def tinted(sprite: np.ndarray, tint: str | None) -> np.ndarray:
    """A sprite recoloured by its own lightness; uint8 (s, s, 4) in and out."""
    if tint is None:
        return sprite
    lightness = sprite[..., :3] @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    rgb = _ramp(tint)[lightness.astype(np.uint8)]
    return np.concatenate([rgb.astype(np.uint8), sprite[..., 3:]], axis=-1)


def render_scene(scene: Scene, sprites: Sprites) -> np.ndarray:
    """The scene's picture, uint8 (128, 128, 3)."""
    canvas = np.empty((CANVAS, CANVAS, 3), dtype=np.float32)
    canvas[:] = BACKGROUNDS[scene.background]
    for thing in scene.objects:
        sprite = tinted(sprites.get(scene.style, thing.concept, thing.size), thing.tint)
        alpha = sprite[..., 3:].astype(np.float32) / 255
        window = canvas[thing.y : thing.y + thing.side, thing.x : thing.x + thing.side]
        window += alpha * (sprite[..., :3] - window)
    return canvas.round().astype(np.uint8)
