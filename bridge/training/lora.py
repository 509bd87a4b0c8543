"""LoRA (Hu et al. 2021): low-rank updates of linear layers.

Small enough to have here, so that it needs no further package: two matrices beside each layer, A
random, B zero, so that training starts from the model as it is. They are added to its weight at the
end, so that what is saved is a plain checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from bridge.runtime import building


class LoraLinear(nn.Module):
    """``base(x) + alpha / rank * B A x``, ``base`` frozen, A (rank, in) and B (out, rank) fp32."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base
        start = torch.empty(rank, base.in_features, dtype=torch.float32)
        nn.init.kaiming_uniform_(start, a=math.sqrt(5))  # drawn on the CPU: alike on every device
        place = base.weight.device
        self.lora_A = nn.Parameter(start.to(place))
        self.lora_B = nn.Parameter(
            torch.zeros(base.out_features, rank, device=place, dtype=torch.float32)
        )
        self.scale = alpha / rank

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        out = self.base(states)
        low = F.linear(F.linear(states.to(self.lora_A.dtype), self.lora_A), self.lora_B)
        return out + (self.scale * low).to(out.dtype)

    def half_(self) -> None:
        """Round both matrices to fp16, in which they are to be saved."""
        for matrix in (self.lora_A, self.lora_B):
            matrix.data = matrix.data.half()

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The base layer itself, the update added to its weight in fp32."""
        weight = self.base.weight
        update = self.scale * (self.lora_B.float() @ self.lora_A.float())
        weight.copy_(weight.float() + update)
        return self.base


def put_lora(model: Any, names: Iterable[str], rank: int, alpha: float, seed: int) -> None:
    """Put a `LoraLinear` in the place of each linear layer of ``names``, drawn from the seed."""
    with building(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in names:
            model.set_submodule(name, LoraLinear(model.get_submodule(name), rank, alpha))


def take_lora(model: Any, *, merge: bool) -> None:
    """The plain layers back in their places, with the updates added if ``merge``."""
    for name, layer in lora_layers(model).items():
        model.set_submodule(name, layer.merged() if merge else layer.base)


def lora_layers(model: Any) -> dict[str, LoraLinear]:
    """The layers of a model that have a LoRA, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLinear)}
