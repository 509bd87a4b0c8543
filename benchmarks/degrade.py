"""How a small generative model spoils a picture, imitated to test the judge."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of (H, W, 3) with mirrored borders."""
    radius = max(1, round(3 * sigma))
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        width = [(radius, radius) if i == axis else (0, 0) for i in range(3)]
        padded = np.pad(pixels, width, mode="reflect")
        pixels = sum(
            weight * np.take(padded, np.arange(i, i + pixels.shape[axis]), axis=axis)
            for i, weight in enumerate(weights)
        )
    return pixels


def degrade(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur (sigma 0.8-1.2 px), a colour cast (up to 8 levels a channel), contrast (0.92-1.05),
    a displacement (up to 3 px each way) and noise (sigma 5 levels); uint8 in and out."""
    out = blur(pixels.astype(np.float32), rng.uniform(0.8, 1.2))
    out = (out - 128) * rng.uniform(0.92, 1.05) + 128 + rng.uniform(-8, 8, size=3)
    dy, dx = rng.integers(-3, 4, size=2)
    padded = np.pad(out, ((3, 3), (3, 3), (0, 0)), mode="edge")
    out = padded[3 + dy : 3 + dy + len(out), 3 + dx : 3 + dx + len(out)]
    out = out + rng.normal(0, 5, size=out.shape)
    return np.asarray(out.clip(0, 255).round().astype(np.uint8))


Degradation = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def noise(rng: np.random.Generator) -> np.ndarray:
    """A picture of noise in three grains, uint8 (128, 128, 3)."""
    grain = int(rng.choice((1, 4, 16)))
    small = rng.uniform(0, 255, size=(128 // grain, 128 // grain, 3))
    return small.repeat(grain, axis=0).repeat(grain, axis=1).astype(np.uint8)
