"""Plans through all towers of a model: token states joined by its recipe, and pooled states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import repeat, zip_longest
from typing import Any

import torch
from torch import Tensor

from bridge.conditioning.bands import join_towers
from bridge.conditioning.drift import Drift
from bridge.conditioning.emphasis import EMPHASES
from bridge.conditioning.join import rows_at
from bridge.conditioning.kit import Kit, Towers
from bridge.conditioning.parts import Group, join_parts, join_pooled_parts
from bridge.conditioning.passes import Wanted, encode_plans
from bridge.conditioning.planning import Lengths, Plans
from bridge.conditioning.recipes import TowerUse
from bridge.conditioning.request import Place
from bridge.conditioning.soundness import check_rows
from bridge.conditioning.wording import Wording
from bridge.towers import Layer

Strengths = Sequence[tuple[float, ...]]
"""For each row, the strength of each LoRA."""
Rows = tuple[Tensor, Tensor | None]
"""Token states (N, T, D), and pooled states (N, P) where the recipe has them."""
Drifts = list[tuple[Drift | None, ...]]
"""For each tower, the drift of each row."""


def encode_rows(
    kit: Kit,
    towers: Towers,
    wording: Wording,
    plans: Plans,
    negative_plans: Plans,
    lengths: Sequence[Lengths],
    place: Place,
    strengths: Sequence[Strengths],
) -> tuple[tuple[Rows, Rows], tuple[Drifts, Drifts]]:
    """The plans' states joined over the towers, and their pooled states; the same of the
    negatives, without rows if there are none. And the drifts of both. ``strengths``: of each plan's
    LoRAs. Raises NumbersError."""
    parts, pooled_parts = [], []
    count = len(plans[0])
    drifts: tuple[Drifts, Drifts] = ([], [])
    faults: list[Tensor] = []
    mapped = kit.mapped
    readings = mapped.read((*plans, *negative_plans), towers.device) if mapped else {}
    for i, use in enumerate(kit.recipe.towers):
        layer, negative_layer = _layers(use, place, wording)
        negatives = negative_plans[i] if negative_plans else ()
        wanted = [
            *map(Wanted, plans[i], repeat(layer), strengths[0]),
            *map(Wanted, negatives, repeat(negative_layer), strengths[1]),
        ]
        # Pooled states are not weighted, so a tower without token states needs no copies.
        emphasis = EMPHASES[wording.emphasis if use.layer else "none"]
        long, windows = wording.long_prompt, lengths[i].windows
        # Of what the pooled states are read instead; equal texts are encoded once.
        raw = [
            replace(each, plan=replace(each.plan, windows=(each.plan.raw,)))
            for each in wanted
            if each.plan.raw is not None
        ]
        where: dict[str, Any] = {"length": lengths[i].states, "device": towers.device}
        if mapped is not None:
            encoded = mapped.encode(
                use.component, [*wanted, *raw], windows, emphasis, long, readings, **where
            )
        else:
            encoded = encode_plans(
                use.architecture,
                towers.modules[i],
                [*wanted, *raw],
                windows,
                emphasis,
                long,
                **where,
                masked=use.masked or (kit.recipe.obeys_mask and kit.specs[i].attention_mask),
                addons=kit.addons.towers[i] if kit.addons.towers else None,
            )
        faults.append(encoded.faults.view(-1, len(wanted), 3).any(0))
        of_rows = encoded.drifts if use.layer else (None,) * len(encoded.drifts)
        drifts[0].append(of_rows[:count])
        drifts[1].append(of_rows[count : len(wanted)])
        if use.layer is not None:
            parts.append((use, encoded.states[: len(wanted)].to(towers.modules[i].dtype)))
        if use.pooled and encoded.pooled is not None:
            pooled_parts.append(encoded.pooled[len(raw) :].to(towers.modules[i].dtype))
    every = [(*own, *more) for own, more in zip_longest(plans, negative_plans, fillvalue=())]
    check_rows(
        every, faults, wording.emphasis, f"The adapter from {mapped.tower.name}" if mapped else ""
    )
    absent = 0 if wording.dialect == "comfy" else kit.zeros[0] if kit.zeros else 0
    zeros = kit.zeros and (place.max_sequence_length or absent, kit.zeros[1])
    states = join_towers(parts, zeros)
    if not pooled_parts:
        return ((states[:count], None), (states[count:], None)), drifts
    pooled = torch.cat(pooled_parts, dim=-1)
    return ((states[:count], pooled[:count]), (states[count:], pooled[count:])), drifts


def _layers(use: TowerUse, place: Place, wording: Wording) -> tuple[Layer, Layer]:
    """The layers that the states of prompts and of negatives are taken from."""
    base = use.layer or Layer()
    if not use.skips:
        return base, base
    skips = (place.clip_skip or 0, place.skip_of_negative(wording.skips_in_both))
    prompt, negative = (Layer(base.index - skip, base.norm) for skip in skips)
    return prompt, negative


def join_rows(
    rows: Rows,
    groups: tuple[Group, ...],
    own: Sequence[Sequence[int]],
    empty: bool,
    length: int,
    whole: bool,
) -> Rows:
    """Rows of prompts out of those of their parts.

    Args:
        own, length: as of ``join_parts``.
        empty: whether the last row is the empty prompt.
        whole: whether a part's pooled state is that of the whole prompt.
    """
    states, pooled = rows
    joined = join_parts(states, groups, own, states[-1] if empty else None, length)
    if pooled is None:
        return joined, None
    if whole:
        return joined, rows_at(pooled, [group.rows[0] for group in groups])
    return joined, join_pooled_parts(pooled, groups)


def strengths_by_row(
    of_prompts: Sequence[tuple[float, ...]],
    groups: tuple[Group, ...],
) -> Strengths:
    """The LoRAs' strengths of every row of plans, from those of the prompts.

    A row after those of all groups is the empty prompt that fills up prompts of fewer parts.
    Dialects that have those have no tags, so any prompt's strengths are its own.
    """
    found = [own for group, own in zip(groups, of_prompts, strict=False) for _ in group.rows]
    return [*found, of_prompts[0]]
