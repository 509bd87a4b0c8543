"""Heat and words laid over the picture that a tower saw, as PIL images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bridge.rgb import to_rgb

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

# Orange for what speaks for a word, blue for what speaks against it: told apart by readers with
# any of the common kinds of colour blindness (Okabe & Ito, 2008).
FOR, AGAINST = (213, 94, 0), (0, 114, 178)
_OPACITY = 0.8


def heat_overlay(
    picture: Image, cells: np.ndarray, *, scale: float | None = None, side: int = 512
) -> Image:
    """``cells`` (rows, columns) over ``picture``, RGB, its longer side ``side`` pixels.

    The picture is paled; positive cells become orange and negative ones blue, the more opaque the
    larger. ``scale`` is what is fully opaque (default: the largest magnitude, so that pictures
    compare only when given one scale). Cells of zero stay clear, as do those of NaN.
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
