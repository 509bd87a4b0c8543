"""Pictures in a grid, each with its prompt beneath and a frame that says right or wrong."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from bridge.pictures import save_small

RIGHT, WRONG = (30, 140, 60), (205, 40, 40)
# Pictures at their own size: enlarged they show no more and take more bytes.
_PICTURE, _FRAME, _GAP, _FONT = 128, 5, 8, 13
_COLUMNS = 8


@dataclass(frozen=True)
class Cell:
    picture: Image.Image
    text: str
    right: bool


def grid(cells: Sequence[Cell], title: str, columns: int = _COLUMNS) -> Image.Image:
    """The cells in rows of ``columns`` under a title; a green frame is right, a red one wrong."""
    font, head = ImageFont.load_default(_FONT), ImageFont.load_default(18)
    width = _PICTURE + 2 * _FRAME
    lines = [textwrap.wrap(cell.text, 20) for cell in cells]
    deepest = max((len(rows) for rows in lines), default=0)
    height = width + 4 + deepest * (_FONT + 3)
    rows = -(-len(cells) // columns)
    top = 34
    size = (columns * (width + _GAP) + _GAP, top + rows * (height + _GAP))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 6), title, fill="black", font=head)
    for i, (cell, wrapped) in enumerate(zip(cells, lines, strict=True)):
        x = _GAP + i % columns * (width + _GAP)
        y = top + i // columns * (height + _GAP)
        draw.rectangle((x, y, x + width - 1, y + width - 1), fill=RIGHT if cell.right else WRONG)
        shown = cell.picture.convert("RGB").resize((_PICTURE, _PICTURE), Image.Resampling.LANCZOS)
        sheet.paste(shown, (x + _FRAME, y + _FRAME))
        text = "\n".join(wrapped)
        draw.multiline_text((x, y + width + 3), text, fill="black", font=font, spacing=3)
    return sheet


def save_grid(path: Path, cells: Sequence[Cell], title: str, columns: int = _COLUMNS) -> None:
    """Write a grid as a small picture, whole."""
    save_small(path, grid(cells, title, columns))
