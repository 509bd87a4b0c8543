"""One forward pass a tower, whatever the number of rows, windows and masked copies.

Inputs that are equal are encoded once; those that the cache knows are not encoded at all.

States that no picture can be drawn from are an error: not finite, or all zero by their weights.

A tower whose weights are damaged, or too wide for float16, gives NaN; a1111's emphasis divides by
a mean that may be zero. What is wrong is found on the device for all rows at once, and brought
from there once a call, when all towers have run: no tower waits for another's check.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor

from bridge.encoding.emphasis import TowerInput
from bridge.encoding.joining import fitted, join_pooled, join_windows, rows_at
from bridge.encoding.model import TextModel, Towers
from bridge.encoding.planning import Batch, Joining, joined_length
from bridge.encoding.state_cache import StateCache
from bridge.encoding.trace import Drift, drifts_of, figures_of
from bridge.errors import NumbersError
from bridge.prompt import TokenPlan
from bridge.towers import TEXT_TOWERS, Layer, TextStates, TowerAddOns, adapted, check_ids
from bridge.towers.clip import shortened, states_of
from bridge.towers.watch import Watch, is_repeatable, watched

_NO_CACHE = StateCache(0)
Place = tuple[TowerInput, tuple[float, ...]]
"""An input with the strengths of its LoRAs."""


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
        version: of the module, as this call saw it (``Watch.look``); None if it has not looked.
        pooled: whether its pooled states are wanted; else only its layers up to the one taken run,
            where that can be.
    """

    architecture: str
    module: Any
    device: torch.device
    masked: bool = False
    addons: TowerAddOns | None = None
    addons_key: tuple[object, ...] = ()
    version: int | None = None
    pooled: bool = True


def tower_of(model: TextModel, towers: Towers, at: int) -> Tower:
    """The tower of a model at a place of its recipe."""
    use = model.recipe.towers[at]
    return Tower(
        use.architecture,
        towers.modules[at],
        towers.device,
        masked=use.masked or (model.recipe.obeys_mask and model.specs[at].attention_mask),
        addons=model.addons.towers[at] if model.addons.towers else None,
        addons_key=model.addons.key,
        version=towers.versions[at],
        pooled=use.pooled,
    )


@dataclass(frozen=True)
class Encoded:
    """Token states ``(N, T', D)`` and pooled states ``(N, P)`` of N plans, what emphasis did to
    each (None to a plan without weights), and the limits of their numbers ``(N, 6)``
    (``check_rows``). T5 has no pooled states."""

    states: Tensor
    pooled: Tensor | None
    drifts: tuple[Drift | None, ...]
    limits: Tensor

    @classmethod
    def of(
        cls,
        plans: Sequence[TokenPlan],
        states: Tensor,
        pooled: Tensor | None,
        given: Tensor | None = None,
        figures: Sequence[Tensor] = (),
    ) -> Encoded:
        """With their limits.

        Args:
            plans: N plans.
            states, pooled: theirs.
            given: ``(N, ...)``, the states before emphasis; None where no plan is weighted.
            figures: of the plans that are.
        """
        weighed = _limits(states)
        before = weighed if given is None else _limits(given)
        limits = (*before, *weighed, *(before if pooled is None else _limits(pooled)))
        return cls(states, pooled, drifts_of(plans, figures), torch.stack(limits, dim=1))


def encode_plans(
    tower: Tower,
    plans: Sequence[TokenPlan],
    layers: Sequence[Layer],
    how: Joining,
    strengths: Sequence[tuple[float, ...]] = (),
    cache: StateCache = _NO_CACHE,
) -> Encoded:
    """Encode N plans with one tower, in one pass at most.

    Args:
        tower: the tower.
        plans: of one tokenizer.
        layers: the layer that each plan's states are taken from.
        how: what becomes of the states.
        strengths: of the LoRAs, for each plan; without it they are at nothing.
        cache: what is known from before.
    """
    short = joined_length(how.windows, plans[0].limit, how.long.join) < how.length
    fills = short and how.long.uneven == "fill"
    # Inputs are equal if their LoRAs are too.
    places: dict[Place, int] = {}

    def place(row: TowerInput, own: tuple[float, ...]) -> int:
        return places.setdefault((row, own), len(places))

    needs = []
    for plan, own in zip(plans, strengths or ((),) * len(plans), strict=True):
        windows, others = _inputs(plan, how)
        at, beside = [place(row, own) for row in windows], [place(row, own) for row in others]
        needs.append((at, beside, place(TowerInput.of(plan.empty), own) if fills else None))
    wanted = tuple(dict.fromkeys(layers))
    out = _known_or_run(tower, tuple(places), wanted, cache)
    is_one = how.windows == 1 and how.length == plans[0].limit and len(wanted) == 1
    if is_one and not any(plan.is_weighted for plan in plans):
        # The usual case: each plan is one window, and its states are those that the tower gave.
        at = [windows[0] for windows, _, _ in needs]
        pooled = None if out.pooled is None else rows_at(out.pooled, at)
        return Encoded.of(plans, rows_at(out.hidden[0], at), pooled)
    before, states, of_windows = [], [], []
    figures: list[Tensor] = []
    for plan, layer, (at, beside, filling) in zip(plans, layers, needs, strict=True):
        hidden = out.hidden[wanted.index(layer)]
        base = rows_at(hidden, at)
        between = None if filling is None else hidden[filling]
        joined, moved = finish(plan, base, rows_at(hidden, beside), between, how)
        before.append(base)
        states.append(joined)
        figures += moved
        if out.pooled is not None:
            of_windows.append(join_pooled(rows_at(out.pooled, at[: len(plan.windows)]), how.long))
    return Encoded.of(
        plans,
        torch.stack(states),
        torch.stack(of_windows) if of_windows else None,
        torch.stack(before) if figures else None,
        figures,
    )


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
    watch = watched(tower.module)
    version = watch.look() if tower.version is None else tower.version
    if not cache.limit or not is_repeatable(tower.module):
        return _run(tower, watch, places, layers)
    about = (version, tower.architecture, tower.masked, tower.addons_key)
    keys = [(about, place, layers, tower.device) for place in places]
    known = {at: found for at, key in enumerate(keys) if (found := cache.get(key)) is not None}
    missing = [at for at in range(len(places)) if at not in known]
    if missing:
        out = _run(tower, watch, tuple(places[at] for at in missing), layers)
        if watch.look() != version:  # it changed while it ran
            return out if len(missing) == len(places) else _run(tower, watch, places, layers)
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


