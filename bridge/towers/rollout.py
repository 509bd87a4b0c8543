"""Attention rollout: how much of a state comes from which place, through all layers.

Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers", section 3: a layer passes on
half of a state by its residual and half by attention, so its map is (A + I) / 2 with A the mean
over heads; the maps of all layers are multiplied.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def rollout(attentions: Sequence[Tensor], rows: Sequence[int] | None = None) -> Tensor:
    """Rolled-out attention, float64 ``(len(rows) or T, T)`` on the CPU; every row sums to 1.

    Args:
        attentions: of each layer, the first layer first: ``(H, T, T)`` (heads) or ``(T, T)``. Rows
            may sum to less than 1, by half precision or because a place sees nothing.
        rows: the places asked for; None for all.
    """
    flow = torch.eye(attentions[0].shape[-1], dtype=torch.float64)
    if rows is not None:
        flow = flow[list(rows)]
    for layer in reversed(attentions):
        mean = layer.double().cpu()
        mean = mean.mean(0) if mean.ndim == 3 else mean
        # (A + I) with its rows brought to a sum of 1, without making it.
        flow = flow / (1 + mean.sum(-1))
        flow = flow @ mean + flow
    return flow
