"""Whitening: the linear map that gives every direction of some states the same weight."""

from __future__ import annotations

import torch

# Of the mean variance: directions fainter than this stay faint instead of amplifying rounding.
_FLOOR = 0.01


def whitening(states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The mean (D,), the whitening rows (D, D) and the directions (D, D) of states (N, D).

    ``rows @ (x - mean)`` has about unit variance along each of ``directions``' columns (PCA
    whitening); ``directions @ rows`` turns it back to the axes it came in (ZCA).
    """
    mean = states.mean(0)
    values, directions = torch.linalg.eigh(torch.cov((states - mean).T))
    scale = (values + _FLOOR * values.mean()).rsqrt()
    return mean, scale[:, None] * directions.T, directions
