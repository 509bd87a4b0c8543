"""The picture as the tower saw it: which soft token stands where, and heat or words laid over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bridge.checks import keywords
from bridge.errors import OptionError, UnsupportedModelError
from bridge.images import load_images
from bridge.rgb import to_rgb
from bridge.vlm.model import BridgeVLM
from bridge.vlm.projectors.protocol import Grid, Projector
from bridge.vlm.views import AnyRes, Views
from bridge.vlm.vision import SoftTokens, patch_size

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw


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


def check_word(word: int | str, words: Sequence[str]) -> int:
    """The place of a word that is given by its place or as it is written. Raises OptionError."""
    if isinstance(word, Integral) and -len(words) <= word < len(words):
        return int(word)
    if isinstance(word, str) and words.count(word) == 1:
        return words.index(word)
    told = ", ".join(f"{place} {each!r}" for place, each in enumerate(words))
    why = "are several words" if word in words else "is no word"
    raise OptionError(f"There {why} {word!r}; give one by its number: {told}.")


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


# Orange for what speaks for a word, blue for what speaks against it: told apart by readers with
# any of the common kinds of colour blindness (Okabe & Ito, 2008).
FOR, AGAINST = (213, 94, 0), (0, 114, 178)
_OPACITY = 0.8


@keywords
def heat_overlay(
    picture: Image, cells: np.ndarray, *, scale: float | None = None, side: int = 512
) -> Image:
    """Heat over a picture that is paled: positive cells orange, negative ones blue.

    Args:
        picture: as the tower saw it.
        cells: (rows, columns); zero and NaN stay clear.
        scale: the value that is fully opaque (default: the largest magnitude, so that pictures
            compare only when given one scale).
        side: the longer side of what is returned, RGB, in pixels.
    """
    from PIL import Image

    shown = enlarged(picture, side)
    values = np.nan_to_num(np.asarray(cells, dtype=np.float32))
    top = float(np.abs(values).max()) if scale is None else scale
    level = np.clip(values / top, -1, 1) if top > 0 else values * 0
    # Bilinear between the cells' centres: a cell is no sharper than the window that made it.
    wide = Image.fromarray(level.astype(np.float32)).resize(shown.size, Image.Resampling.BILINEAR)
    # But what would not show by itself takes no colour from its neighbours.
    shows = np.abs(level) * _OPACITY * 255 >= 1
    own = Image.fromarray(shows).resize(shown.size, Image.Resampling.NEAREST)
    strength = (np.asarray(wide) * np.asarray(own))[..., None]
    base = np.asarray(shown, dtype=np.float32)
    pale = 0.45 * base.mean(-1, keepdims=True) + 0.25 * base + 0.3 * 255
    colour = np.where(strength > 0, np.asarray(FOR, np.float32), np.asarray(AGAINST, np.float32))
    opacity = _OPACITY * np.abs(strength)
    return Image.fromarray(np.rint(pale * (1 - opacity) + colour * opacity).astype(np.uint8))


@keywords
def lens_overlay(picture: Image, words: np.ndarray, *, side: int = 768) -> Image:
    """``words`` (rows, columns) of texts, each in its cell over the paled picture."""
    from PIL import Image
    from PIL import ImageDraw as Drawing

    large = enlarged(picture, side)
    shown = Image.blend(large, Image.new("RGB", large.size, "white"), 0.5)
    draw = Drawing.Draw(shown)
    rows, columns = words.shape
    wide, high = shown.width / columns, shown.height / rows
    for row in range(rows):
        for column in range(columns):
            left, top = column * wide, row * high
            draw.rectangle((left, top, left + wide, top + high), outline=(120, 120, 130))
            _write(draw, str(words[row, column]), left + wide / 2, top + high / 2, wide, high)
    return shown


def enlarged(picture: Image, side: int) -> Image:
    """The picture as RGB with its longer side at ``side``, small ones without blur."""
    from PIL import Image

    ratio = side / max(picture.size)
    size = (max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio)))
    smooth = Image.Resampling.BICUBIC if ratio < 2 else Image.Resampling.LANCZOS
    return to_rgb(picture).resize(size, smooth)


def _write(draw: ImageDraw, text: str, x: float, y: float, wide: float, high: float) -> None:
    """The text centred at (x, y), as large as fits, at least 6 pixels; nothing for ""."""
    from PIL import ImageFont

    if not text:
        return
    sizes = range(max(6, int(min(high * 0.4, 22))), 5, -1)
    fonts = [ImageFont.load_default(points) for points in sizes]
    font = next((f for f in fonts if draw.textlength(text, font=f) <= wide - 4), fonts[-1])
    draw.text((x, y), text, fill=(15, 23, 42), font=font, anchor="mm")
