"""One self-contained HTML page of a study: no network, no scripts, all text escaped.

What the page says is worked out here, how it looks is in ``report.jinja``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.lab.heat_overlay import overlay
from bridge.lab.variants import ORIGINAL
from bridge.page import page_environment

if TYPE_CHECKING:
    from bridge.lab.result import Study

Row = dict[str, Any]
_HEADINGS = {
    "pooled_cosine": "pooled cosine",
    "pooled_above_chance": "above chance",
    "pooled_centred": "pooled, centred",
    "token_cosine": "token cosine",
    "token_centred": "token, centred",
    "pieces_per_word": "pieces a word",
    "leave_one_out": "effect",
    "leave_one_out_centred": "effect, centred",
    "rollout_share": "share by rollout",
    "effective_rank": "effective rank",
    "kendall_tau": "Kendall's τ",
    "cka": "CKA",
    "token_chance": "chance of tokens",
    "pixel_distance": "pixel distance",
    "tower_distance": "tower distance",
}


def page(study: Study) -> str:
    """The whole page."""
    environment = page_environment(Path(__file__).parent)
    environment.filters.update(heading=_heading, figure=_figure)
    prompts = study.settings["prompts"]
    facts = [f"{study.settings['variants']} variants", f"{len(study.towers)} towers"]
    if study.drawn:
        facts.append(f"{len(study.drawn)} pictures by {study.settings['model']}")
    return environment.get_template("report.jinja").render(
        title=prompts[0] if len(prompts) == 1 else f"{len(prompts)} prompts",
        facts=facts,
        towers=study.towers.to_dict("records"),
        prompts=[_section(study, prompt) for prompt in prompts],
        verdicts=study.verdicts.to_dict("records"),
        settings=study.settings,
    )


def _section(study: Study, prompt: str) -> Row:
    """What the page says of one prompt."""
    rows = _rows_of(study.table, prompt)
    words = _rows_of(study.words, prompt)
    chance = {row["tower"]: row["chance"] for row in study.towers.to_dict("records")}
    operations: dict[str, list[Row]] = {}
    for row in rows:
        if row["operation"] != ORIGINAL:
            operations.setdefault(row["operation"], []).append(row)
    return {
        "prompt": prompt,
        "strips": strips(operations, chance) if operations else None,
        "pictures": _cards(study, prompt),
        "words": [(tower, _marked(words, tower)) for tower in chance] if words else [],
        "word_rows": words,
        "sets": _rows_of(study.sets, prompt),
        "pairs": _rows_of(study.pairs, prompt),
        "rows": rows,
    }


def _rows_of(table: Any, prompt: str) -> list[Row]:
    """The rows of one prompt, which need not say it."""
    rows = [row for row in table.to_dict("records") if row["prompt"] == prompt]
    return [{name: value for name, value in row.items() if name != "prompt"} for row in rows]


def _marked(words: Sequence[Row], tower: str) -> list[tuple[float, Row]]:
    """A tower's words, each with how much it matters beside the one that matters most."""
    own = [row for row in words if row["tower"] == tower]
    effects = [0.0 if _unknown(each := row["leave_one_out"]) else max(0.0, each) for row in own]
    top = max(effects, default=0.0) or 1.0
    return [(effect / top, row) for effect, row in zip(effects, own, strict=True)]


def _cards(study: Study, prompt: str) -> list[Row]:
    """The pictures of one prompt, with what is written below each."""
    return [
        {
            "image": drawn.image,
            "text": row["text"],
            "lines": _lines(row),
            "heat": [(word, overlay(drawn.image, heat)) for word, heat in drawn.heat.items()],
        }
        for row, drawn in zip(study.pictures.to_dict("records"), study.drawn, strict=True)
        if row["prompt"] == prompt
    ]


