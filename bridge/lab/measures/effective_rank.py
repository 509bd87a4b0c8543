"""Effective rank: in how many directions a set of states really differs.

Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality": the exponential
of the entropy of the singular values, scaled to sum 1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def effective_rank(states: Tensor) -> float:
    """Of ``(N, D)`` about its mean: from 1 to min(N - 1, D); 0 for rows that are all the same."""
    x = states.double()
    spread = x - x.mean(0)
    values = torch.linalg.svdvals(spread)
    # States come in float32: what its rounding in another batch leaves is no direction.
    least = 1e-6 * float(torch.linalg.matrix_norm(x))
    values = values[values > least]
    if not len(values):
        return 0.0
    shares = values / values.sum()
    return float(torch.exp(-(shares * shares.log()).sum()))
