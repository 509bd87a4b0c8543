"""`perceiver`: a fixed number of learned latents that look at the states, layer after layer.

Alayrac et al., "Flamingo" (2022), section 3.1, in the form of Idefics2 (Laurençon et al., "What
matters when building vision-language models?", 2024): a gated MLP to the language model's width
first, RMS norms, and keys and values from states and latents together. Weights are named as in
transformers' `Idefics2Connector`, whose tensors load as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from bridge.errors import OptionError
from bridge.vlm.projectors.protocol import Grid

EPSILON = 1e-6


class PerceiverProjector(nn.Module):
    """(B, N, vision_width) to (B, latents, llm_width), whatever N is.

    ``inner_width`` is the hidden width of the first MLP (None: four times ``llm_width``).
    """

    kind = "perceiver"

    def __init__(
        self,
        vision_width: int,
        llm_width: int,
        *,
        latents: int = 64,
        depth: int = 3,
        heads: int = 16,
        kv_heads: int = 4,
        head_width: int = 96,
        inner_width: int | None = None,
    ) -> None:
        super().__init__()
        if min(latents, depth, heads, kv_heads, head_width) < 1 or heads % kv_heads:
            raise OptionError(
                f"perceiver: latents {latents}, depth {depth}, heads {heads}, kv_heads {kv_heads}, "
                f"head_width {head_width}; all from 1 up, and kv_heads must divide heads"
            )
        self.vision_width, self.llm_width = vision_width, llm_width
        self._options = {
            "latents": latents,
            "depth": depth,
            "heads": heads,
            "kv_heads": kv_heads,
            "head_width": head_width,
            "inner_width": 4 * llm_width if inner_width is None else inner_width,
        }
        self.modality_projection = GatedMlp(vision_width, self._options["inner_width"], llm_width)
        self.perceiver_resampler = Resampler(llm_width, latents, depth, heads, kv_heads, head_width)

    def forward(self, states: torch.Tensor, grid: Grid | None = None) -> torch.Tensor:
        return self.perceiver_resampler(self.modality_projection(states))

    def n_soft_tokens(self, states: Grid | int) -> int:
        return self._options["latents"]

    def soft_grid(self, grid: Grid) -> None:
        """Latents that look at every state stand for no place."""

    def options(self) -> dict[str, Any]:
        return dict(self._options)


class Resampler(nn.Module):
    """(B, N, D) to (B, latents, D)."""

    def __init__(
        self, width: int, latents: int, depth: int, heads: int, kv_heads: int, head_width: int
    ) -> None:
        super().__init__()
        # Idefics2 starts all latents at one, from where only symmetry breaks them; noise does here.
        self.latents = nn.Parameter(torch.randn(latents, width, dtype=torch.float32) * 0.02)
        self.layers = nn.ModuleList(
            ResamplerLayer(width, heads, kv_heads, head_width) for _ in range(depth)
        )
        self.norm = nn.RMSNorm(width, EPSILON, dtype=torch.float32)

    def forward(self, context: torch.Tensor) -> torch.Tensor:
        latents = self.latents.expand(context.shape[0], -1, -1)
        for layer in self.layers:
            latents = layer(latents, context)
        return self.norm(latents)


class ResamplerLayer(nn.Module):
    """Latents take from the states and from each other, then think."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_width: int) -> None:
        super().__init__()
        self.input_latents_norm = nn.RMSNorm(width, EPSILON, dtype=torch.float32)
        self.input_context_norm = nn.RMSNorm(width, EPSILON, dtype=torch.float32)
        self.self_attn = LatentAttention(width, heads, kv_heads, head_width)
        self.post_attention_layernorm = nn.RMSNorm(width, EPSILON, dtype=torch.float32)
        self.mlp = GatedMlp(width, 4 * width, width)

    def forward(self, latents: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        normed = self.input_latents_norm(latents)
        latents = latents + self.self_attn(normed, self.input_context_norm(context))
        return latents + self.mlp(self.post_attention_layernorm(latents))


class LatentAttention(nn.Module):
    """Queries from the latents, keys and values from states and latents; grouped heads."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_width: int) -> None:
        super().__init__()
        self.head_width = head_width
        self.q_proj = nn.Linear(width, heads * head_width, bias=False, dtype=torch.float32)
        self.k_proj = nn.Linear(width, kv_heads * head_width, bias=False, dtype=torch.float32)
        self.v_proj = nn.Linear(width, kv_heads * head_width, bias=False, dtype=torch.float32)
        self.o_proj = nn.Linear(heads * head_width, width, bias=False, dtype=torch.float32)

    def forward(self, latents: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        both = torch.cat([context, latents], dim=1)
        query, key, value = (
            proj(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
            for proj, x in ((self.q_proj, latents), (self.k_proj, both), (self.v_proj, both))
        )
        taken = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        return self.o_proj(taken.transpose(1, 2).flatten(2))


class GatedMlp(nn.Module):
    """SwiGLU (Shazeer 2020) from one width to another."""

    def __init__(self, width: int, inner: int, out: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False, dtype=torch.float32)
        self.up_proj = nn.Linear(width, inner, bias=False, dtype=torch.float32)
        self.down_proj = nn.Linear(inner, out, bias=False, dtype=torch.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
