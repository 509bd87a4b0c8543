"""Where soft tokens stand: the picture as the tower saw it, cut into cells."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bridge.errors import OptionError, UnsupportedModelError
from bridge.vlm.aspect import AnyRes
from bridge.vlm.counting import SoftTokens
from bridge.vlm.features import patch_size
from bridge.vlm.image import load_images
from bridge.vlm.preprocess import Views
from bridge.vlm.projectors.protocol import Grid, Projector

if TYPE_CHECKING:
    from PIL.Image import Image

    from bridge.vlm.model import BridgeVLM


@dataclass(frozen=True, eq=False)
class View:
    """A picture as a tower saw it (resized, cropped, padded), and the soft token of each cell."""

    picture: Image
    grid: Grid
    tokens: tuple[int, ...]  # row by row, the cell's index among the soft tokens; -1 for none

    def cells(self, values: np.ndarray) -> np.ndarray:
        """(M,) values of soft tokens to (rows, columns) of cells; NaN where a cell has none."""
        index = np.asarray(self.tokens)
        found = np.where(index >= 0, np.asarray(values, dtype=float)[index], np.nan)
        return found.reshape(self.grid)


def check_index(index: int, count: int, what: str) -> int:
    """``index``, from 0 or, below it, from the end. Raises OptionError."""
    if not isinstance(index, Integral) or not -count <= index < count:
        raise OptionError(f"There is no {what} {index!r}; give one from 0 to {count - 1}.")
    return index


def one_picture(image: Any) -> Image:
    """The one picture that an analysis is about, as RGB. Raises OptionError for none or several."""
    pictures = load_images(image)
    if len(pictures) != 1:
        raise OptionError(f"{len(pictures)} pictures were given; looking inside takes one")
    return pictures[0]


def views_of(vlm: BridgeVLM, views: Views) -> tuple[View, ...]:
    """The views of one preprocessed picture: one, or with anyres the whole and the tiles' plane.

    Raises UnsupportedModelError for a projector whose soft tokens stand for no place.
    """
    counted = vlm.count(*views.pixel_values.shape[-2:])
    tokens, grid = cell_tokens(vlm.projector, counted, vlm.name)
    seen = View(as_picture(vlm.image_processor, views.pixel_values[0]), grid, tokens)
    if not isinstance(vlm.aspect, AnyRes):
        return (seen,)
    return seen, _plane(vlm, vlm.aspect, views, counted.count)


def cell_tokens(
    projector: Projector | None, counted: SoftTokens, name: str
) -> tuple[tuple[int, ...], Grid]:
    """For each cell of a view its soft token (-1 for none), and the grid of the cells.

    A projector says by ``soft_grid(grid)`` how its soft tokens lie; one that does not, and gives
    one token a state, is taken to keep their order.
    """
    rows, columns = counted.grid
    told = getattr(projector, "soft_grid", None)
    if counted.layout and told is not None:
        grid = told(counted.layout)
    else:
        grid = counted.grid if told is None and counted.count == counted.states else None
    if grid is None:
        raise UnsupportedModelError(
            f"{name}: the soft tokens of the projector {counted.projector!r} stand for no place "
            "in the picture; occlusion works for any projector, lens and rollout need one that "
            "keeps the grid, such as 'mlp2x_gelu'"
        )
    if grid != counted.grid:
        return tuple(range(grid[0] * grid[1])), grid
    # States beside patches come first; where a patch was dropped, its cell has no token.
    first = counted.extra - counted.dropped
    return tuple(i + first if i + first >= 0 else -1 for i in range(rows * columns)), grid


def as_picture(image_processor: Any, pixels: torch.Tensor) -> Image:
    """(3, H, W) preprocessed pixels back to RGB."""
    from PIL import Image

    values = pixels.float().cpu().numpy().transpose(1, 2, 0)
    if getattr(image_processor, "do_normalize", True):
        mean, deviation = (
            np.asarray(getattr(image_processor, name, default), dtype=np.float32)
            for name, default in (("image_mean", 0.0), ("image_std", 1.0))
        )
        values = values * deviation + mean
    return Image.fromarray(np.clip(np.rint(values * 255), 0, 255).astype(np.uint8))


def _plane(vlm: BridgeVLM, aspect: AnyRes, views: Views, n_view: int) -> View:
    """The tiles put back together, without their padding. Newlines stand for no cell."""
    (size,) = views.sizes
    rows, columns = aspect.kept(n_view, size)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    down, across = aspect.tiles(size)
    tiles = views.pixel_values[1:].unflatten(0, (down, across))
    plane = tiles.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
    cell = plane.shape[1] / (down * math.isqrt(n_view))  # pixels, whole ones or nearly
    top, bottom, left, right = (
        round(edge * cell) for edge in (rows.start, rows.stop, columns.start, columns.stop)
    )
    shown = plane[:, top:bottom, left:right]
    # After the whole picture's tokens, row after row, each closed by a newline.
    tokens = tuple(n_view + r * (width + 1) + c for r in range(height) for c in range(width))
    return View(as_picture(vlm.image_processor, shown), (height, width), tokens)


def patches_of(vlm: BridgeVLM, views: Views) -> Grid:
    """The grid of the tower's patches in a picture's first view."""
    return vlm.count(*views.pixel_values.shape[-2:]).grid


def patch_pixels(vlm: BridgeVLM) -> tuple[int, int]:
    """Height and width of a patch of the tower. Raises UnsupportedModelError without a tower."""
    if vlm.vision is None:
        raise UnsupportedModelError(f"{vlm.name} is a model of text alone; it sees no patches")
    return patch_size(vlm.vision)
