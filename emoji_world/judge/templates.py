"""Every sprite the judge can look for, prepared for fast comparison with a picture.

A template is one concept in one style, size and tint. Over a plain background of colour b, a
sprite of colour c and opacity a looks like a·c + (1 - a)·b, so it differs from the empty
background by a·c - a·b: linear in b. The bank therefore keeps a·c and a, and makes the
difference for any background with one subtraction.

Two resolutions: *coarse* (4-pixel blocks, projected on their main components: to find what
may stand where) and *half* (2-pixel blocks: to decide).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from emoji_world.art import Sprites
from emoji_world.render import tinted
from emoji_world.scenes import BACKGROUNDS, SIZES, STYLES, TINTS

LOOKS: tuple[str | None, ...] = (None, *TINTS)  # natural colours and the six tints
COARSE = 4
HALF = 2
COMPONENTS = 48
SMOOTH = 1.0  # pixels: template and picture are both blurred, so that a soft picture still fits


def pool(pixels: np.ndarray, block: int) -> np.ndarray:
    """Mean over ``block`` x ``block`` pixels of (..., H, W, C)."""
    *lead, height, width, channels = pixels.shape
    shape = (*lead, height // block, block, width // block, block, channels)
    return pixels.reshape(shape).mean(axis=(-4, -2), dtype=np.float32)


def smooth(pixels: np.ndarray, sigma: float = SMOOTH) -> np.ndarray:
    """Gaussian blur of (..., H, W, C), with nothing (zeros) beyond the border."""
    radius = round(3 * sigma)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (-3, -2):
        width = [(0, 0)] * pixels.ndim
        width[axis] = (radius, radius)
        padded, size = np.pad(pixels, width), pixels.shape[axis]
        pieces = (
            np.take(padded, range(i, i + size), axis=axis) * weight
            for i, weight in enumerate(weights)
        )
        pixels = sum(pieces, start=np.zeros(1, dtype=np.float32))
    return pixels


@dataclass(frozen=True)
class Template:
    """What a template shows; ``concept`` is the index into ``emoji_world``'s CONCEPTS."""

    concept: int
    style: str
    size: str
    tint: str | None


@dataclass(frozen=True)
class SizeBank:
    """The templates of one size. Row r shows look r % 7 of sprite r // 7; sprites run over
    styles, then concepts.

    colour: uint8 (rows, h, h, 3), a·c at half resolution; opacity: uint8 (sprites, h, h, 1);
    basis: float (coarse pixels · 3, COMPONENTS); near: float (rows, COMPONENTS), a·c on the
    basis; veil: float (3, sprites, COMPONENTS), a on the basis for each colour channel.
    """

    size: str
    side: int
    colour: np.ndarray
    opacity: np.ndarray
    basis: np.ndarray
    near: np.ndarray
    veil: np.ndarray

    def projected(self, background: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coarse differences from ``background`` on the basis, (rows, COMPONENTS), and their
        squared lengths."""
        veil = np.tensordot(background.astype(np.float32), self.veil, axes=1)
        on_basis = self.near - np.repeat(veil, len(LOOKS), axis=0)
        return on_basis, np.einsum("rk,rk->r", on_basis, on_basis)

    def half(self, rows: np.ndarray, background: np.ndarray) -> np.ndarray:
        """Differences from ``background`` at half resolution, float (len(rows), h, h, 3)."""
        opacity = self.opacity[rows // len(LOOKS)].astype(np.float32) / 255
        return self.colour[rows].astype(np.float32) - opacity * background.astype(np.float32)


@dataclass(frozen=True)
class Bank:
    """All templates; ``concepts`` names the concept of each column of the sprites."""

    sprites: Sprites
    concepts: tuple[int, ...]
    sizes: tuple[SizeBank, ...]
    _projected: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def template(self, size: str, row: int) -> Template:
        sprite, look = divmod(row, len(LOOKS))
        style, column = divmod(sprite, len(self.concepts))
        return Template(self.concepts[column], STYLES[style], size, LOOKS[look])

    def projected(self, bank: SizeBank, background: str) -> tuple[np.ndarray, np.ndarray]:
        """``bank.projected`` for a named background, kept."""
        key = (bank.size, background)
        if key not in self._projected:
            self._projected[key] = bank.projected(np.array(BACKGROUNDS[background]))
        return self._projected[key]

    def opacity(self, template: Template) -> np.ndarray:
        """The template's opacity in [0, 1] at full resolution, float (side, side)."""
        column = self.concepts.index(template.concept)
        sprite = self.sprites.get(template.style, column, template.size)
        return sprite[..., 3].astype(np.float32) / 255


def build_bank(sprites: Sprites, concepts: Sequence[int] | None = None) -> Bank:
    """Prepare ``sprites``; ``concepts`` tells which concept each column shows (default: all,
    in order)."""
    columns = sprites.images["normal"].shape[1]
    known = tuple(range(columns)) if concepts is None else tuple(concepts)
    return Bank(sprites, known, tuple(_size_bank(sprites, size) for size in SIZES))


def _size_bank(sprites: Sprites, size: str) -> SizeBank:
    side = SIZES[size]
    flat = sprites.images[size].reshape(-1, side, side, 4)
    opacity = flat[..., 3:].astype(np.float32) / 255
    colour = np.stack(
        [pool(smooth(tinted(flat, look)[..., :3] * opacity), HALF) for look in LOOKS], axis=1
    ).reshape(-1, side // HALF, side // HALF, 3)
    thin = pool(smooth(opacity * 255), HALF)
    step = COARSE // HALF
    near = pool(colour, step).reshape(len(colour), -1)
    alpha = pool(thin, step).reshape(len(thin), -1) / 255
    basis = _basis(near, alpha)
    weights = basis.reshape(alpha.shape[1], 3, -1)
    veil = np.stack([alpha @ weights[:, channel] for channel in range(3)])
    return SizeBank(
        size=size,
        side=side,
        colour=colour.round().astype(np.uint8),
        opacity=thin.round().astype(np.uint8),
        basis=basis,
        near=near @ basis,
        veil=veil,
    )


def _basis(near: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The main directions of the templates' differences over all backgrounds."""
    dimensions = near.shape[1]
    second = np.zeros((dimensions, dimensions), dtype=np.float32)
    for background in BACKGROUNDS.values():
        veil = alpha[:, :, None] * np.array(background, dtype=np.float32)
        rows = near - np.repeat(veil.reshape(len(alpha), -1), len(LOOKS), axis=0)
        second += rows.T @ rows
    _, vectors = np.linalg.eigh(second)
    return np.ascontiguousarray(vectors[:, -min(COMPONENTS, dimensions) :], dtype=np.float32)


@lru_cache(maxsize=1)
def full_bank() -> Bank:
    """The bank of the whole artwork; fetched and rendered first where the cache has none."""
    from emoji_world.art import load_sprites

    return build_bank(load_sprites())
