"""`linear`: one matrix, one soft token a state.

Liu et al., "Visual Instruction Tuning" (2023), section 4.1. Weights are named as in LLaVA's
`mm_projector` (`weight`, `bias`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bridge.vlm.projectors.protocol import Grid, n_states


class LinearProjector(nn.Linear):
    """(B, N, vision_width) to (B, N, llm_width)."""

    kind = "linear"

    def __init__(self, vision_width: int, llm_width: int, *, bias: bool = True) -> None:
        super().__init__(vision_width, llm_width, bias=bias, dtype=torch.float32)

    @property
    def vision_width(self) -> int:
        return self.in_features

    @property
    def llm_width(self) -> int:
        return self.out_features

    def forward(self, states: torch.Tensor, grid: Grid | None = None) -> torch.Tensor:
        return super().forward(states)

    def n_soft_tokens(self, states: Grid | int) -> int:
        return n_states(states)

    def options(self) -> dict[str, Any]:
        return {"bias": self.bias is not None}
