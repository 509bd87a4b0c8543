"""Charts and sheets of results as small files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image

from bridge.files import write_whole

SHEET, CHART, LINES = 64, 32, 16  # colours enough for pictures, shaded areas, lines and text


def save_small(path: Path, picture: Image.Image, colours: int = SHEET) -> None:
    """Write a picture in at most so many colours, whole; ``path`` ends in .png or .webp.

    WebP keeps the same pixels in two thirds of PNG's bytes, of sheets with much text in half.
    """
    buffer = io.BytesIO()
    # Pillow's default method, the median cut, is further off with twice as many colours.
    few = picture.convert("RGB").quantize(
        colours, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE
    )
    # PNG reads `optimize` alone, WebP `lossless` alone.
    few.save(buffer, path.suffix.removeprefix("."), optimize=True, lossless=True)
    write_whole(path, buffer.getvalue())


def save_figure(path: Path, figure: Any, dpi: int, colours: int = SHEET) -> None:
    """Write a matplotlib figure as `save_small` writes a picture."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=dpi, format="png")
    save_small(path, Image.open(drawn), colours)
