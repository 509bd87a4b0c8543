"""Charts, curves and sheets of results as small files. matplotlib is in the extra ``train``."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from bridge.checks import needed
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


def draw_curve(
    log: Sequence[Mapping[str, float]], path: Path, title: str, along: str = "minutes"
) -> None:
    """Plot every logged figure over the figure ``along``, one small panel each.

    Nothing is drawn of an empty log. Raises MissingDependencyError without matplotlib.
    """
    if not log:
        return
    # No pyplot: it would choose how the program's own figures are shown.
    figures = needed("matplotlib.figure", "train", "a curve")
    names = [n for n in log[-1] if n not in ("step", "minutes")]
    figure = figures.Figure(figsize=(4 * len(names), 3))
    axes = figure.subplots(1, len(names), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        rows = [row for row in log if name in row]
        axis.plot([row[along] for row in rows], [row[name] for row in rows])
        axis.set(title=f"{title}: {name}", xlabel=along)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    save_figure(path, figure, dpi=80, colours=LINES)
