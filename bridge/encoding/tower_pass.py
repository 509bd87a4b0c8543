"""One forward pass a tower, whatever the number of rows, windows and masked copies.

Inputs that are equal are encoded once; those that the cache knows are not encoded at all.

States that no picture can be drawn from are an error: not finite, or all zero by their weights.

A tower whose weights are damaged, or too wide for float16, gives NaN; a1111's emphasis divides by
a mean that may be zero. What is wrong is found on the device for all rows at once, and brought
from there once a call, when all towers have run: no tower waits for another's check.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bridge.encoding.emphasis import Emphasis, TowerInput
from bridge.encoding.joining import fitted, join_pooled, join_windows, rows_at
from bridge.encoding.planning import Batch, joined_length
from bridge.encoding.state_cache import StateCache
from bridge.encoding.trace import Drift, drifts_of, figures_of
from bridge.errors import NumbersError
from bridge.prompt import LongPrompt, TokenPlan
from bridge.towers import TEXT_TOWERS, Layer, TextStates, TowerAddOns, adapted, check_ids
from bridge.towers.watch import is_offloaded, is_repeatable, watched

_NO_CACHE = StateCache(0)
Place = tuple[TowerInput, tuple[float, ...]]
"""An input with the strengths of its LoRAs."""


@dataclass(frozen=True)
class RowPlan:
    """A plan to be encoded, the layer that its states are taken from, and the LoRAs' strengths."""

    plan: TokenPlan
    layer: Layer
    strengths: tuple[float, ...] = ()


@dataclass(frozen=True)
class Joining:
    """How a tower's states become sequences.

    Attributes:
        emphasis: the formula for plans that are weighted.
        long: how windows become one sequence.
        windows: how many windows every plan is brought to with empty prompts.
        length: how many states a plan is brought to, by the rule ``long.uneven``.
    """

    emphasis: Emphasis
    long: LongPrompt
    windows: int
    length: int


@dataclass(frozen=True)
class Tower:
    """A tower as it is run.

    Attributes:
        architecture, module: the tower.
        device: where the result is wanted; the tower runs where it lies, or where its offloading
            hooks bring it, which is there.
        masked: whether padding is hidden from it.
        addons: words and LoRAs that are added to it.
        addons_key: what their action depends on.
    """

    architecture: str
    module: Any
    device: torch.device
    masked: bool = False
    addons: TowerAddOns | None = None
    addons_key: tuple[object, ...] = ()


