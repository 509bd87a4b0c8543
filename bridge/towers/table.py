"""The table of towers as text, for the command ``bridge towers`` and the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_HEADS = ("name", "family", "text", "pooled", "context", "layers", "image", "offline", "source")


def table_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line a row of `towers()`, in columns under a head: widths of states, context in tokens,
    ``image`` as width/patch@side."""
    cells = [_HEADS, *(_cells(row) for row in rows)]
    wide = [max(len(line[column]) for line in cells) for column in range(len(_HEADS))]
    return ["  ".join(map(str.ljust, line, wide)).rstrip() for line in cells]


def markdown_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The same as a Markdown table, with licence and notes."""
    heads = (*_HEADS, "licence", "notes")
    lines = [heads, ("---",) * len(heads)]
    lines += [(*_cells(row), row["licence"], row["notes"]) for row in rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    numbers = (row["text_width"], row["pooled_width"], row["context"], row["layers"])
    image = f"{row['image_width']}/{row['patch']}@{row['image_size']}" if row["patch"] else "-"
    offline = "yes" if row["at_hand"] else "no"
    counts = (str(number) if number else "-" for number in numbers)
    return (row["name"], row["family"], *counts, image, offline, row["source"])
