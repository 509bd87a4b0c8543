"""Attention rollout: how much of a state comes from which token, through all layers.

Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers", section 3: with A_l the
attention of layer l averaged over its heads, half of a state is passed on by the residual, so that
``R = (A_L + I)/2 ... (A_1 + I)/2``. The row of the EOS token says what the pooled state is made of.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def rollout(attentions: Sequence[Tensor]) -> Tensor:
    """``(T, T)`` float64, rows of sum 1.

    Args:
        attentions: first layer first, each ``(H, T, T)`` (heads) or ``(T, T)``.
    """
    size = attentions[0].shape[-1]
    found = torch.eye(size, dtype=torch.float64)
    for layer in attentions:
        mean = layer.double().cpu()
        mean = mean.mean(0) if mean.ndim == 3 else mean
        step = (mean + torch.eye(size, dtype=torch.float64)) / 2
        # Rows of a hidden query may sum to less than 1.
        found = step / step.sum(-1, keepdim=True) @ found
    return found


def word_shares(row: Tensor, words: Sequence[Sequence[int]]) -> list[float]:
    """What each word has of a rollout's row ``(T,)``; ``words`` are the places of their tokens.

    The shares are of the words among themselves: BOS, on which rollout always puts much, and the
    token itself are left out. NaN throughout if the words have nothing.
    """
    shares = [float(row[list(places)].sum()) if places else 0.0 for places in words]
    total = sum(shares)
    return [share / total if total else float("nan") for share in shares]
