"""`mlp2x_gelu`, `mlp3x_gelu` ...: linear layers with GELU between, one soft token a state.

Liu et al., "Improved Baselines with Visual Instruction Tuning" (2023), section 3. Weights are
named as in LLaVA's `mm_projector` (`0.weight`, `2.weight` ...), so its tensors load as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bridge.vlm.projectors.protocol import Grid, n_states


class MlpProjector(nn.Sequential):
    """(B, N, vision_width) to (B, N, llm_width), through linear layers and activations in turn.

    ``activation`` is the name that transformers knows the activation by (its `ACT2FN`).
    """

    def __init__(self, *modules: nn.Module, activation: str = "gelu") -> None:
        super().__init__(*modules)
        self.activation = activation

    @property
    def kind(self) -> str:
        return f"mlp{len(self) // 2 + 1}x_gelu"

    @property
    def vision_width(self) -> int:
        return int(self[0].in_features)  # type: ignore[arg-type]

    @property
    def llm_width(self) -> int:
        return int(self[-1].out_features)  # type: ignore[arg-type]

    def forward(self, states: torch.Tensor, grid: Grid | None = None) -> torch.Tensor:
        return super().forward(states)

    def n_soft_tokens(self, states: Grid | int) -> int:
        return n_states(states)

    def options(self) -> dict[str, Any]:
        return {"bias": self[0].bias is not None, "activation": self.activation}


def mlp_gelu(
    depth: int, vision_width: int, llm_width: int, *, bias: bool = True, activation: str = "gelu"
) -> MlpProjector:
    """A fresh `mlp{depth}x_gelu`; a depth of 1 is a linear layer under another name.

    ``activation`` is for checkpoints that LLaVA's successors made with another than GELU.
    """
    modules: list[nn.Module] = [nn.Linear(vision_width, llm_width, bias=bias, dtype=torch.float32)]
    for _ in range(depth - 1):
        modules += [
            _activation(activation),
            nn.Linear(llm_width, llm_width, bias=bias, dtype=torch.float32),
        ]
    return MlpProjector(*modules, activation=activation)


def mlp2x_gelu(vision_width: int, llm_width: int, *, bias: bool = True) -> MlpProjector:
    """A fresh `mlp2x_gelu`, LLaVA-1.5's."""
    return mlp_gelu(2, vision_width, llm_width, bias=bias)


def _activation(name: str) -> nn.Module:
    if name == "gelu":
        return nn.GELU()
    from transformers.activations import ACT2FN

    module: nn.Module = ACT2FN[name]
    return module
