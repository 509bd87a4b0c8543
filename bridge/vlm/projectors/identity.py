"""`identity`: the states as they are, for towers and language models of one width.

LLaVA's `IdentityMap` (llava/model/multimodal_projector/builder.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bridge.errors import OptionError
from bridge.vlm.projectors.protocol import Grid, n_states


class IdentityProjector(nn.Module):
    """(B, N, D) to itself. Raises OptionError when the two widths differ."""

    kind = "identity"

    def __init__(self, vision_width: int, llm_width: int) -> None:
        super().__init__()
        if vision_width != llm_width:
            raise OptionError(
                f"the projector 'identity' needs one width, but the tower's is {vision_width} and "
                f"the language model's {llm_width}; take 'linear' or 'mlp2x_gelu'"
            )
        self.vision_width = self.llm_width = vision_width

    def forward(self, states: torch.Tensor, grid: Grid | None = None) -> torch.Tensor:
        return states

    def n_soft_tokens(self, states: Grid | int) -> int:
        return n_states(states)

    def options(self) -> dict[str, Any]:
        return {}