@dataclass(frozen=True)
class Encoded:
    """Token states ``(N, T', D)`` and pooled states ``(N, P)`` of N plans, what emphasis did to
    each (None to a plan without weights), and their faults ``(N, 3)`` (``faults_of``). T5 has no
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
        """From the parts of N plans: states before emphasis and after, pooled ones (or none), and
        the figures of those that are weighted."""
        joined, both = torch.stack(list(states)), torch.stack(list(pooled)) if pooled else None
        faults = faults_of(torch.stack(list(own)), joined, both)
        return cls(joined, both, drifts_of(plans, figures), faults)


def encode_plans(
    tower: Tower, rows: Sequence[RowPlan], how: Joining, cache: StateCache = _NO_CACHE
) -> Encoded:
    """Encode N plans with one tower, in one pass at most."""
    needs = [_inputs(each.plan, how) for each in rows]
    short = joined_length(how.windows, rows[0].plan.limit, how.long.join) < how.length
    fills = short and how.long.uneven == "fill"
    # Inputs are equal if their LoRAs are too.
    places: dict[Place, int] = {}
    for each, (own, extra) in zip(rows, needs, strict=True):
        for row in (*own, *extra, *([TowerInput.of(each.plan.empty)] if fills else ())):
            places.setdefault((row, each.strengths), len(places))
    layers = tuple(dict.fromkeys(each.layer for each in rows))
    out = _known_or_run(tower, tuple(places), layers, cache)
    before, states, pooled = [], [], []
    figures: list[Tensor] = []
    for each, (own, extra) in zip(rows, needs, strict=True):
        hidden = out.hidden[layers.index(each.layer)]
        at = [places[row, each.strengths] for row in own]
        beside = rows_at(hidden, [places[row, each.strengths] for row in extra])
        empty = hidden[places[TowerInput.of(each.plan.empty), each.strengths]] if fills else None
        base = rows_at(hidden, at)
        joined, moved = finish(each.plan, base, beside, empty, how)
        before.append(base)
        states.append(joined)
        figures += moved
        if out.pooled is not None:
            of_windows = rows_at(out.pooled, at[: len(each.plan.windows)])
            pooled.append(join_pooled(of_windows, how.long))
    return Encoded.of([each.plan for each in rows], before, states, pooled, figures)


def finish(
    plan: TokenPlan, base: Tensor, beside: Tensor, empty: Tensor | None, how: Joining
) -> tuple[Tensor, list[Tensor]]:
    """From a tower's states of one plan's windows to its sequence ``(length, D)``.

    Args:
        plan: the plan.
        base: ``(k, T, D)``, its windows and those that fill it up.
        beside: ``(r, T, D)``, what its emphasis asked for besides.
        empty: the empty window's ``(T, D)``, to be brought to ``length`` with; else zeros.
        how: the rules.

    Returns:
        The sequence, and the figures of its drift if it is weighted.
    """
    figures = []
    if plan.is_weighted:
        count = len(plan.windows)
        weighed = how.emphasis.apply(plan, base[:count], beside)
        figures.append(figures_of(plan, base[:count], weighed))
        base = torch.cat([weighed, base[count:]])
    return fitted(join_windows(base, plan, how.long), how.length, empty), figures


def _known_or_run(
    tower: Tower, places: tuple[Place, ...], layers: tuple[Layer, ...], cache: StateCache
) -> TextStates:
    """The states of all inputs, on the device where they are wanted."""
    if not cache.limit or not is_repeatable(tower.module):
        return _run(tower, places, layers)
    watch = watched(tower.module)
    version = watch.version
    about = (version, tower.architecture, tower.masked, tower.addons_key)
    keys = [(about, place, layers, tower.device) for place in places]
    known = {at: found for at, key in enumerate(keys) if (found := cache.get(key)) is not None}
    missing = [at for at in range(len(places)) if at not in known]
    if missing:
        out = _run(tower, tuple(places[at] for at in missing), layers)
        if watch.version != version:  # it changed while it ran
            return out if len(missing) == len(places) else _run(tower, places, layers)
        for number, at in enumerate(missing):
            # Copies, since a view would keep the whole batch.
            own = tuple(each[number].clone() for each in out.hidden)
            pooled = None if out.pooled is None else out.pooled[number].clone()
            size = sum(each.nbytes for each in (*own, *(() if pooled is None else (pooled,))))
            cache.put(keys[at], (own, pooled), size)
            known[at] = own, pooled
        if len(missing) == len(places):
            return out
    found = [known[at] for at in range(len(places))]
    return TextStates(
        tuple(torch.stack([own[layer] for own, _ in found]) for layer in range(len(layers))),
        None if found[0][1] is None else torch.stack([pooled for _, pooled in found]),
    )


def _run(tower: Tower, places: tuple[Place, ...], layers: tuple[Layer, ...]) -> TextStates:
    """One forward pass."""
    rows, strengths = zip(*places, strict=True)
    module = tower.module
    here = tower.device if is_offloaded(module) else module.device
    ids = torch.tensor([row.ids for row in rows], device=here, dtype=torch.long)
    mask = _mask(rows, tower.masked, here)
    if tower.addons is None:
        source = str(getattr(module.config, "_name_or_path", "")) or "the pipeline"
        check_ids(max(max(row.ids) for row in rows), module, source)
        out = TEXT_TOWERS[tower.architecture](module, ids, layers, mask)
    else:
        with adapted(module, ids, tower.addons, strengths) as (plain, known):
            out = TEXT_TOWERS[tower.architecture](plain, known, layers, mask)
    return TextStates(
        tuple(each.to(tower.device) for each in out.hidden),
        None if out.pooled is None else out.pooled.to(tower.device),
    )


def _mask(rows: Sequence[TowerInput], masked: bool, device: torch.device) -> Tensor | None:
    """Of whole numbers, or of floats where attention is biased."""
    if any(row.bias for row in rows):
        return torch.tensor(
            [row.logits(masked) for row in rows], device=device, dtype=torch.float32
        )
    # Without anything to hide there is no mask: the tower then runs as in a stock pipeline.
    if masked or any(row.hidden for row in rows):
        return torch.tensor([row.mask(masked) for row in rows], device=device, dtype=torch.long)
    return None


def _inputs(plan: TokenPlan, how: Joining) -> tuple[list[TowerInput], tuple[TowerInput, ...]]:
    """The plan's own inputs, brought to ``windows`` with empty ones, and its emphasis's."""
    weighted = plan.is_weighted
    own = [(how.emphasis.own if weighted else TowerInput.of)(window) for window in plan.windows]
    filling = [TowerInput.of(plan.empty)] * (how.windows - len(plan.windows))
    return [*own, *filling], how.emphasis.rows(plan) if weighted else ()


# ---------------------------------------------------------------- numbers that are no states

_REMEDIES = {
    "a1111": "It divides by the mean of the weighted states, which is zero here. "
    "Take emphasis='no_norm' or 'comfy'."
}
_GENTLER = "Take weights nearer to 1, or another emphasis."


def faults_of(own: Tensor, weighed: Tensor, pooled: Tensor | None) -> Tensor:
    """What is wrong with N rows: ``(N, 3)`` truth values, on their device.

    Args:
        own: ``(N, ...)``, the states as the tower gave them.
        weighed: ``(N, ...)``, the same after emphasis.
        pooled: ``(N, P)``.

    Returns:
        In each row, whether the tower's numbers are not finite; whether the weighed ones are not;
        whether weights made all of them zero.
    """
    ill = unsound(own)
    if pooled is not None:
        ill = ill | unsound(pooled)
    gone = _zero(weighed) & ~_zero(own)
    return torch.stack([ill, unsound(weighed), gone], dim=1)


def unsound(rows: Tensor) -> Tensor:
    """Whether each row ``(N, ...)`` has a number that is not finite: ``(N,)``."""
    return ~rows.isfinite().flatten(1).all(1)


def _zero(rows: Tensor) -> Tensor:
    return ~rows.flatten(1).any(1)


def check_rows(
    plans: Sequence[Sequence[TokenPlan]],
    faults: Sequence[Tensor],
    emphasis: str,
    source: str = "",
    files: Sequence[str] = (),
) -> None:
    """Refuse the first fault. One transfer from the device.

    Args:
        plans: for each tower its N plans.
        faults: of each tower, as ``faults_of`` gives them.
        emphasis: its name.
        source: whose states they are; "" for the towers themselves.
        files: the textual inversions and LoRAs that act in them.

    Raises NumbersError.
    """
    if faults[0].is_meta:  # shapes without numbers
        return
    told = torch.stack([each.to(faults[0].device) for each in faults]).tolist()
    for of_tower, own in zip(plans, told, strict=True):
        for plan, (ill, weighed, gone) in zip(of_tower, own, strict=True):
            if ill and source:
                raise NumbersError(
                    f"{source} gives numbers that are not finite (NaN or infinity) in the place "
                    f"of {plan.tower} for {plan.source!r:.120}. Its file or its tower is damaged, "
                    "or it was fitted on too little; fit it again, in float32."
                )
            if ill:
                named = f" ({', '.join(files)})" if files else ""
                raise NumbersError(
                    f"{plan.tower} gives numbers that are not finite (NaN or infinity) for "
                    f"{plan.source!r:.120}. Its weights or a LoRA's{named} are damaged, or too "
                    "large for its dtype: fetch them again, leave the LoRA out, or load it in "
                    "float32."
                )
            if weighed or gone:
                what = "all zero" if gone and not weighed else "not finite (NaN or infinity)"
                raise NumbersError(
                    f"The weights of {plan.source!r:.120} make the states of {plan.tower} {what} "
                    f"by the emphasis {emphasis!r}. {_REMEDIES.get(emphasis, _GENTLER)}"
                )


def check_finite(tensors: Iterable[Tensor], message: str) -> None:
    """Refuse tensors with numbers that are not finite, by ``message``. One transfer.

    Raises NumbersError.
    """
    if not bool(torch.stack([each.isfinite().all() for each in tensors]).all()):
        raise NumbersError(message)


def check_joined(batch: Batch, states: Tensor) -> None:
    """Refuse what the weights of a prompt's parts make of states that were sound.

    Prompts of one part were looked at when their rows were. Raises NumbersError.
    """
    if not batch.is_joined:
        return
    told = torch.stack([unsound(states), _zero(states)], dim=1).tolist()
    for entry, (ill, gone) in zip(batch.entries, told, strict=True):
        if ill or gone:
            source = batch.rows[entry.rows[0]].texts[0].source
            raise NumbersError(
                f"The weights of the parts of {entry.role} {source!r:.120} make "
                f"its states {'not finite' if ill else 'all zero'}; give weights that add up to "
                "something, such as 0.5 and 0.5."
            )
