"""Emphasis of ComfyUI (``comfy/sd1_clip.py``, ``ClipTokenWeightEncoder``): from the empty prompt.

A state moves along the line from the empty prompt's state at the same place: ``e + w * (z - e)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bridge.encoding.emphasis.method import Emphasis, empty_row, weights_of
from bridge.prompt import TokenPlan


def from_empty(states: Tensor, empty: Tensor, weights: Tensor) -> Tensor:
    """``e + w * (z - e)``; states of weight 1 are left as they are, rounding included.

    Args:
        states: ``(..., T, D)``.
        empty: the empty prompt's, ``(T, D)``.
        weights: ``(..., T, 1)``.
    """
    return torch.where(weights == 1, states, empty + (states - empty) * weights)


def _apply(plan: TokenPlan, states: Tensor, extra: Tensor) -> Tensor:
    return from_empty(states, extra[0], weights_of(plan, states))


COMFY = Emphasis(empty_row, _apply)
"""ComfyUI's own."""