def _lines(row: Row) -> list[str]:
    by = "" if row["choice"] == "whole" else f", by {row['choice']}"
    distances = [name for name in ("pixel_distance", "tower_distance") if name in row]
    if row["operation"] == ORIGINAL:
        distances = []
    judged = [name for name in row if name.startswith("judge_")]
    return [
        f"{row['operation']}, seed {row['seed']}{by}",
        *(f"{_HEADINGS[name]} {_figure(row[name])}" for name in distances),
        *(f"{name.removeprefix('judge_')} {_figure(row[name])}" for name in judged),
    ]


def _heading(column: str) -> str:
    return _HEADINGS.get(column, column)


def _unknown(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _figure(value: Any) -> str:
    """A number in few digits; a dash for what is not known."""
    if _unknown(value):
        return "–"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) >= 2 else f"{value:.3f}"
    return str(value)


# ---------------------------------------------------------------- the chart

# As wide as a phone, so that it never scrolls; the page enlarges it.
_LEFT, _ROW, _WIDTH, _RIGHT = 104, 24, 440, 16
_COLOURS = 6


@dataclass(frozen=True)
class Strips:
    """A strip per operation, a dot per variant and tower; all lengths in the SVG's units.

    Attributes:
        legend: ``(colour, tower)``.
        height: of the whole.
        floor: where the axis ends.
        ticks: ``(x, value)``.
        chances: ``(x, colour, tower, value)`` of each tower whose chance is on the axis.
        rows: ``(y, label, dots)``, a dot being ``(x, y, colour, hint)``.
    """

    legend: Sequence[tuple[int, str]]
    height: float
    floor: float
    ticks: Sequence[tuple[float, float]]
    chances: Sequence[tuple[float, int, str, float]]
    rows: Sequence[tuple[float, str, Sequence[tuple[float, float, int, str]]]]
    width: int = _WIDTH
    left: int = _LEFT - 8
    title: str = "Cosine by operation"


def strips(operations: Mapping[str, Sequence[Row]], chance: Mapping[str, float]) -> Strips:
    """The chart of pooled cosines.

    The axis runs from below the lowest value and chance, or from 0.5, to 1. Each tower has a lane
    of its own in the strip, and a colour.

    Args:
        operations: the rows of the table by operation.
        chance: of each tower, in the order of its colours.
    """
    cosines = [row["pooled_cosine"] for rows in operations.values() for row in rows]
    known = [value for value in (*cosines, *chance.values()) if not _unknown(value)]
    step = 0.1 if not known or min(known) >= 0.5 else 0.2
    low = max(-1.0, step * math.floor(min(0.5, *known) / step)) if known else 0.5
    lane = _ROW * max(1, len(chance)) / 2 + 8
    height = 34 + lane * len(operations)
    towers = list(chance)

    def x(value: float) -> float:
        return _LEFT + (value - low) / (1 - low) * (_WIDTH - _LEFT - _RIGHT)

    def dots(top: float, rows: Sequence[Row]) -> list[tuple[float, float, int, str]]:
        return [
            (
                x(max(low, row["pooled_cosine"])),
                top + lane * (towers.index(row["tower"]) + 1) / (len(towers) + 1),
                towers.index(row["tower"]) % _COLOURS,
                f"{row['tower']} · {row['text']} · {_figure(row['pooled_cosine'])}",
            )
            for row in rows
            if not _unknown(row["pooled_cosine"])
        ]

    values = [1 - at * step for at in range(round((1 - low) / step) + 1)]
    return Strips(
        [(at % _COLOURS, tower) for at, tower in enumerate(towers)],
        height,
        height - 26,
        [(x(value), value) for value in values],
        [
            (x(value), at % _COLOURS, tower, value)
            for at, (tower, value) in enumerate(chance.items())
            if low <= value <= 1
        ],
        [
            (6 + lane * (at + 0.5) + 2, operation, dots(6 + lane * at, rows))
            for at, (operation, rows) in enumerate(operations.items())
        ],
    )
