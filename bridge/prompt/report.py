"""The token report: which tokens a prompt becomes, with which weight, and what is cut off.

A prompt that changes from step to step is reported as often as it says something else, and one of
several parts (``AND``) part by part, as they are encoded.

Fast enough for every keystroke, and free of torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from bridge.checks import keywords
from bridge.markup import Markup, fill, joined
from bridge.prompt.dialect import DialectName
from bridge.prompt.prompt import Part, Prompt, Rule, intervals, parse, take_tags
from bridge.prompt.syntax import Span
from bridge.prompt.token_plan import Split, Token, TokenPlan, Window, as_written, plan_many

# How much of a cut-off text is quoted; to_dict() has all of it.
_QUOTED = 200
# How many windows the HTML shows; a person reads no more of a prompt of ten thousand words.
SHOWN_WINDOWS = 8
# And how many towers' lines, which are more than towers where a prompt changes or has parts.
SHOWN_LINES = 24
# Stretches of steps that are told before the rest is left out.
_SHOWN_STRETCHES = 4


@dataclass(frozen=True)
class TokenRow:
    """One token of a report: the text it stands for, its id, its span in the prompt, its weight.

    ``part`` and ``parts`` count the tokens that share one span (a pictograph is often four);
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

    def to_dict(self) -> dict[str, Any]:
        """As ``TokenReport.to_dict``."""
        span = {"text": self.text, "id": self.id, "span": [self.start, self.end]}
        return span | {"special": self.special, "weight": self.weight, "window": self.window}


