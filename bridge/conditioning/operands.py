"""The operands of arithmetic on conditionings: what goes together, and the account of a result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from bridge.conditioning.account import taken
from bridge.conditioning.drift import Drift
from bridge.conditioning.trace import PooledSource, Trace
from bridge.errors import OptionError
from bridge.prompt import TokenPlan

if TYPE_CHECKING:
    from bridge.conditioning.result import Conditioning

_PART = ", part "
Plans = tuple[TokenPlan, ...]
Account = tuple[Plans, Trace]
T = TypeVar("T", TokenPlan, PooledSource, Drift)


def aligned(conds: Sequence[Conditioning], *, same_length: bool) -> tuple[Conditioning, ...]:
    """The conditionings with one number of rows. Raises OptionError if they do not go together."""
    if not conds:
        raise OptionError("There is no conditioning to work on; give at least one.")
    first = conds[0]
    count = max(len(cond) for cond in conds)
    for at, cond in enumerate(conds):
        _check_pair(first, cond, at, same_length)
        if len(cond) not in (1, count):
            raise OptionError(
                f"Conditioning {at} has {len(cond)} rows and another has {count}; give 1 or "
                f"{count} of each."
            )
    return tuple(c if len(c) == count else c.repeat(count) for c in conds)


def _check_pair(first: Conditioning, cond: Conditioning, at: int, same_length: bool) -> None:
    one, other = first.prompt_embeds, cond.prompt_embeds
    if cond.recipe.name != first.recipe.name:
        raise OptionError(
            f"Conditioning {at} is of the recipe {cond.recipe.name}, the first of "
            f"{first.recipe.name}; encode both with one model."
        )
    if dict(cond.fingerprints) != dict(first.fingerprints):
        names = {*cond.fingerprints, *first.fingerprints}
        differing = sorted(
            name for name in names if cond.fingerprints.get(name) != first.fingerprints.get(name)
        )
        raise OptionError(
            f"Conditioning {at} was made by other towers than the first ({', '.join(differing)} "
            "differ); encode both with one model."
        )
    if cond.attention_bias is not None:
        raise OptionError(
            f"Conditioning {at} acts inside the UNet by its attention_bias, which has no sum; "
            "encode it with another emphasis."
        )
    if (cond.negative_prompt_embeds is None) != (first.negative_prompt_embeds is None):
        raise OptionError(
            f"Of conditioning {at} and the first one has negatives and the other has none; encode "
            "both with a negative, or both without."
        )
    if (one.device, one.dtype) != (other.device, other.dtype):
        raise OptionError(
            f"Conditioning {at} is {other.dtype} on {other.device}, the first {one.dtype} on "
            f"{one.device}; bring them together with .to(device, dtype)."
        )
    if same_length and one.shape[1] != other.shape[1]:
        raise OptionError(
            f"Conditioning {at} has {other.shape[1]} token states a prompt, the first "
            f"{one.shape[1]}; encode both in one call, which fills shorter prompts up, and take "
            "them apart with .rows()."
        )


def accounts(conds: Sequence[Conditioning], *, negative: bool, pooled: bool) -> dict[str, Any]:
    """The plans and traces of all, each row's as the parts of one prompt.

    ``pooled``: whether the pooled states of all count, or the first's only.
    """
    found: dict[str, Any] = {}
    for sign in ("", "negative_") if negative else ("",):
        plans, traces = f"{sign}plans", f"{sign}traces"
        columns = [
            _spread(getattr(cond, plans), getattr(cond, traces), len(cond)) for cond in conds
        ]
        rows = [_row(row, pooled) for row in zip(*[c for c in columns if c], strict=True)]
        found[plans] = tuple(row[0] for row in rows)
        found[traces] = tuple(row[1] for row in rows)
    return found


def _spread(plans: tuple[Plans, ...], traces: tuple[Trace, ...], count: int) -> tuple[Account, ...]:
    """One account a row of the tensors."""
    pairs = tuple(zip(plans, traces or (Trace(),) * len(plans), strict=True))
    return taken(pairs, range(count), count)


def _row(accounts: tuple[Account, ...], pooled: bool) -> Account:
    """The accounts of several prompts as that of one, their parts counted on."""
    plans: list[TokenPlan] = []
    sources: list[PooledSource] = []
    drifts: list[Drift] = []
    before = 0
    for own, trace in accounts:

        def named(item: T, by: int = before) -> T:
            if len(accounts) == 1:
                return item
            tower, _, part = item.tower.partition(_PART)
            return replace(item, tower=f"{tower}{_PART}{by + int(part or 1)}")

        plans += [named(plan) for plan in own]
        drifts += [named(drift) for drift in trace.drifts]
        if pooled or not before:
            sources += [named(source) for source in trace.pooled]
        before += len(own) // len({plan.tower.partition(_PART)[0] for plan in own})
    return tuple(plans), Trace(tuple(sources), tuple(drifts))
