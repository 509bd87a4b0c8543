"""One forward pass a tower, whatever the number of prompts, windows and masked copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bridge.conditioning.drift import Drift, drifts_of, figures_of
from bridge.conditioning.emphasis import Emphasis, Row
from bridge.conditioning.join import join_pooled, join_states
from bridge.conditioning.uneven import fitted, joined_length
from bridge.prompt import LongPrompt, TokenPlan
from bridge.towers import TEXT_TOWERS, Layer


@dataclass(frozen=True)
class Wanted:
    """A plan to be encoded, and the layer that its states are taken from."""

    plan: TokenPlan
    layer: Layer


@dataclass(frozen=True)
class Encoded:
    """Token states ``(B, T', D)`` and pooled states ``(B, P)`` of B plans, and what emphasis did to
    each (None to a plan without weights)."""

    states: Tensor
    pooled: Tensor
    drifts: tuple[Drift | None, ...]


def encode_plans(
    architecture: str,
    module: Any,
    wanted: Sequence[Wanted],
    windows: int,
    emphasis: Emphasis,
    long: LongPrompt,
    *,
    length: int,
    masked: bool,
    device: torch.device,
) -> Encoded:
    """Encode plans with one tower in one pass; equal inputs are encoded once.

    Args:
        architecture, module: the tower.
        wanted: B plans with their layers.
        windows: how many windows every plan is brought to with empty prompts.
        emphasis: the formula for plans that are weighted.
        long: how windows become one sequence.
        length: how many states a plan is brought to, by the rule ``long.uneven``.
        masked: whether padding is hidden from the tower.
        device: where the tower runs.
    """
    needs = [_rows(each.plan, windows, emphasis) for each in wanted]
    short = joined_length(windows, wanted[0].plan.limit, long.join) < length
    fills = short and long.uneven == "fill"
    places: dict[Row, int] = {}
    for each, (own, extra) in zip(wanted, needs, strict=True):
        for row in (*own, *extra, *([Row.of(each.plan.empty)] if fills else ())):
            places.setdefault(row, len(places))
    layers = tuple(dict.fromkeys(each.layer for each in wanted))
    ids = torch.tensor([row.ids for row in places], device=device)
    # Without anything to hide there is no mask: the tower then runs as in a stock pipeline.
    hides = masked or any(row.hidden for row in places)
    mask = torch.tensor([row.mask(masked) for row in places], device=device) if hides else None
    out = TEXT_TOWERS[architecture](module, ids, layers, mask)
    states, pooled, figures = [], [], []
    for each, (own, extra) in zip(wanted, needs, strict=True):
        hidden = out.hidden[layers.index(each.layer)]
        base = hidden[[places[row] for row in own]]
        if each.plan.is_weighted:
            count = len(each.plan.windows)
            beside = hidden[[places[row] for row in extra]]
            weighed = emphasis.apply(each.plan, base[:count], beside)
            figures.append(figures_of(each.plan, base[:count], weighed))
            base = torch.cat([weighed, base[count:]])
        empty = hidden[places[Row.of(each.plan.empty)]] if fills else None
        states.append(fitted(join_states(base, each.plan, long), length, empty))
        of_windows = out.pooled[[places[row] for row in own[: len(each.plan.windows)]]]
        pooled.append(join_pooled(of_windows, long))
    drifts = drifts_of([each.plan for each in wanted], figures)
    return Encoded(torch.stack(states), torch.stack(pooled), drifts)


def _rows(plan: TokenPlan, windows: int, emphasis: Emphasis) -> tuple[list[Row], tuple[Row, ...]]:
    """The plan's own inputs, brought to ``windows`` with empty ones, and its emphasis's."""
    filled = [*plan.windows, *[plan.empty] * (windows - len(plan.windows))]
    extra = emphasis.rows(plan) if plan.is_weighted else ()
    return [Row.of(window) for window in filled], extra
