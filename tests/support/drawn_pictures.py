"""Pictures of every mode and of odd sizes: seeded, so that a number names a picture for good."""

from __future__ import annotations

import random

from PIL import Image

MODES = ("RGB", "RGBA", "LA", "P", "L", "CMYK", "I;16", "1", "PA", "RGBa", "I", "F", "YCbCr")


def picture(number: int, size: tuple[int, int] | None = None) -> Image.Image:
    """A picture of the number's mode, smooth and noisy in parts."""
    rng = random.Random(f"picture/{number}")
    mode = MODES[number % len(MODES)]
    wide, high = size or (rng.randint(4, 120), rng.randint(4, 120))
    noise = Image.frombytes("L", (wide, high), rng.randbytes(wide * high))
    smooth = Image.linear_gradient("L").resize((wide, high))
    bands = [noise, smooth, smooth.transpose(Image.Transpose.ROTATE_180), noise.rotate(180)]
    if mode in ("I;16", "I", "F"):
        deep = Image.frombytes("I;16", (wide, high), rng.randbytes(2 * wide * high))
        return deep if mode == "I;16" else deep.convert("I").convert(mode)
    if mode == "P":
        made = Image.merge("RGB", bands[:3]).quantize(17)
        if number % 2:
            made.info["transparency"] = 3
        return made
    rgba = Image.merge("RGBA", bands)
    if mode in ("RGBA", "RGBa"):
        return rgba.convert(mode)
    if mode in ("LA", "PA"):
        return Image.merge("LA", bands[:2]).convert(mode)
    return rgba.convert("RGB").convert(mode)
