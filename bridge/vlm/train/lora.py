"""LoRA (Hu et al. 2021): low-rank updates of a language model's linear layers.

Small enough to have here, so that it needs no further package: two matrices beside each layer,
added to its weight at the end, so that what is saved is a plain checkpoint. As in LLaVA, every
linear layer gets one but the output head; A is random, B zero, so training starts from the model
as it is.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from bridge.errors import UnsupportedModelError


class LoraLinear(nn.Module):
    """``base(x) + alpha / rank * B A x``, ``base`` frozen, A (rank, in) and B (out, rank) fp32."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base
        start = torch.empty(rank, base.in_features)
        nn.init.kaiming_uniform_(start, a=math.sqrt(5))  # drawn on the CPU: alike on every device
        place = base.weight.device
        self.lora_A = nn.Parameter(start.to(place))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=place))
        self.scale = alpha / rank

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        out = self.base(states)
        low = F.linear(F.linear(states.to(self.lora_A.dtype), self.lora_A), self.lora_B)
        return out + (self.scale * low).to(out.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The base layer itself, the update added to its weight in fp32."""
        weight = self.base.weight
        update = self.scale * (self.lora_B.float() @ self.lora_A.float())
        weight.copy_(weight.float() + update)
        return self.base


def add_lora(llm: Any, rank: int, alpha: float, seed: int) -> list[str]:
    """Put a `LoraLinear` in the place of every linear layer but the head, and freeze the rest.

    Gives the names of those layers. Raises UnsupportedModelError when there is none (GPT-2's
    layers are of another class).
    """
    llm.requires_grad_(False)
    head = llm.get_output_embeddings()
    found = [
        name
        for name, module in llm.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    ]
    if not found:
        raise UnsupportedModelError(
            f"{type(llm).__name__} has no linear layer that LoRA could be put on; train it whole"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in found:
            llm.set_submodule(name, LoraLinear(llm.get_submodule(name), rank, alpha))
    return found


def take_lora(llm: Any, *, merge: bool) -> None:
    """The plain layers back in their places, with the updates added if ``merge``."""
    layers = [(name, m) for name, m in llm.named_modules() if isinstance(m, LoraLinear)]
    for name, layer in layers:
        llm.set_submodule(name, layer.merged() if merge else layer.base)
