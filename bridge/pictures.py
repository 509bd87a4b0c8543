"""Charts and sheets of results as small files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image

from bridge.files import write_whole

_COLOURS = 128  # smooth edges survive, and a chart takes a third of its bytes


def save_small(path: Path, picture: Image.Image) -> None:
    """Write a picture in at most 128 colours, whole; ``path`` ends in .png or .webp.

    WebP keeps the same pixels in two thirds of PNG's bytes, of sheets with much text in half.
    """
    buffer = io.BytesIO()
    few = picture.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
    # PNG reads `optimize` alone, WebP `lossless` alone.
    few.save(buffer, path.suffix.removeprefix("."), optimize=True, lossless=True)
    write_whole(path, buffer.getvalue())


def save_figure(path: Path, figure: Any, dpi: int) -> None:
    """Write a matplotlib figure as `save_small` writes a picture."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=dpi, format="png")
    save_small(path, Image.open(drawn))
