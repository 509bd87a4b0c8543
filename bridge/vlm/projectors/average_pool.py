"""`average_pool`: the mean of s x s neighbouring states, then LLaVA's two-layer MLP.

Yao et al., "DeCo: Decoupling Token Compression from Semantic Abstraction" (2024): pooling keeps
places and has nothing to learn, so all learning goes into the MLP. Squares that hang over the
edge of the grid take the mean of what lies in the grid.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from bridge.errors import OptionError
from bridge.vlm.projectors.mlp import mlp2x_gelu
from bridge.vlm.projectors.protocol import Grid, as_grid, as_image


class AveragePoolProjector(nn.Module):
    """(B, h*w, vision_width) to (B, ceil(h/stride) * ceil(w/stride), llm_width)."""

    kind = "average_pool"

    def __init__(self, vision_width: int, llm_width: int, *, stride: int = 2) -> None:
        super().__init__()
        if stride < 1:
            raise OptionError(f"average_pool: stride is {stride}; give a whole number from 1 up")
        self.vision_width, self.llm_width, self.stride = vision_width, llm_width, stride
        self.mlp = mlp2x_gelu(vision_width, llm_width)

    def forward(self, states: torch.Tensor, grid: Grid | None = None) -> torch.Tensor:
        image = as_image(states, grid, self.kind)
        pooled = F.avg_pool2d(image, self.stride, ceil_mode=True)
        return self.mlp(pooled.flatten(2).transpose(1, 2))

    def n_soft_tokens(self, states: Grid | int) -> int:
        rows, columns = as_grid(states, self.kind)
        return -(-rows // self.stride) * -(-columns // self.stride)

    def soft_grid(self, grid: Grid) -> Grid:
        return -(-grid[0] // self.stride), -(-grid[1] // self.stride)

    def options(self) -> dict[str, Any]:
        return {"stride": self.stride}
