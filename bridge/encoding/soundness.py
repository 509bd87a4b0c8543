"""States that no picture can be drawn from are an error: not finite, or all zero by their weights.

A tower whose weights are damaged, or too wide for float16, gives NaN; a1111's emphasis divides by
a mean that may be zero. What is wrong is found on the device for all rows at once, and brought
from there once a call, when all towers have run: no tower waits for another's check.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from bridge.encoding.batch import Batch
from bridge.errors import NumbersError
from bridge.prompt import TokenPlan

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
    plans: Sequence[Sequence[TokenPlan]], faults: Sequence[Tensor], emphasis: str, source: str
) -> None:
    """Refuse the first fault. One transfer from the device.

    Args:
        plans: for each tower its N plans.
        faults: of each tower, as ``faults_of`` gives them.
        emphasis: its name.
        source: whose states they are; "" for the towers themselves.

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
                raise NumbersError(
                    f"{plan.tower} gives numbers that are not finite (NaN or infinity) for "
                    f"{plan.source!r:.120}. Its weights or a LoRA's are damaged, or too large for "
                    "its dtype: fetch them again, leave the LoRA out, or load it in float32."
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
