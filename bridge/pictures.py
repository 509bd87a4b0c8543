"""Charts and sheets of results as small PNG files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image

from bridge.files import write_whole

_COLOURS = 128  # smooth edges survive, and a chart takes a third of its bytes


def save_small(path: Path, picture: Image.Image) -> None:
    """Write a picture as a PNG of at most 128 colours, whole."""
    buffer = io.BytesIO()
    few = picture.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
    few.save(buffer, "PNG", optimize=True)
    write_whole(path, buffer.getvalue())


def save_figure(path: Path, figure: Any, dpi: int) -> None:
    """Write a matplotlib figure as `save_small` writes a picture."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=dpi, format="png")
    save_small(path, Image.open(drawn))
