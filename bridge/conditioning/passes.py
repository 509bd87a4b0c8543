"""One forward pass a tower, whatever the number of prompts, windows and masked copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bridge.conditioning.drift import Drift, drifts_of, figures_of
from bridge.conditioning.emphasis import Emphasis, Row
from bridge.conditioning.join import join_pooled, join_states, rows_at
from bridge.conditioning.offloading import is_offloaded
from bridge.conditioning.soundness import faults_of
from bridge.conditioning.uneven import fitted, joined_length
from bridge.prompt import LongPrompt, TokenPlan
from bridge.towers import TEXT_TOWERS, Layer, TextStates, TowerAddOns, adapted, check_ids


@dataclass(frozen=True)
class Wanted:
    """A plan to be encoded, the layer that its states are taken from, and the LoRAs' strengths."""

    plan: TokenPlan
    layer: Layer
    strengths: tuple[float, ...] = ()


@dataclass(frozen=True)
class Encoded:
    """Token states ``(B, T', D)`` and pooled states ``(B, P)`` of B plans, what emphasis did to
    each (None to a plan without weights), and their faults ``(B, 3)`` (``soundness``). T5 has no
    pooled states."""

    states: Tensor
    pooled: Tensor | None
    drifts: tuple[Drift | None, ...]
    faults: Tensor

    @classmethod
    def of(
        cls,
        plans: Sequence[TokenPlan],
        own: Sequence[Tensor],
        states: Sequence[Tensor],
        pooled: Sequence[Tensor],
        figures: Sequence[Tensor],
    ) -> Encoded:
        """From the parts of B plans: states before emphasis and after, pooled ones (or none), and
        the figures of those that are weighted."""
        joined, both = torch.stack(list(states)), torch.stack(list(pooled)) if pooled else None
        faults = faults_of(torch.stack(list(own)), joined, both)
        return cls(joined, both, drifts_of(plans, figures), faults)


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
    addons: TowerAddOns | None = None,
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
        device: where the result is wanted; the tower runs where it lies, or where its offloading
            hooks bring it, which is there.
        addons: words and LoRAs that are added to the tower.
    """
    needs = [_rows(each.plan, windows, emphasis) for each in wanted]
    short = joined_length(windows, wanted[0].plan.limit, long.join) < length
    fills = short and long.uneven == "fill"
    # Inputs are equal if their LoRAs are too.
    places: dict[tuple[Row, tuple[float, ...]], int] = {}
    for each, (own, extra) in zip(wanted, needs, strict=True):
        for row in (*own, *extra, *([Row.of(each.plan.empty)] if fills else ())):
            places.setdefault((row, each.strengths), len(places))
    layers = tuple(dict.fromkeys(each.layer for each in wanted))
    rows, strengths = zip(*places, strict=True)
    here = device if is_offloaded(module) else module.device
    ids = torch.tensor([row.ids for row in rows], device=here, dtype=torch.long)
    mask = _mask(rows, masked, here)
    if addons is None:
        source = str(getattr(module.config, "_name_or_path", "")) or "the pipeline"
        check_ids(max(max(row.ids) for row in rows), module, source)
        out = TEXT_TOWERS[architecture](module, ids, layers, mask)
    else:
        with adapted(module, ids, addons, strengths) as (plain, known):
            out = TEXT_TOWERS[architecture](plain, known, layers, mask)
    out = TextStates(
        tuple(each.to(device) for each in out.hidden),
        None if out.pooled is None else out.pooled.to(device),
    )
    before, states, pooled = [], [], []
    figures: list[Tensor] = []
    for each, (own, extra) in zip(wanted, needs, strict=True):
        hidden = out.hidden[layers.index(each.layer)]
        at = [places[row, each.strengths] for row in own]
        beside = rows_at(hidden, [places[row, each.strengths] for row in extra])
        empty = hidden[places[Row.of(each.plan.empty), each.strengths]] if fills else None
        base = rows_at(hidden, at)
        joined, moved = finish(each.plan, base, beside, empty, emphasis, long, length)
        before.append(base)
        states.append(joined)
        figures += moved
        if out.pooled is not None:
            of_windows = rows_at(out.pooled, at[: len(each.plan.windows)])
            pooled.append(join_pooled(of_windows, long))
    return Encoded.of([each.plan for each in wanted], before, states, pooled, figures)


def finish(
    plan: TokenPlan,
    base: Tensor,
    beside: Tensor,
    empty: Tensor | None,
    emphasis: Emphasis,
    long: LongPrompt,
    length: int,
) -> tuple[Tensor, list[Tensor]]:
    """From a tower's states of one plan's windows to its sequence ``(length, D)``.

    Args:
        plan: the plan.
        base: ``(k, T, D)``, its windows and those that fill it up.
        beside: ``(r, T, D)``, what its emphasis asked for besides.
        empty: the empty window's ``(T, D)``, to be brought to ``length`` with; else zeros.

    Returns:
        The sequence, and the figures of its drift if it is weighted.
    """
    figures = []
    if plan.is_weighted:
        count = len(plan.windows)
        weighed = emphasis.apply(plan, base[:count], beside)
        figures.append(figures_of(plan, base[:count], weighed))
        base = torch.cat([weighed, base[count:]])
    return fitted(join_states(base, plan, long), length, empty), figures


def _mask(rows: tuple[Row, ...], masked: bool, device: torch.device) -> Tensor | None:
    """Of whole numbers, or of floats where attention is biased."""
    if any(row.bias for row in rows):
        return torch.tensor(
            [row.logits(masked) for row in rows], device=device, dtype=torch.float32
        )
    # Without anything to hide there is no mask: the tower then runs as in a stock pipeline.
    if masked or any(row.hidden for row in rows):
        return torch.tensor([row.mask(masked) for row in rows], device=device, dtype=torch.long)
    return None


def _rows(plan: TokenPlan, windows: int, emphasis: Emphasis) -> tuple[list[Row], tuple[Row, ...]]:
    """The plan's own inputs, brought to ``windows`` with empty ones, and its emphasis's."""
    weighted = plan.is_weighted
    own = [(emphasis.own if weighted else Row.of)(window) for window in plan.windows]
    filling = [Row.of(plan.empty)] * (windows - len(plan.windows))
    return [*own, *filling], emphasis.rows(plan) if weighted else ()
