"""Patches blanked: the soft tokens of a picture in which some patches say nothing.

Two ways to blank, by what they leave out:

- "colour": the patch's pixels become the picture's mean colour, and the tower looks again
  (Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", 2014). The picture
  itself lacks the patch; nothing of it is left in its neighbours' states.
- "state": the tower's state of the patch becomes the mean of the picture's patch states. The
  tower has seen everything; what its other states hold of the patch stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from bridge.errors import OptionError
from bridge.rgb import to_rgb
from bridge.vlm.aspect import AnyRes
from bridge.vlm.features import image_states
from bridge.vlm.inside.places import as_picture, patch_pixels, patches_of
from bridge.vlm.parts import numbers_of
from bridge.vlm.preprocess import Views
from bridge.vlm.projectors.protocol import Grid

if TYPE_CHECKING:
    from PIL.Image import Image

    from bridge.vlm.model import BridgeVLM

Fill = Literal["colour", "state"]


@dataclass(frozen=True, eq=False)
class Canvas:
    """One picture, ready to be blanked. ``grid`` is that of the tower's patches; with anyres, of
    the whole picture's view, and cells are blanked in the picture before it is tiled."""

    vlm: BridgeVLM
    picture: Image
    views: Views
    grid: Grid

    @property
    def seen(self) -> Image:
        """The picture as the tower sees it."""
        return as_picture(self.vlm.image_processor, self.views.pixel_values[0])

    @torch.inference_mode()
    def soft(self, masks: np.ndarray, fill: Fill, batch: int = 16) -> list[torch.Tensor]:
        """The soft tokens (M, D_llm) for each of K masks, bool (K, rows, columns), True = blank."""
        make = {"colour": self._without_pixels, "state": self._without_states}[fill]
        parts = [masks[i : i + batch] for i in range(0, len(masks), batch)]
        return [soft for part in parts for soft in make(torch.from_numpy(part))]

    def blanked(self, mask: np.ndarray) -> Image:
        """What the tower sees when the mask's patches have the mean colour."""
        views = self._blanked(torch.from_numpy(mask[None]))
        return as_picture(self.vlm.image_processor, views.pixel_values[0])

    def _without_pixels(self, masks: torch.Tensor) -> list[torch.Tensor]:
        return self.vlm.picture_tokens(self._blanked(masks))

    def _blanked(self, masks: torch.Tensor) -> Views:
        if isinstance(self.vlm.aspect, AnyRes):
            return _required(self.vlm.views([paint_out(self.picture, m.numpy()) for m in masks])[0])
        pixels = self.views.pixel_values
        wide = _over_pixels(masks, patch_pixels(self.vlm), pixels.shape[-2:])
        mean = pixels.mean((-2, -1), keepdim=True)
        shown = torch.where(wide[:, None], mean, pixels)
        return Views(shown, (1,) * len(masks), self.views.sizes * len(masks))

    def _without_states(self, masks: torch.Tensor) -> list[torch.Tensor]:
        vlm = self.vlm
        projector: Any = vlm.projector
        counted = vlm.count(*self.views.pixel_values.shape[-2:])
        pixels = self.views.pixel_values
        states = image_states(
            vlm.vision,  # type: ignore[arg-type]
            pixels.to(numbers_of(vlm.vision, pixels)),
            vlm.select_layer,
            vlm.select_feature,
        )
        # States beside patches come first and stay; a patch that was dropped has no state.
        first = counted.extra - counted.dropped
        patches = states[:, max(first, 0) :]
        flat = masks.flatten(1)[:, max(-first, 0) :, None].to(states.device)
        without = torch.where(flat, patches.mean(1, keepdim=True), patches)
        kept = states[:, : max(first, 0)].expand(len(masks), -1, -1)
        whole = torch.cat([kept, without], dim=1)
        whole = whole.to(numbers_of(projector, whole))
        return list(projector(whole, counted.layout))


def canvas(vlm: BridgeVLM, picture: Image, fill: Fill = "colour") -> Canvas:
    """Preprocess ``picture`` for blanking.

    Raises OptionError for an unknown ``fill``, and for "state" with anyres, where a patch of the
    picture is in several views at once.
    """
    if fill not in ("colour", "state"):
        raise OptionError(f"fill is {fill!r}; it is 'colour' or 'state'")
    if fill == "state" and isinstance(vlm.aspect, AnyRes):
        raise OptionError("fill='state' is for models with one view a picture; take 'colour'")
    views = _required(vlm.views([picture])[0])
    return Canvas(vlm, picture, views, patches_of(vlm, views))


def mask_of(patches: Sequence[tuple[int, int]], grid: Grid) -> np.ndarray:
    """(row, column) pairs as a mask, bool (rows, columns). Raises OptionError beyond the grid."""
    mask = np.zeros(grid, dtype=bool)
    for patch in patches:
        try:
            row, column = patch
            inside = 0 <= row < grid[0] and 0 <= column < grid[1]
        except (TypeError, ValueError):
            inside = False
        if not inside:
            raise OptionError(
                f"the patch {patch!r} is not in the grid; give (row, column) pairs of "
                f"{grid[0]} rows and {grid[1]} columns, counted from 0"
            )
        mask[row, column] = True
    return mask


def paint_out(picture: Image, mask: np.ndarray) -> Image:
    """The picture with the mask's cells, fractions of its size, in its mean colour."""
    from PIL import Image

    pixels = np.asarray(to_rgb(picture)).copy()
    colour = np.rint(pixels.reshape(-1, 3).mean(0)).astype(np.uint8)
    edges = [
        np.rint(np.linspace(0, size, cells + 1)).astype(int)
        for size, cells in zip(pixels.shape, mask.shape, strict=False)
    ]
    for row, column in np.argwhere(mask):
        down = slice(edges[0][row], edges[0][row + 1])
        pixels[down, edges[1][column] : edges[1][column + 1]] = colour
    return Image.fromarray(pixels)


def _over_pixels(masks: torch.Tensor, patch: tuple[int, int], size: Sequence[int]) -> torch.Tensor:
    """(K, rows, columns) of patches to (K, H, W) of pixels; beyond the last patch nothing."""
    wide = masks.repeat_interleave(patch[0], 1).repeat_interleave(patch[1], 2)
    out = masks.new_zeros(len(masks), *size)
    out[:, : wide.shape[1], : wide.shape[2]] = wide
    return out


def _required(views: Views | None) -> Views:
    assert views is not None  # one picture was given
    return views
