"""Towers of unequal context in one recipe, such as Long-CLIP-L's 248 beside bigG's 77.

A UNet takes one sequence, in which place j joins place j of every tower. So the towers' sequences
must be brought to one length (Long-CLIP's issue 7 asks how). The rules, by name:

=========  ====================================================================================
``fill``   to the longest, with the states of the tower's own empty window, end to end and cut
           off at the length; no text is lost, and no place has states that its tower never
           gives (the default)
``zeros``  to the longest, with zeros; what issue 7 tried
``cut``    to the shortest; what ComfyUI's SDXL does. Text beyond it is lost, and said to be
=========  ====================================================================================

Before that, each tower deals the prompt to windows of its own context: 300 tokens are two windows
of 248 in one tower and five of 77 in the other. The fourth way is to make the contexts equal:
``bridge.towers.stretch_positions``, as the authors of Long-CLIP did for their SDXL.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bridge.prompt import Token, TokenPlan

UNEVEN = ("fill", "zeros", "cut")
"""The rules' names."""
WINDOWED = ("concat", "first_eos")
"""The joins in which windows that fill up a sequence are its end, so that it can go without."""


def joined_length(windows: int, context: int, join: str) -> int:
    """How many states ``join_states`` makes of windows."""
    if windows == 1 or join == "average":
        return context
    if join == "no_bos_between":
        return windows * (context - 2) + 2
    return windows * context


def common_length(lengths: list[int], rule: str) -> int:
    """The length that sequences of ``lengths`` are brought to."""
    return min(lengths) if rule == "cut" else max(lengths)


def beyond(plan: TokenPlan, length: int, join: str) -> tuple[Token, ...]:
    """The content tokens whose states come after the first ``length``."""
    step = {"average": 0, "no_bos_between": plan.limit - 2}.get(join, plan.limit)
    return tuple(
        token
        for number, window in enumerate(plan.windows)
        for place, token in enumerate(window.tokens)
        if not token.special and number * step + place >= length
    )


def fitted(states: Tensor, length: int, empty: Tensor | None) -> Tensor:
    """States ``(T', D)`` cut off or filled up to ``(length, D)``.

    Args:
        states: one tower's states of one prompt.
        length: the common length.
        empty: the tower's states of its empty window ``(T, D)``; None fills up with zeros.
    """
    missing = length - len(states)
    if missing <= 0:
        return states[:length]
    if empty is None:
        return torch.cat([states, states.new_zeros(missing, states.shape[1])])
    times = -(-missing // len(empty))
    return torch.cat([states, empty.repeat(times, 1)[:missing]])
