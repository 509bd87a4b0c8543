"""The token report: which tokens a prompt becomes, how many of the context, what is cut off.

Fast enough for every keystroke, and free of torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from bridge.prompt.plan import TokenPlan, plan
from bridge.prompt.syntax import parse

# How much of a cut-off text is quoted; to_dict() has all of it.
_QUOTED = 200


@dataclass(frozen=True)
class TokenRow:
    """One token of a report: the text it stands for, its id, its span in the prompt.

    ``part`` and ``parts`` count the tokens that share one span (an emoji is often four).
    """

    text: str
    id: int
    start: int
    end: int
    special: bool
    part: int = 1
    parts: int = 1


@dataclass(frozen=True)
class TowerReport:
    """One tower's share of a report; ``used`` and ``limit`` count BOS and EOS."""

    name: str
    rows: tuple[TokenRow, ...]
    used: int
    limit: int
    cut: str
    cut_tokens: int


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
        inner = "".join(_tower_html(tower) for tower in self.towers)
        return f'<div class="bridge-tokens">{inner}</div>'

    def to_dict(self) -> dict[str, Any]:
        """The report as plain lists, dicts, strings and numbers, ready for JSON."""
        return {
            "prompt": self.prompt,
            "towers": [
                {
                    "name": t.name,
                    "used": t.used,
                    "limit": t.limit,
                    "cut": t.cut,
                    "cut_tokens": t.cut_tokens,
                    "tokens": [
                        {
                            "text": r.text,
                            "id": r.id,
                            "span": [r.start, r.end],
                            "special": r.special,
                        }
                        for r in t.rows
                    ],
                }
                for t in self.towers
            ],
        }


def plan_report(prompt: str, tokenizers: Sequence[tuple[str, Any]]) -> TokenReport:
    """The report of one prompt for ``(tower name, tokenizer)`` pairs.

    Raises:
        PromptError: text that cannot be encoded.
        UnsupportedModelError: a tokenizer that bridge cannot plan with.
    """
    parsed = parse(prompt)
    return report_of(plan(parsed, tokenizer, name) for name, tokenizer in tokenizers)


def report_of(plans: Any) -> TokenReport:
    """The report of plans of one prompt, one a tower."""
    plans = tuple(plans)
    return TokenReport(plans[0].source if plans else "", tuple(_tower(p) for p in plans))


def _tower(p: TokenPlan) -> TowerReport:
    spans = [(t.start, t.end) for t in p.tokens]
    rows = []
    for i, token in enumerate(p.tokens):
        first = last = i
        while not token.special and first > 0 and _shared(p, spans, first - 1, i):
            first -= 1
        while not token.special and last + 1 < len(spans) and _shared(p, spans, last + 1, i):
            last += 1
        text = token.piece if token.special else p.source[token.start : token.end]
        rows.append(
            TokenRow(
                text, token.id, token.start, token.end, token.special, i - first + 1,
                last - first + 1,
            )
        )  # fmt: skip
    return TowerReport(p.tower, tuple(rows), p.used, p.limit, p.cut, p.cut_tokens)


def _shared(p: TokenPlan, spans: list[tuple[int, int]], other: int, i: int) -> bool:
    return not p.tokens[other].special and spans[other] == spans[i]


def _quote(text: str) -> str:
    return text if len(text) <= _QUOTED else text[:_QUOTED] + "…"


def _tower_text(tower: TowerReport) -> str:
    words = " ".join(
        row.text if row.parts == 1 else f"{row.text}({row.part}/{row.parts})" for row in tower.rows
    )
    line = f"{tower.name}: {tower.used} of {tower.limit} tokens: {words}"
    if tower.cut_tokens:
        line += f"\n  cut off ({tower.cut_tokens} tokens): {_quote(tower.cut)}"
    return line


def _tower_html(tower: TowerReport) -> str:
    tokens = "".join(_row_html(row) for row in tower.rows)
    parts = [
        f'<div class="bridge-tower"><p class="bridge-count"><b>{escape(tower.name)}</b> '
        f"{tower.used} of {tower.limit} tokens</p>"
        f'<p class="bridge-row" style="line-height:2;overflow-wrap:anywhere">{tokens}</p>'
    ]
    if tower.cut_tokens:
        parts.append(
            f'<p class="bridge-cut" role="alert">Cut off ({tower.cut_tokens} tokens): '
            f"<bdi><s>{escape(_quote(tower.cut))}</s></bdi></p>"
        )
    return "".join(parts) + "</div>"


def _row_html(row: TokenRow) -> str:
    # Borders take the text's own colour, so that light and dark pages both work.
    kind = "bridge-special" if row.special else "bridge-token"
    faint = "opacity:.55;" if row.special else ""
    part = f"<sub>{row.part}/{row.parts}</sub>" if row.parts > 1 else ""
    return (
        f'<bdi class="{kind}" title="id {row.id}" style="{faint}border:1px solid currentColor;'
        f'border-radius:.4em;padding:.1em .35em;margin:.1em">{escape(row.text)}{part}</bdi> '
    )
