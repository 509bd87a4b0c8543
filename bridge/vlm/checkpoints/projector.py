"""LLaVA's projectors by their `mm_projector_type`, with its own tensor names."""

from __future__ import annotations

import re

import torch
from torch import nn

from bridge.errors import UnsupportedModelError


class LlavaProjector(nn.Sequential):
    """(B, N, D_vision) to (B, N, D_llm): one soft token a state."""

    def forward(self, states: torch.Tensor, grid: object = None) -> torch.Tensor:
        return super().forward(states)

    def n_soft_tokens(self, n_states: int) -> int:
        return n_states


def llava_projector(kind: str, vision_width: int, llm_width: int) -> nn.Module:
    """A fresh `linear`, `mlpNx_gelu` or `identity`, after LLaVA's multimodal_projector/builder.py.

    Raises UnsupportedModelError for another kind.
    """
    if kind == "identity":
        return LlavaProjector()
    depth = re.fullmatch(r"mlp(\d+)x_gelu", kind)
    if kind != "linear" and depth is None:
        raise UnsupportedModelError(
            f"mm_projector_type {kind!r} is not one of LLaVA's: linear, mlpNx_gelu, identity"
        )
    modules: list[nn.Module] = [nn.Linear(vision_width, llm_width)]
    for _ in range(1, int(depth[1]) if depth else 1):
        modules += [nn.GELU(), nn.Linear(llm_width, llm_width)]
    return LlavaProjector(*modules)


def own_name(name: str) -> str:
    """A tensor's name within the projector; LLaVA's `linear` has no layer number."""
    return f"0.{name}" if name in ("weight", "bias") else name