def _run(
    tower: Tower, watch: Watch, places: tuple[Place, ...], layers: tuple[Layer, ...]
) -> TextStates:
    """One forward pass."""
    rows, strengths = zip(*places, strict=True)
    module = tower.module
    here = tower.device if watch.is_offloaded else watch.device
    ids = torch.tensor([row.ids for row in rows], device=here, dtype=torch.long)
    mask = _mask(rows, tower.masked, here)
    if tower.addons is None:
        source = str(getattr(module.config, "_name_or_path", "")) or "the pipeline"
        check_ids(max(max(row.ids) for row in rows), module, source)
        out = _pass(tower, module, ids, layers, mask)
    else:
        with adapted(module, ids, tower.addons, strengths) as (plain, known):
            out = _pass(tower, plain, known, layers, mask)
    if here == tower.device:
        return out
    return TextStates(
        tuple(each.to(tower.device) for each in out.hidden),
        None if out.pooled is None else out.pooled.to(tower.device),
    )


def _pass(
    tower: Tower, module: Any, ids: Tensor, layers: tuple[Layer, ...], mask: Tensor | None
) -> TextStates:
    """The whole tower, or the part of it that states come from."""
    cut = None
    if not tower.pooled and mask is None and len(layers) == 1:
        cut = shortened(module, layers[0])
    if cut is not None:
        return TextStates((states_of(module, cut, ids, layers[0]),), None)
    out = TEXT_TOWERS[tower.architecture](module, ids, layers, mask)
    # What is kept of one pass must be of the same make as what is kept of another.
    return out if tower.pooled else replace(out, pooled=None)


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


def _limits(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the greatest number of each row ``(N, ...)``: two of ``(N,)``, NaN if any is.

    They say whether all are finite, and whether all are zero, in a tenth of the time that
    ``isfinite`` and ``any`` take on a CPU.
    """
    flat = rows.flatten(1)
    return flat.amin(1), flat.amax(1)


def check_rows(
    plans: Sequence[Sequence[TokenPlan]],
    limits: Sequence[Tensor],
    emphasis: str,
    source: str = "",
    files: Sequence[str] = (),
) -> None:
    """Refuse the first fault. One transfer from the device.

    Args:
        plans: for each tower its N plans.
        limits: of each tower, the least and greatest number of each plan's states as the tower gave
            them, of the same after emphasis, and of its pooled state: ``(N, 6)``. Further rows are
            of the same plans once more.
        emphasis: its name.
        source: whose states they are; "" for the towers themselves.
        files: the textual inversions and LoRAs that act in them.

    Raises NumbersError.
    """
    if limits[0].is_meta:  # shapes without numbers
        return
    told = iter(torch.cat([each.to(limits[0].device) for each in limits]).tolist())
    for of_tower, own in zip(plans, limits, strict=True):
        for plan, row in zip(cycle(of_tower), islice(told, len(own)), strict=False):
            _check_row(plan, row, emphasis, source, files)


def _check_row(
    plan: TokenPlan, limits: Sequence[float], emphasis: str, source: str, files: Sequence[str]
) -> None:
    given, weighed = limits[:2], limits[2:4]
    if all(map(math.isfinite, limits)) and (any(weighed) or not any(given)):
        return
    if not all(map(math.isfinite, (*given, *limits[4:]))):
        if source:
            raise NumbersError(
                f"{source} gives numbers that are not finite (NaN or infinity) in the place "
                f"of {plan.tower} for {plan.source!r:.120}. Its file or its tower is damaged, "
                "or it was fitted on too little; fit it again, in float32."
            )
        named = f" ({', '.join(files)})" if files else ""
        raise NumbersError(
            f"{plan.tower} gives numbers that are not finite (NaN or infinity) for "
            f"{plan.source!r:.120}. Its weights or a LoRA's{named} are damaged, or too "
            "large for its dtype: fetch them again, leave the LoRA out, or load it in "
            "float32."
        )
    what = "not finite (NaN or infinity)" if any(weighed) else "all zero"
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
    told = torch.stack(_limits(states), dim=1).tolist()
    for entry, limits in zip(batch.entries, told, strict=True):
        if not any(limits) or not all(map(math.isfinite, limits)):
            source = batch.rows[entry.rows[0]].texts[0].source
            raise NumbersError(
                f"The weights of the parts of {entry.role} {source!r:.120} make "
                f"its states {'not finite' if any(limits) else 'all zero'}; give weights that add "
                "up to something, such as 0.5 and 0.5."
            )
