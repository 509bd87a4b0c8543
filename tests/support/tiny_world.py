"""What the tests of the embedded world share: made-up sprites and scenes at a seed.

The artwork does not ship, so the sprites are drawn here: every concept has its own colours,
an opaque middle, a soft rim and a clear margin, which is all that rendering relies on.
"""

from __future__ import annotations

import random
from functools import cache

import numpy as np
import torch
from diffusers import AutoencoderTiny
from hypothesis import settings
from hypothesis import strategies as st

from emoji_world.art import Sprites
from emoji_world.concepts import CONCEPTS
from emoji_world.scenes import SIZES, STYLES, Scene, draw_scene, sample_scene

SEEDS = st.integers(0, 2**32 - 1)
# Repeatable, and no clock: the machine that runs the tests may be busy.
STEADY = settings(derandomize=True, deadline=None, max_examples=40, database=None)


@cache
def synthetic_sprites() -> Sprites:
    """Sprites of the full shape, straight-alpha RGBA, the same in every run."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (len(STYLES), len(CONCEPTS), 1, 1, 3))
    return Sprites({name: _sprites(colours, side) for name, side in SIZES.items()})


def _sprites(colours: np.ndarray, side: int) -> np.ndarray:
    middle = (side - 1) / 2
    rows, columns = np.mgrid[:side, :side]
    distance = np.maximum(abs(rows - middle), abs(columns - middle)) / middle
    alpha = np.clip((1 - distance) * 5, 0, 1) * 255
    shade = (0.4 + 0.6 * columns / side)[..., None]
    images = np.empty((*colours.shape[:2], side, side, 4), dtype=np.uint8)
    images[..., :3] = colours * shade
    images[..., 3] = alpha
    return images


def tiny_vae() -> AutoencoderTiny:
    """A random autoencoder of another size than the shipped one's, the same in every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return AutoencoderTiny(
            latent_channels=8,
            encoder_block_out_channels=(8,) * 4,
            decoder_block_out_channels=(8,) * 4,
            num_encoder_blocks=(0, 0, 1, 1),
            num_decoder_blocks=(1, 1, 0, 0),
            scaling_factor=1.7,
        )


def scenes_at(seed: int, count: int, *, held_out: bool | None = False) -> list[Scene]:
    """Some scenes; ``held_out`` None mixes both sides."""
    rng = random.Random(seed)
    if held_out is None:
        return [draw_scene(rng) for _ in range(count)]
    return [sample_scene(rng, held_out=held_out) for _ in range(count)]
