"""``table``: the figures to reach beside what was measured, as benchmarks/results/README.md."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.files import write_whole


@dataclass(frozen=True)
class Figure:
    """A row of the table: what is measured, by which row of which file, and the two marks.

    ``least`` and ``aim`` are for models trained on a CPU and on a GPU; smaller is better where
    ``most`` is True.
    """

    what: str
    file: str
    row: str
    least: float
    aim: float
    most: bool = False

    def reached(self, value: float, mark: float) -> bool:
        return value <= mark if self.most else value >= mark


FIGURES = (
    Figure("single object right", "draw", "draw/single_object", 85, 97),
    Figure("two objects both right", "draw", "draw/two_objects", 55, 90),
    Figure("position right", "draw", "draw/position", 50, 85),
    Figure("counting right", "draw", "draw/counting", 45, 80),
    Figure("colour right", "draw", "draw/colour", 80, 95),
    Figure("attribute binding right", "draw", "draw/binding", 40, 80),
    Figure("answers right, held out", "ask", "ask/overall", 85, 92),
    Figure("the same, Gemma 3 270M", "ask-emoji-gemma", "ask/overall", 80, 92),
    Figure(
        "answers right, a projector fitted to words in closed form",
        "closed_form",
        "closed_form/words/overall",
        40,
        65,
    ),
    Figure("retrieval, R@1 of 256", "clip", "clip/r_at_1_of_256", 50, 80),
    Figure("a picture, 20 steps with guidance", "speed", "speed/picture/bridge", 10, 4, most=True),
    Figure("app ready", "app", "app/ready", 15, 8, most=True),
)


_ROWS = 12  # that the page shows of a table


def run_table(args: argparse.Namespace) -> None:
    """Print the table of the results in ``--out`` and write it there as README.md."""
    text = markdown(args.out)
    print(text)
    write_whole(args.out / "README.md", text.encode())


def markdown(folder: Path) -> str:
    """The table of one folder of results; what was not measured is said to be so."""
    tables = {path.stem: json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")}
    lines = [
        "# Results",
        "",
        "Written by `python benchmarks/compositional.py table` from the JSON files beside it;",
        "each of them names its command, machine, versions and commit. Brackets are 95 %",
        "intervals. Pictures: the grids `draw-*.webp` and `ask.webp` show the first ones, misses",
        "included (red frames).",
        "",
        "| what | measured | n | at least (CPU) | aim (GPU) |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [_line(figure, tables.get(figure.file)) for figure in FIGURES]
    for name in sorted(tables):
        lines += ["", f"## {name}", "", f"`{tables[name]['command']}`  ", tables[name]["machine"]]
        lines += ["", "| row | value | 95 % | n |", "| --- | --- | --- | --- |"]
        rows = tables[name]["rows"]
        lines += [
            f"| {row['name']} | {_amount(row['value'], row['unit'])} "
            f"| {row['low']:g}–{row['high']:g} | {row['n']} |"
            for row in rows[:_ROWS]
        ]
        if len(rows) > _ROWS:
            lines += ["", f"and {len(rows) - _ROWS} more rows in [{name}.json]({name}.json)."]
    return "\n".join(lines) + "\n"


def _line(figure: Figure, table: dict[str, Any] | None) -> str:
    unit = "s" if figure.most else "%"
    limit = "under " if figure.most else ""
    marks = [f"{limit}{_amount(mark, unit)}" for mark in (figure.least, figure.aim)]
    row = next((r for r in (table or {"rows": []})["rows"] if r["name"] == figure.row), None)
    if row is None:
        return f"| {figure.what} | not measured | | {marks[0]} | {marks[1]} |"
    signs = [
        "reached" if figure.reached(row["value"], mark) else "missed"
        for mark in (figure.least, figure.aim)
    ]
    measured = f"{_amount(row['value'], unit)} [{row['low']:g}, {row['high']:g}]"
    return (
        f"| {figure.what} | {measured} | {row['n']} "
        f"| {marks[0]}: {signs[0]} | {marks[1]}: {signs[1]} |"
    )


def _amount(value: float, unit: str) -> str:
    return f"{value:g} {unit}"
