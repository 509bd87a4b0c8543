"""The trace of a prompt: where its pooled state was read, and what emphasis did to its states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from typing import Any

from bridge.conditioning.drift import Drift
from bridge.conditioning.kit import Kit, Towers
from bridge.conditioning.parts import Group
from bridge.conditioning.wording import Wording
from bridge.markup import Markup, fill, joined
from bridge.prompt import LongPrompt, TokenPlan

# Configs from before transformers#24773 say 2 for any vocabulary.
_OLD_EOS = 2


@dataclass(frozen=True)
class PooledSource:
    """One state that a pooled state is made of.

    Attributes:
        tower: the tower's name, with the part of the prompt if it has several.
        window: the window, from 0.
        windows: how many windows the prompt has.
        place: the state's place in the window, from 0; BOS is at 0.
        piece: the token there. Not EOS where an old config meets added tokens of higher ids.
    """

    tower: str
    window: int
    windows: int
    place: int
    piece: str

    def text(self) -> str:
        window = f"window {self.window + 1} of {self.windows}"
        return f"{self.tower}, {window}, {self.piece} at {self.place}"


@dataclass(frozen=True)
class Trace:
    """``pooled`` is empty where the recipe has no pooled state, ``drifts`` where nothing is
    weighted."""

    pooled: tuple[PooledSource, ...] = ()
    drifts: tuple[Drift, ...] = ()

    def lines(self) -> list[str]:
        """The trace in words, a line for each thing."""
        pooled = [f"pooled state: {source.text()}" for source in self.pooled]
        return pooled + [_drift_line(drift) for drift in self.drifts]

    def html(self) -> str:
        """The trace as an HTML fragment; warnings have ``role="alert"``."""
        return str(self.__html__())

    def __html__(self) -> Markup:
        alerts = [False] * len(self.pooled) + [bool(drift.reasons) for drift in self.drifts]
        alarm = Markup(' role="alert"')
        return joined(
            fill('<p class="bridge-trace"{}>{}</p>', alarm if alert else "", line)
            for line, alert in zip(self.lines(), alerts, strict=True)
        )

    def to_dict(self) -> dict[str, Any]:
        """The trace as plain values, ready for JSON."""
        return {
            "pooled": [asdict(source) for source in self.pooled],
            "drifts": [{**asdict(d), "reasons": list(d.reasons)} for d in self.drifts],
        }


def trace_of(
    plans: Sequence[TokenPlan],
    drifts: Sequence[Drift | None],
    long: LongPrompt,
    eos: Sequence[int | None],
) -> Trace:
    """The trace of one prompt.

    Args:
        plans: of each tower; of a prompt of several parts, those of each part.
        drifts: one for each plan.
        long: whose windows are pooled.
        eos: for each tower the ``eos_token_id`` of its config; None where it is not pooled.
    """
    return Trace(
        tuple(
            source
            for plan, own in zip(plans, cycle(eos), strict=False)
            if own is not None
            for source in _sources(plan, long, own)
        ),
        tuple(
            replace(drift, tower=plan.tower)
            for plan, drift in zip(plans, drifts, strict=True)
            if drift is not None
        ),
    )


def traces_of(
    kit: Kit,
    towers: Towers,
    wording: Wording,
    by_prompt: Sequence[Sequence[TokenPlan]],
    groups: Sequence[Group],
    drifts: Sequence[Sequence[Drift | None]],
) -> tuple[Trace, ...]:
    """The trace of each prompt; ``by_prompt`` as ``plans_by_prompt`` gives it."""
    eos = [
        module.config.eos_token_id if use.pooled else None
        for use, module in zip(kit.recipe.towers, towers.modules, strict=True)
    ]
    return tuple(
        trace_of(
            plans,
            [of_tower[row] for row in group.rows for of_tower in drifts],
            wording.long_prompt,
            eos,
        )
        for plans, group in zip(by_prompt, groups, strict=False)
    )


def pooled_place(ids: Sequence[int], eos: int) -> int:
    """Where transformers' CLIP reads the pooled state: the first EOS; the highest id if the config
    says 2, as old ones do for any vocabulary."""
    if eos == _OLD_EOS:
        return max(range(len(ids)), key=ids.__getitem__)
    return ids.index(eos) if eos in ids else 0


def _sources(plan: TokenPlan, long: LongPrompt, eos: int) -> list[PooledSource]:
    windows = plan.windows if plan.raw is None else (plan.raw,)
    count = len(windows)
    chosen = {"first": [0], "last": [count - 1]}.get(long.pooled, range(count))
    found = []
    for number in chosen:
        window = windows[number]
        place = pooled_place(window.ids, eos)
        piece = window.tokens[place].piece if place < window.used else "padding"
        found.append(PooledSource(plan.tower, number, count, place, piece))
    return found


def _drift_line(drift: Drift) -> str:
    line = (
        f"emphasis in {drift.tower}: length ×{drift.length:.3g}, mean {drift.mean:+.3f} sd, "
        f"rest ×{drift.rest:.3g}"
    )
    return f"{line}: off the manifold, {', '.join(drift.reasons)}" if drift.reasons else line
