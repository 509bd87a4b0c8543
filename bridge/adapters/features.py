"""Random features: what makes a linear map of foreign states bend.

Which word a tower's token is, and what stands before it, decides another tower's state, and no
linear map of the first state reads all of that. Random features (Rahimi and Recht 2007, "Random
Features for Large-Scale Kernel Machines"; of rectified units, Cho and Saul 2009, "Kernel Methods
for Deep Learning") put beside an input ``max(0, xR + c)`` with R and c drawn at random: ridge on
both is kernel regression in closed form.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bridge.adapters.regression import Moments

_FLOOR = 1e-3  # of the mean standard deviation: fainter entries are not blown up to matter


@dataclass(frozen=True, eq=False)
class RandomFeatures:
    """``x -> [x, max(0, (x - mean) / scale @ weight + offset)]``, float32.

    Attributes:
        mean, scale: of each entry of x, ``(F,)``.
        weight: ``(F, K)``.
        offset: ``(K,)``.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    offset: Tensor

    @classmethod
    def drawn(cls, inputs: Moments, count: int, seed: int) -> RandomFeatures:
        """``count`` of them for x as in ``inputs``; the same for the same seed."""
        mean, _ = inputs.means
        spread = (inputs.centred[0].diagonal() / inputs.count).clamp(min=0).sqrt()
        scale = spread + _FLOOR * spread.mean() + 1e-12
        dice = torch.Generator().manual_seed(seed)
        width = len(mean)
        weight = torch.randn(width, count, generator=dice, dtype=torch.float32) / width**0.5
        offset = torch.randn(count, generator=dice, dtype=torch.float32)
        return cls(mean.float(), scale.float(), weight.to(mean.device), offset.to(mean.device))

    def __call__(self, x: Tensor) -> Tensor:
        """``(..., F)`` to ``(..., F + K)``."""
        x = x.to(self.weight)
        bent = torch.relu((x - self.mean) / self.scale @ self.weight + self.offset)
        return torch.cat([x, bent], dim=-1)

    def to(self, device: torch.device) -> RandomFeatures:
        """The same on another device."""
        return RandomFeatures(
            self.mean.to(device), self.scale.to(device), self.weight.to(device),
            self.offset.to(device),
        )  # fmt: skip
