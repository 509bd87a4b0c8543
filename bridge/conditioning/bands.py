"""From the token states of several towers to one tensor, as a recipe's row says.

Towers that stand beside each other are joined along their width, as SDXL's two are. One that
``follows`` begins a new band; bands are set end to end, the narrower filled up with zeros, as
SD 3 sets T5's states after those of its CLIP towers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from bridge.conditioning.recipes import TowerUse


def join_towers(
    parts: Sequence[tuple[TowerUse, Tensor]], zeros: tuple[int, int] | None = None
) -> Tensor:
    """Token states ``(N, T, D)`` of all towers as one tensor.

    Args:
        parts: the towers whose token states are used, in the recipe's order, with ``(N, T, D)``
            states each.
        zeros: ``(length, width)`` of the zeros that stand for a last tower that is left out.

    Returns:
        ``(N, T', D')``. States beside each other take the last one's dtype, as in diffusers'
        SDXL; bands of two dtypes take the wider, as in its SD 3.
    """
    bands: list[list[Tensor]] = []
    for use, states in parts:
        if use.follows or not bands:
            bands.append([])
        bands[-1].append(states)
    joined = [torch.cat([each.to(band[-1].dtype) for each in band], dim=-1) for band in bands]
    if zeros is not None:
        joined.append(joined[0].new_zeros(joined[0].shape[0], *zeros))
    width = max(band.shape[-1] for band in joined)
    return torch.cat([pad(band, (0, width - band.shape[-1])) for band in joined], dim=-2)
