"""`pixel_shuffle`: s x s neighbouring states side by side in the channels, then one matrix.

The order of channels is that of Idefics3's connector (Laurençon et al., "Building and better
understanding vision-language models", 2024, section 2.2), which nanoVLM and SmolVLM share: the
row within the square first, then the column, then the state's own channels. Shi et al. (2016)
wrote the other direction, InternVL 1.5 brought this one to VLMs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bridge.errors import OptionError
from bridge.vlm.projectors.protocol import Grid, as_grid, as_image


class PixelShuffleProjector(nn.Module):
    """(B, h*w, vision_width) to (B, h*w / scale**2, llm_width); ``scale`` divides both sides."""

    kind = "pixel_shuffle"

    def __init__(
        self, vision_width: int, llm_width: int, *, scale: int = 2, bias: bool = False
    ) -> None:
        super().__init__()
        if scale < 1:
            raise OptionError(f"pixel_shuffle: scale is {scale}; give a whole number from 1 up")
        self.vision_width, self.llm_width, self.scale = vision_width, llm_width, scale
        self.proj = nn.Linear(vision_width * scale**2, llm_width, bias=bias, dtype=torch.float32)

    def forward(self, states: torch.Tensor, grid: Grid | None = None) -> torch.Tensor:
        image = as_image(states, grid, self.kind)
        self.n_soft_tokens((image.shape[2], image.shape[3]))
        rows, columns = image.shape[2] // self.scale, image.shape[3] // self.scale
        squares = image.unflatten(3, (columns, self.scale)).unflatten(2, (rows, self.scale))
        # (B, D, rows, s, columns, s) -> (B, rows, columns, s, s, D)
        return self.proj(squares.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2))

    def n_soft_tokens(self, states: Grid | int) -> int:
        rows, columns = as_grid(states, self.kind)
        if rows % self.scale or columns % self.scale:
            raise OptionError(
                f"pixel_shuffle: a grid of {rows}x{columns} states does not divide by scale "
                f"{self.scale}; choose another scale or picture size"
            )
        return (rows // self.scale) * (columns // self.scale)

    def soft_grid(self, grid: Grid) -> Grid:
        return grid[0] // self.scale, grid[1] // self.scale

    def options(self) -> dict[str, Any]:
        return {"scale": self.scale, "bias": self.proj.bias is not None}
