"""From the states of several windows to one sequence, as ``bridge.prompt.LongPrompt`` says."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bridge.prompt import LongPrompt, TokenPlan


def rows_at(states: Tensor, places: Sequence[int]) -> Tensor:
    """The rows of ``states`` at ``places``; a view where they follow each other.

    As ``states[places]``, but that copies a list to the GPU, and waits for all that runs there.
    """
    first, count = (places[0], len(places)) if places else (0, 0)
    if [*places] == [*range(first, first + count)]:
        return states[first : first + count]
    return torch.stack([states[place] for place in places])


def join_states(states: Tensor, plan: TokenPlan, long: LongPrompt) -> Tensor:
    """Token states ``(k, T, D)`` of ``k`` windows as one sequence ``(T', D)``.

    Windows beyond the plan's own are empty prompts that make it as long as its neighbours.
    """
    if len(states) == 1:
        return states[0]
    if long.join == "average":
        return states.mean(0)
    if long.join == "first_eos":
        states = states.clone()
        first = states[0, plan.windows[0].used - 1].clone()
        for window, row in zip(plan.windows[1:], states[1:], strict=False):
            row[window.used - 1] = first
    if long.join == "no_bos_between":
        return torch.cat([states[0, :1], states[:, 1:-1].flatten(0, 1), states[-1, -1:]])
    return states.flatten(0, 1)


def join_pooled(pooled: Tensor, long: LongPrompt) -> Tensor:
    """Pooled states ``(k, P)`` of a plan's own windows as one ``(P,)``."""
    if long.pooled == "mean":
        return pooled.mean(0)
    return pooled[0 if long.pooled == "first" else -1]
