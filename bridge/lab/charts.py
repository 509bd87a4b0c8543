"""Charts as inline SVG: no scripts, colours from the page, readable as text by a screen reader."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from bridge.markup import Markup, fill, joined

# As wide as a phone, so that it never scrolls; the page enlarges it.
_LEFT, _ROW, _WIDE, _RIGHT = 104, 24, 440, 16


def strips(
    rows: Mapping[str, Sequence[tuple[str, float, str]]],
    chance: Mapping[str, float],
    series: Sequence[str],
    title: str,
) -> Markup:
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
        fill(
            '<svg viewBox="0 0 {} {:.0f}" role="img" aria-label="{}"><title>{}</title>',
            _WIDE,
            high + 4,
            title,
            title,
        )
    ]
    for at in range(round((1 - low) / step) + 1):
        value = 1 - at * step
        drawn.append(
            fill(
                '<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{end:.1f}"/>'
                '<text class="tick" x="{x:.1f}" y="{foot:.1f}" text-anchor="middle">{value:.1f}'
                "</text>",
                x=x(value),
                end=high - 22,
                foot=high - 6,
                value=value,
            )
        )
    for number, name in enumerate(series):
        line = chance.get(name, math.nan)
        if low <= line <= 1:
            drawn.append(
                fill(
                    '<line class="chance" style="stroke:var(--s{colour})" x1="{x:.1f}" '
                    'x2="{x:.1f}" y1="4" y2="{end:.1f}">'
                    "<title>{name}: chance {line:.3f}</title></line>",
                    colour=number % 6,
                    x=x(line),
                    end=high - 22,
                    name=name,
                    line=line,
                )
            )
    for place, (label, values) in enumerate(rows.items()):
        top = 6 + lane * place
        drawn.append(
            fill(
                '<text class="label" x="{}" y="{:.1f}" text-anchor="end">{}</text>',
                _LEFT - 8,
                top + lane / 2 + 2,
                label,
            )
        )
        for name, value, hint in values:
            if math.isnan(value):
                continue
            number = list(series).index(name)
            y = top + lane * (number + 1) / (len(series) + 1)
            drawn.append(
                fill(
                    '<circle cx="{:.1f}" cy="{:.1f}" r="4.5" style="fill:var(--s{})">'
                    "<title>{}</title></circle>",
                    x(max(low, value)),
                    y,
                    number % 6,
                    hint,
                )
            )
    return joined([*drawn, Markup("</svg>")])


def legend(series: Sequence[str]) -> Markup:
    """The colours' names."""
    items = (
        fill(
            '<li><span class="swatch" style="background:var(--s{})"></span><bdi>{}</bdi></li>',
            at % 6,
            name,
        )
        for at, name in enumerate(series)
    )
    return fill('<ul class="legend">{}</ul>', joined(items))