@dataclass(frozen=True)
class TowerReport:
    """What one tower reads at some steps of one part of a prompt; in most prompts, all there is.

    ``when`` says at which steps of a run, such as ``steps 1 to 10 of 20``, and is empty where the
    part does not change; ``part`` which part it is and by what weight, such as ``part 2 of 2,
    weight 0.7``, and is empty where there is one. ``used`` counts the tokens of all windows, BOS
    and EOS included; ``limit`` is the context of one window, ``windows`` how many there are.
    ``cleaned`` is what was written and what is read instead (`bridge.cleaning`).
    """

    name: str
    rows: tuple[TokenRow, ...]
    used: int
    limit: int
    cut: str
    cut_tokens: int
    windows: int = 1
    when: str = ""
    part: str = ""
    cleaned: tuple[tuple[str, str], ...] = ()

    @property
    def label(self) -> str:
        """``part`` and ``when``."""
        return ", ".join(filter(None, (self.part, self.when)))

    def to_dict(self) -> dict[str, Any]:
        """As ``TokenReport.to_dict``."""
        names = ("name", "when", "part", "used", "limit", "windows", "cut", "cut_tokens")
        cleaned = [list(change) for change in self.cleaned]
        tokens = [row.to_dict() for row in self.rows]
        return {name: getattr(self, name) for name in names} | {
            "cleaned": cleaned,
            "tokens": tokens,
        }


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

    __str__ = text

    def html(self) -> str:
        """The report as an HTML fragment. All text is escaped and kept apart by direction."""
        return str(self.__html__())

    def __html__(self) -> Markup:
        more = len(self.towers) - SHOWN_LINES
        return fill(
            '<div class="bridge-tokens">{}{}</div>',
            joined(map(_tower_html, self.towers[:SHOWN_LINES])),
            fill('<p class="bridge-count">and {} more</p>', more) if more > 0 else "",
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as plain lists, dicts, strings and numbers, ready for JSON."""
        return {"prompt": self.prompt, "towers": [tower.to_dict() for tower in self.towers]}


@keywords
def plan_report(
    prompt: str,
    tokenizers: Sequence[tuple[str, Any]],
    dialect: DialectName = "a1111",
    split: Split = "comma",
    steps: int = 20,
    rule: Rule = "new",
) -> TokenReport:
    """The report of one prompt for ``(tower name, tokenizer)`` pairs.

    Args:
        prompt: the prompt as written.
        tokenizers: as ``bridge.encoding.tokenizers_of`` gives them.
        dialect: as in ``parse``.
        split: as in ``plan_many``.
        steps, rule: of the run, as in ``intervals``, for prompts that change over it.

    Raises:
        PromptError: text that cannot be encoded or that the dialect refuses.
        OptionError: a dialect or rule that does not exist, no steps.
        UnsupportedModelError: a tokenizer that bridge cannot plan with.
    """
    tagged = take_tags(prompt, dialect)
    parsed = parse(tagged.text, dialect)
    readings = _readings(parsed, steps, rule)
    texts = [replace(parsed, spans=reading.spans) for reading in readings]
    by_tower = [
        [as_written(plan, tagged) for plan in plan_many(texts, tokenizer, name, split)]
        for name, tokenizer in tokenizers
    ]
    return TokenReport(
        prompt,
        tuple(
            replace(_tower(plan), when=reading.when, part=reading.part)
            for reading, plans in zip(readings, zip(*by_tower, strict=True), strict=False)
            for plan in plans
        ),
    )


@keywords
def report_of(plans: Any) -> TokenReport:
    """The report of plans of one prompt, one a tower."""
    plans = tuple(plans)
    return TokenReport(plans[0].source if plans else "", tuple(_tower(p) for p in plans))


@dataclass(frozen=True)
class _Reading:
    """What one part of a prompt says at some steps."""

    when: str
    part: str
    spans: tuple[Span, ...]


def _readings(parsed: Prompt, steps: int, rule: Rule) -> list[_Reading]:
    """For each part of a prompt what it says over a run, each different thing once."""
    run = intervals(parsed, steps, rule)
    starts = (1, *(interval.last_step + 1 for interval in run))
    count = len(run[0].flat.parts)
    found = []
    for number in range(count):
        stretches: dict[Part, list[tuple[int, int]]] = {}
        for start, interval in zip(starts, run, strict=False):
            own = stretches.setdefault(interval.flat.parts[number], [])
            if own and own[-1][1] == start - 1:
                start = own.pop()[0]
            own.append((start, interval.last_step))
        for part, own in stretches.items():
            which = f"part {number + 1} of {count}, weight {part.weight:.4g}"
            found.append(
                _Reading(
                    "" if len(stretches) == 1 else _steps(own, steps),
                    "" if count == 1 else which,
                    part.spans,
                )
            )
    return found


def _steps(stretches: list[tuple[int, int]], steps: int) -> str:
    """``steps 1 to 3, 5 of 20``; of very many stretches the first ones and the last."""
    told = [str(a) if a == b else f"{a} to {b}" for a, b in stretches]
    if len(told) > _SHOWN_STRETCHES:
        told = [*told[: _SHOWN_STRETCHES - 1], "…", told[-1]]
    single = stretches[0][0] == stretches[-1][1]
    return f"{'step' if single else 'steps'} {', '.join(told)} of {steps}".replace("…,", "…")


def _tower(p: TokenPlan) -> TowerReport:
    rows = tuple(
        row for number, window in enumerate(p.windows) for row in _rows(p.source, window, number)
    )
    return TowerReport(
        p.tower, rows, p.used, p.limit, p.cut, p.cut_tokens, len(p.windows), cleaned=p.cleaned
    )


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
    name = ", ".join(filter(None, (tower.name, tower.label)))
    line = f"{name}: {_count(tower)}: {words}"
    if tower.cut_tokens:
        line += f"\n  cut off ({tower.cut_tokens} tokens): {_quote(tower.cut)}"
    if tower.cleaned:
        line += f"\n  cleaned: {_cleaned_text(tower)}"
    return line


def _cleaned_text(tower: TowerReport) -> str:
    """``'cafÃ©' is read as 'café'; ...``"""
    return _quote("; ".join(f"{before!r} is read as {after!r}" for before, after in tower.cleaned))


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
        '<div class="bridge-tower"><p class="bridge-count"><b>{}</b> {}{}</p>'
        '<p class="bridge-row" style="line-height:2;overflow-wrap:anywhere">{}</p>{}{}</div>',
        tower.name,
        fill('<span class="bridge-when">{}</span> ', tower.label) if tower.label else "",
        _count(tower),
        joined(lines, "<br>"),
        cut if tower.cut_tokens else "",
        fill('<p class="bridge-cleaned">Cleaned: <bdi>{}</bdi></p>', _cleaned_text(tower))
        if tower.cleaned
        else "",
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
