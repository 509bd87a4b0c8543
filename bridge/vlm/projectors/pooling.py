"""Projectors to a coarser grid of soft tokens: average pool, pixel shuffle, C-Abstractor."""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from bridge.errors import OptionError
from bridge.vlm.projectors.per_state import mlp2x_gelu
from bridge.vlm.projectors.protocol import Grid, as_grid, as_image


class AveragePoolProjector(nn.Module):
    """The mean of s x s neighbouring states, then LLaVA's two-layer MLP.

    (B, h*w, vision_width) to (B, ceil(h/stride) * ceil(w/stride), llm_width). Yao et al., "DeCo:
    Decoupling Token Compression from Semantic Abstraction" (2024): pooling keeps places and has
    nothing to learn, so all learning goes into the MLP. Squares that hang over the edge of the grid
    take the mean of what lies in the grid.
    """

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


class PixelShuffleProjector(nn.Module):
    """s x s neighbouring states side by side in the channels, then one matrix.

    (B, h*w, vision_width) to (B, h*w / scale**2, llm_width); ``scale`` divides both sides. The
    order of channels is that of Idefics3's connector (Laurençon et al., "Building and better
    understanding vision-language models", 2024, section 2.2), which nanoVLM and SmolVLM share: the
    row within the square first, then the column, then the state's own channels. Shi et al. (2016)
    wrote the other direction, InternVL 1.5 brought this one to VLMs.
    """

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


class CAbstractorProjector(nn.Module):
    """Convolutions, an adaptive mean to a square of tokens, convolutions, an MLP.

    (B, h*w, vision_width) to (B, tokens, llm_width); ``tokens`` is a square number. ``grid`` is
    that of the learned position table, interpolated for pictures of another grid. Cha et al.,
    "Honeybee: Locality-enhanced Projector for Multimodal LLM" (arXiv 2312.06742), section 4.2 and
    table 9.
    """

    kind = "c_abstractor"

    def __init__(
        self,
        vision_width: int,
        llm_width: int,
        *,
        tokens: int = 144,
        depth: int = 3,
        hidden_width: int = 1024,
        grid: Grid = (24, 24),
    ) -> None:
        super().__init__()
        side = isqrt(max(tokens, 0))
        if side < 1 or side * side != tokens:
            raise OptionError(f"c_abstractor: tokens is {tokens}; give a square, such as 144")
        if depth < 1 or min(grid) < 1:
            raise OptionError(f"c_abstractor: depth {depth}, grid {grid}; all from 1 up")
        self.vision_width, self.llm_width = vision_width, llm_width
        self.side, self.depth, self.hidden_width = side, depth, hidden_width
        self.grid: Grid = (grid[0], grid[1])
        self.positions = nn.Parameter(
            torch.randn(1, vision_width, *self.grid, dtype=torch.float32) * 0.02
        )
        self.before = _blocks(depth, vision_width, hidden_width)
        self.after = _blocks(depth, hidden_width, hidden_width)
        self.readout = nn.Sequential(
            nn.Linear(hidden_width, llm_width, dtype=torch.float32),
            nn.SiLU(),
            nn.Linear(llm_width, llm_width, dtype=torch.float32),
        )

    def forward(self, states: torch.Tensor, grid: Grid | None = None) -> torch.Tensor:
        image = as_image(states, grid, self.kind)
        positions: torch.Tensor = self.positions
        if image.shape[2:] != positions.shape[2:]:
            wide = F.interpolate(positions.float(), image.shape[2:], mode="bicubic")
            positions = wide.to(image.dtype)
        image = self.before(image + positions)
        image = self.after(F.adaptive_avg_pool2d(image, self.side))
        return self.readout(image.flatten(2).transpose(1, 2))

    def n_soft_tokens(self, states: Grid | int) -> int:
        as_grid(states, self.kind)
        return self.side**2

    def soft_grid(self, grid: Grid) -> Grid:
        return self.side, self.side

    def options(self) -> dict[str, Any]:
        return {
            "tokens": self.side**2,
            "depth": self.depth,
            "hidden_width": self.hidden_width,
            "grid": list(self.grid),
        }


def _blocks(depth: int, width: int, out: int) -> nn.Sequential:
    return nn.Sequential(*(RegBlock(width if i == 0 else out, out) for i in range(depth)))


class RegBlock(nn.Module):
    """RegNet's Y block without stride: (B, C, h, w) to (B, C', h, w).

    With squeeze and excitation (Radosavovic et al. 2020): 1x1, 3x3 a channel, gate, 1x1, each but
    the gate with a LayerNorm over channels; SiLU.
    """

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        squeezed = max(1, round(width / 4))
        self.conv1 = nn.Conv2d(width, out, 1, bias=False, dtype=torch.float32)
        self.norm1 = ChannelNorm(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, groups=out, bias=False, dtype=torch.float32)
        self.norm2 = ChannelNorm(out)
        self.squeeze = nn.Conv2d(out, squeezed, 1, dtype=torch.float32)
        self.excite = nn.Conv2d(squeezed, out, 1, dtype=torch.float32)
        self.conv3 = nn.Conv2d(out, out, 1, bias=False, dtype=torch.float32)
        self.norm3 = ChannelNorm(out)
        same = width == out
        self.shortcut: nn.Module = (
            nn.Identity()
            if same
            else nn.Sequential(
                nn.Conv2d(width, out, 1, bias=False, dtype=torch.float32), ChannelNorm(out)
            )
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.norm1(self.conv1(image)))
        x = F.silu(self.norm2(self.conv2(x)))
        gate = self.excite(F.silu(self.squeeze(x.mean((2, 3), keepdim=True))))
        x = self.norm3(self.conv3(x * gate.sigmoid()))
        return F.silu(x + self.shortcut(image))


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, h, w)."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6, dtype=torch.float32)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(image.movedim(1, -1)).movedim(-1, 1)
