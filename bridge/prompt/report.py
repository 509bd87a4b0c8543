"""The token report: which tokens a prompt becomes, with which weight, and what is cut off.

Fast enough for every keystroke, and free of torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from bridge.markup import Markup, fill, joined
from bridge.prompt.loras import as_written, take_tags
from bridge.prompt.plan import Token, TokenPlan, Window, plan
from bridge.prompt.syntax import parse

# How much of a cut-off text is quoted; to_dict() has all of it.
_QUOTED = 200
# How many windows the HTML shows; a person reads no more of a prompt of ten thousand words.
SHOWN_WINDOWS = 8


@dataclass(frozen=True)
class TokenRow:
    """One token of a report: the text it stands for, its id, its span in the prompt, its weight.

    ``part`` and ``parts`` count the tokens that share one span (an emoji is often four);
    ``window`` counts the fillings of the context from 0.
    """

    text: str
    id: int
    start: int
    end: int
    special: bool
    part: int = 1
    parts: int = 1
    weight: float = 1.0
    window: int = 0


@dataclass(frozen=True)
class TowerReport:
    """One tower's share of a report.

    ``used`` counts the tokens of all windows, BOS and EOS included; ``limit`` is the context of
    one window, ``windows`` how many there are.
    """

    name: str
    rows: tuple[TokenRow, ...]
    used: int
    limit: int
    cut: str
    cut_tokens: int
    windows: int = 1


@dataclass(frozen=True)
class TokenReport:
    """What every tower reads of one prompt."""

    prompt: str
    towers: tuple[TowerReport, ...]

    @property
    def is_cut(self) -> bool:
        """Whether any tower loses text."""
        return any(tower.cut_tokens for tower in self.towers)

    def text(self) -> str:
        """The report as plain text, one line of tokens a tower."""
        return "\n".join(_tower_text(tower) for tower in self.towers)

    def html(self) -> str:
        """The report as an HTML fragment. All text is escaped and kept apart by direction."""
        return str(self.__html__())

    def __html__(self) -> Markup:
        return fill('<div class="bridge-tokens">{}</div>', joined(map(_tower_html, self.towers)))

    def to_dict(self) -> dict[str, Any]:
        """The report as plain lists, dicts, strings and numbers, ready for JSON."""
        return {
            "prompt": self.prompt,
            "towers": [
                {
                    "name": t.name,
                    "used": t.used,
                    "limit": t.limit,
                    "windows": t.windows,
                    "cut": t.cut,
                    "cut_tokens": t.cut_tokens,
                    "tokens": [
                        {
                            "text": r.text,
                            "id": r.id,
                            "span": [r.start, r.end],
                            "special": r.special,
                            "weight": r.weight,
                            "window": r.window,
                        }
                        for r in t.rows
                    ],
                }
                for t in self.towers
            ],
        }


def plan_report(
    prompt: str,
    tokenizers: Sequence[tuple[str, Any]],
    dialect: str = "a1111",
    split: str | None = "comma",
) -> TokenReport:
    """The report of one prompt for ``(tower name, tokenizer)`` pairs.

    Args:
        prompt: the prompt as written.
        tokenizers: as ``bridge.conditioning.tokenizers_of`` gives them.
        dialect: as in ``parse``.
        split: as in ``plan_many``.

    Raises:
        PromptError: text that cannot be encoded or that the dialect refuses.
        OptionError: a dialect that does not exist.
        UnsupportedModelError: a tokenizer that bridge cannot plan with.
    """
    tagged = take_tags(prompt, dialect)
    parsed = parse(tagged.text, dialect)
    return report_of(
        as_written(plan(parsed, tokenizer, name, split), tagged) for name, tokenizer in tokenizers
    )


def report_of(plans: Any) -> TokenReport:
    """The report of plans of one prompt, one a tower."""
    plans = tuple(plans)
    return TokenReport(plans[0].source if plans else "", tuple(_tower(p) for p in plans))


def _tower(p: TokenPlan) -> TowerReport:
    rows = tuple(
        row for number, window in enumerate(p.windows) for row in _rows(p.source, window, number)
    )
    return TowerReport(p.tower, rows, p.used, p.limit, p.cut, p.cut_tokens, len(p.windows))


def _rows(source: str, window: Window, number: int) -> list[TokenRow]:
    rows: list[TokenRow] = []
    for _, run in groupby(window.tokens, _place):
        same = [*run]
        for part, token in enumerate(same, 1):
            text = token.piece if token.special else source[token.start : token.end]
            rows.append(
                TokenRow(
                    text, token.id, token.start, token.end, token.special, part, len(same),
                    token.weight, number,
                )
            )  # fmt: skip
    return rows


def _place(token: Token) -> tuple[int, ...]:
    """What neighbours that share a span of the source have in common; special ones share none."""
    return (id(token),) if token.special else (token.start, token.end)


def _quote(text: str) -> str:
    return text if len(text) <= _QUOTED else text[:_QUOTED] + "…"


def _count(tower: TowerReport) -> str:
    if tower.windows == 1:
        return f"{tower.used} of {tower.limit} tokens"
    return f"{tower.used} tokens in {tower.windows} windows of {tower.limit}"


def _tower_text(tower: TowerReport) -> str:
    words = " ".join(_word(row) for row in tower.rows)
    line = f"{tower.name}: {_count(tower)}: {words}"
    if tower.cut_tokens:
        line += f"\n  cut off ({tower.cut_tokens} tokens): {_quote(tower.cut)}"
    return line


def _word(row: TokenRow) -> str:
    part = "" if row.parts == 1 else f"({row.part}/{row.parts})"
    weight = "" if row.weight == 1 else f":{row.weight:.4g}"
    return row.text + part + weight


def _tower_html(tower: TowerReport) -> Markup:
    lines: list[Markup | str] = [
        joined(map(_row_html, rows))
        for number, rows in groupby(tower.rows, lambda row: row.window)
        if number < SHOWN_WINDOWS
    ]
    if tower.windows > SHOWN_WINDOWS:
        lines.append(f"and {tower.windows - SHOWN_WINDOWS} more windows")
    cut = fill(
        '<p class="bridge-cut" role="alert">Cut off ({} tokens): <bdi><s>{}</s></bdi></p>',
        tower.cut_tokens,
        _quote(tower.cut),
    )
    return fill(
        '<div class="bridge-tower"><p class="bridge-count"><b>{}</b> {}</p>'
        '<p class="bridge-row" style="line-height:2;overflow-wrap:anywhere">{}</p>{}</div>',
        tower.name,
        _count(tower),
        joined(lines, "<br>"),
        cut if tower.cut_tokens else "",
    )


def _row_html(row: TokenRow) -> Markup:
    # Borders take the text's own colour, so that light and dark pages both work.
    return fill(
        '<bdi class="{kind}" title="{title}" style="{faint}{tint}'
        'border:1px solid currentColor;border-radius:.4em;padding:.1em .35em;margin:.1em">'
        "{text}{part}{weight}</bdi> ",
        kind="bridge-special" if row.special else "bridge-token",
        title=f"id {row.id}" if row.weight == 1 else f"id {row.id}, weight {row.weight:.4g}",
        faint="opacity:.55;" if row.special else "",
        tint=_tint(row.weight),
        text=row.text,
        part=fill("<sub>{}/{}</sub>", row.part, row.parts) if row.parts > 1 else "",
        weight="" if row.weight == 1 else fill("<sup>{:.3g}</sup>", row.weight),
    )


def _tint(weight: float) -> str:
    """Warm for more, cool for less, stronger the further the weight is from 1."""
    if weight == 1:
        return ""
    strength = min(0.6, 0.15 + abs(weight - 1) * 0.6)
    colour = "235,110,40" if weight > 1 else "60,120,240"
    return f"background:rgba({colour},{strength:.2f});"
