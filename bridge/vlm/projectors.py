"""From the width of the vision tower to the width of the language model.

A projector is a module that takes image states (B, N, D_vision) and gives soft tokens
(B, M, D_llm), and that says beforehand how many: `n_soft_tokens(N)` is M. Names are
LLaVA's own (`mm_projector_type`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn

Activation = Callable[[torch.Tensor], torch.Tensor]


class Projector(Protocol):
    """What a BridgeVLM asks of its projector."""

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """(B, N, D_vision) to (B, n_soft_tokens(N), D_llm)."""
        ...

    def n_soft_tokens(self, n_states: int) -> int:
        """How many soft tokens come of ``n_states`` image states."""
        ...


class MlpProjector(nn.Module):
    """`mlp2x_gelu`: two linear layers with an activation between, one soft token a patch.

    Liu et al., "Improved Baselines with Visual Instruction Tuning" (2023), section 3.
    """

    def __init__(self, first: nn.Linear, activation: Activation, second: nn.Linear) -> None:
        super().__init__()
        self.first = first
        self.activation = activation
        self.second = second

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.second(self.activation(self.first(states)))

    def n_soft_tokens(self, n_states: int) -> int:
        return n_states


def mlp2x_gelu(vision_width: int, llm_width: int, *, bias: bool = True) -> MlpProjector:
    """A fresh `mlp2x_gelu` projector."""
    first = nn.Linear(vision_width, llm_width, bias=bias)
    return MlpProjector(first, nn.GELU(), nn.Linear(llm_width, llm_width, bias=bias))
