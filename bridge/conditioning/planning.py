"""Token plans of a whole call: for each tower and prompt, and what they are brought to.

Prompts, negatives and towers become tensors of one length, so shorter plans are filled up, and what
a tower of shorter context has no place for is cut off and said to be.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, compress

from bridge.conditioning.kit import Kit
from bridge.conditioning.parts import Group
from bridge.conditioning.uneven import beyond, common_length, joined_length
from bridge.conditioning.wording import Wording
from bridge.prompt import (
    LongPrompt,
    Prompt,
    TokenPlan,
    TruncationWarning,
    normalised,
    plan_many,
)
from bridge.prompt.plan import refilled

Plans = tuple[tuple[TokenPlan, ...], ...]
"""For each tower, the plan of each part of the prompts; empty where there are no prompts."""
_QUOTED = 120


def plans_of(
    kit: Kit,
    wording: Wording,
    first: tuple[Prompt, ...],
    later: tuple[tuple[Prompt, ...] | None, ...],
    length: int | None,
) -> Plans:
    """For each tower, the plan of each prompt; ``later`` are other texts for those after the
    first, ``length`` is the caller's ``max_sequence_length``."""
    texts = (first, *(first if other is None else other for other in later))
    return tuple(
        tuple(
            normalised(plan, wording.token_normalization)
            for plan in plan_many(
                own,
                replace(reader, clean=wording.clean),
                use.component,
                wording.long_prompt.rule,
                raw=wording.pools_source and use.pooled and use.layer is not None,
            )
        )
        for use, reader, own in zip(kit.recipe.towers, kit.readers(length), texts, strict=False)
    )


def levelled(plans: Plans, negative_plans: Plans) -> tuple[Plans, Plans]:
    """Both, with towers that grow with a prompt given as many tokens by all of them."""
    if not negative_plans:
        return plans, negative_plans
    both = []
    for own, other in zip(plans, negative_plans, strict=False):
        if own[0].limit != other[0].limit:
            most = max(own[0].limit, other[0].limit)
            own, other = (tuple(refilled(each, most) for each in some) for some in (own, other))
        both.append((own, other))
    more = plans[len(both) :]
    return (*(own for own, _ in both), *more), tuple(other for _, other in both)


def plans_by_prompt(plans: Plans, groups: tuple[Group, ...]) -> tuple[tuple[TokenPlan, ...], ...]:
    """For each prompt the plan of each tower; of a prompt of several parts, those of each part."""

    def named(plan: TokenPlan, group: Group, part: int) -> TokenPlan:
        if len(group.rows) == 1:
            return plan
        return replace(plan, tower=f"{plan.tower}, part {part}")

    return tuple(
        tuple(
            named(tower[row], group, part)
            for part, row in enumerate(group.rows, 1)
            for tower in plans
        )
        for group in groups
    )


def most_windows(*plans: Plans) -> int:
    """How many windows all are brought to."""
    return max(len(plan.windows) for some in plans for tower in some for plan in tower)


@dataclass(frozen=True)
class Lengths:
    """What one tower brings all plans to: so many windows, and in the end so many states."""

    windows: int
    states: int


def lengths_of(kit: Kit, plans: Plans, negative_plans: Plans, wording: Wording) -> list[Lengths]:
    """For each tower. Those of one context have the same windows; those that stand beside each
    other come to one length. T5 has one window and its own length."""
    windowed = [use.length is None for use in kit.recipe.towers]
    every = [tower for some in (plans, negative_plans) for tower in compress(some, windowed)]
    most, common = _most_by_context(every), common_states(every, wording.long_prompt)
    return [
        Lengths(most[row[0].limit], common) if inside else Lengths(1, row[0].limit)
        for inside, row in zip(windowed, plans, strict=True)
    ]


def common_states(towers: Sequence[Sequence[TokenPlan]], long: LongPrompt) -> int:
    """The states that plans of several towers make together; 0 without plans."""
    sizes = [
        joined_length(windows, context, long.join)
        for context, windows in _most_by_context(towers).items()
    ]
    return common_length(sizes, long.uneven) if sizes else 0


def _most_by_context(towers: Sequence[Sequence[TokenPlan]]) -> dict[int, int]:
    """The most windows that a plan fills, for towers of each context."""
    most: dict[int, int] = {}
    for plan in chain.from_iterable(towers):
        most[plan.limit] = max(most.get(plan.limit, 1), len(plan.windows))
    return most


def warn_of_cuts(plans: Plans, what: str, groups: tuple[Group, ...]) -> None:
    for index, group in enumerate(groups):
        # Towers that cut the same text say so once.
        cuts = {
            (plan.cut, plan.limit, plan.cut_tokens): plan.tower
            for tower in plans
            for plan in (tower[row] for row in group.rows)
            if plan.cut
        }
        for (cut, limit, tokens), tower_name in cuts.items():
            warnings.warn(
                f"{what} {index}: {tokens} tokens do not fit the {limit} of {tower_name} and are "
                f"cut off: {_quoted(cut)}",
                TruncationWarning,
                stacklevel=4,
            )


def cut_to_states(plans: Plans, lengths: Sequence[Lengths], wording: Wording, what: str) -> Plans:
    """The plans with what is lost where a tower of longer context is cut to one of shorter."""

    def cut(plan: TokenPlan, states: int, index: int) -> TokenPlan:
        lost = beyond(plan, states, wording.long_prompt.join)
        if not lost:
            return plan
        text = plan.source[lost[0].start : lost[-1].end]
        warnings.warn(
            f"{what} {index}: {len(lost)} tokens of {plan.tower} come after the {states} states "
            f"that all towers have and are cut off: {_quoted(text)}. Other rules for towers of "
            "unequal context keep them, such as LongPrompt(..., uneven='fill').",
            TruncationWarning,
            stacklevel=6,
        )
        return replace(plan, cut=text, cut_start=lost[0].start, cut_tokens=len(lost))

    return tuple(
        tuple(cut(plan, each.states, i) for i, plan in enumerate(tower))
        for tower, each in zip(plans, lengths, strict=False)
    )


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _QUOTED else text[:_QUOTED] + "…")
