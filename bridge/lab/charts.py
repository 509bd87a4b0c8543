"""Charts as inline SVG: no scripts, colours from the page, readable as text by a screen reader."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

# As wide as a phone, so that it never scrolls; the page enlarges it.
_LEFT, _ROW, _WIDE, _RIGHT = 104, 24, 440, 16


def strips(
    rows: Mapping[str, Sequence[tuple[str, float, str]]],
    chance: Mapping[str, float],
    series: Sequence[str],
    title: str,
) -> str:
    """A strip a row, a dot a value: ``rows[label] = [(series, value, hint), ...]``.

    The axis runs from below the lowest value, or from 0.5, to 1. A dashed line a series is its
    chance, where that is on the axis. Each series has a lane of its own in the strip, and a colour
    ``--s0`` ...
    """
    known = [v for row in rows.values() for _, v, _ in row if not math.isnan(v)]
    step = 0.1 if not known or min(known) >= 0.5 else 0.2
    low = max(-1.0, step * math.floor(min(0.5, *known) / step)) if known else 0.5
    lane = _ROW * max(1, len(series)) / 2 + 8
    high = 30 + lane * len(rows)

    def x(value: float) -> float:
        return _LEFT + (value - low) / (1 - low) * (_WIDE - _LEFT - _RIGHT)

    drawn = [
        f'<svg viewBox="0 0 {_WIDE} {high + 4:.0f}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
    ]
    for at in range(round((1 - low) / step) + 1):
        value = 1 - at * step
        drawn.append(
            f'<line class="axis" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="4" '
            f'y2="{high - 22:.1f}"/><text class="tick" x="{x(value):.1f}" y="{high - 6:.1f}" '
            f'text-anchor="middle">{value:.1f}</text>'
        )
    for number, name in enumerate(series):
        line = chance.get(name, math.nan)
        if low <= line <= 1:
            drawn.append(
                f'<line class="chance" style="stroke:var(--s{number % 6})" x1="{x(line):.1f}" '
                f'x2="{x(line):.1f}" y1="4" y2="{high - 22:.1f}">'
                f"<title>{escape(name)}: chance {line:.3f}</title></line>"
            )
    for place, (label, values) in enumerate(rows.items()):
        top = 6 + lane * place
        drawn.append(
            f'<text class="label" x="{_LEFT - 8}" y="{top + lane / 2 + 2:.1f}" '
            f'text-anchor="end">{escape(label)}</text>'
        )
        for name, value, hint in values:
            if math.isnan(value):
                continue
            number = list(series).index(name)
            y = top + lane * (number + 1) / (len(series) + 1)
            drawn.append(
                f'<circle cx="{x(max(low, value)):.1f}" cy="{y:.1f}" r="4.5" '
                f'style="fill:var(--s{number % 6})"><title>{escape(hint)}</title></circle>'
            )
    return "".join([*drawn, "</svg>"])


def legend(series: Sequence[str]) -> str:
    """The colours' names."""
    items = (
        f'<li><span class="swatch" style="background:var(--s{at % 6})"></span>'
        f"<bdi>{escape(name)}</bdi></li>"
        for at, name in enumerate(series)
    )
    return f'<ul class="legend">{"".join(items)}</ul>'
