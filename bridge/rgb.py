"""A PIL picture of any mode as RGB: transparency over white, wide greys in their whole range."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

# PIL cannot turn these into RGB but by way of their own unpremultiplied mode.
_PREMULTIPLIED = {"RGBa": "RGBA", "La": "LA"}


def to_rgb(picture: Image) -> Image:
    """Any mode to RGB, over white where it is transparent. Never ``picture`` itself."""
    from PIL import Image

    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture.copy()
    if is_wide(picture):
        return _grey_of_wide(picture).convert("RGB")
    if is_transparent(picture):
        rgba = picture.convert(_PREMULTIPLIED.get(picture.mode, picture.mode)).convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")


def is_transparent(picture: Image) -> bool:
    """Whether it has alpha: a channel, or a colour that stands for it."""
    return picture.mode in {"RGBA", "LA", "PA", *_PREMULTIPLIED} or "transparency" in picture.info


def is_wide(picture: Image) -> bool:
    """Whether it is grey of more than 8 bits, which PIL's own conversion clips."""
    return picture.mode.startswith(("I", "F"))


def _grey_of_wide(picture: Image) -> Image:
    """16-bit, 32-bit and float grey to 8 bits. PIL's own conversion clips instead of scaling."""
    import numpy as np
    from PIL import Image

    values = np.nan_to_num(np.asarray(picture, dtype=np.float64))
    top = float(values.max())
    if picture.mode.startswith("I;16"):
        scale = 255.0 / 65535.0
    elif picture.mode == "F":
        scale = 255.0 if top <= 1.0 else 1.0
    else:
        # Mode "I" carries no depth: 8-bit values as they are, 16-bit ones scaled, else by the top.
        scale = 1.0 if top <= 255 else 255.0 / max(65535.0, top)
    return Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8))
