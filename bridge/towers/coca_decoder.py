"""CoCa's caption decoder: text states and a picture's tokens in, logits of the next token out.

Yu et al. 2022, "CoCa: Contrastive Captioners are Image-Text Foundation Models", in open_clip's
layout (``coca_model.py``, and ``MultimodalTransformer`` of ``transformer.py``): blocks of causal
self-attention over the text alternate with blocks of cross-attention to the picture's tokens, which
are what the image side's queries read, all but the first (that one is the pooled state).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bridge.errors import UnsupportedModelError, WeightsError
from bridge.towers.open_clip_files import OpenClipFiles

_START = "text_decoder."
_HEADS = 8  # open_clip's, for a config that does not say


class _QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (1.702 * x).sigmoid()


class _Attention(nn.Module):
    """Multi-head attention; its parameters are those of ``nn.MultiheadAttention``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        weight = torch.empty(3 * width, width, dtype=torch.float32)
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(weight))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width, dtype=torch.float32))
        self.out_proj = nn.Linear(width, width, dtype=torch.float32)

    def forward(self, x: Tensor, context: Tensor, causal: bool) -> Tensor:
        query, key, value = (
            F.linear(states, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for states, weight, bias in zip(
                (x, context, context),
                self.in_proj_weight.chunk(3),
                self.in_proj_bias.chunk(3),
                strict=True,
            )
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        found: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return found


class _Block(nn.Module):
    """Pre-norm attention and MLP: over the text itself, or over a picture's tokens."""

    def __init__(self, width: int, heads: int, inner: int, activation: str, cross: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, dtype=torch.float32)
        if cross:
            self.ln_1_kv = nn.LayerNorm(width, dtype=torch.float32)
        self.attn = _Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width, dtype=torch.float32)
        gelu = _QuickGELU() if activation == "quick_gelu" else nn.GELU()
        parts = [
            ("c_fc", nn.Linear(width, inner, dtype=torch.float32)),
            ("gelu", gelu),
            ("c_proj", nn.Linear(inner, width, dtype=torch.float32)),
        ]
        self.mlp = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor, picture: Tensor | None = None) -> Tensor:
        own = self.ln_1(x)
        context = own if picture is None else self.ln_1_kv(picture)
        x = x + self.attn(own, context, causal=picture is None)
        found: Tensor = x + self.mlp(self.ln_2(x))
        return found


class CoCaDecoder(nn.Module):
    """The decoder; its parameters have open_clip's names."""

    def __init__(
        self, layers: int, width: int, heads: int, inner: int, vocabulary: int, activation: str
    ) -> None:
        super().__init__()

        def blocks(cross: bool) -> nn.ModuleList:
            return nn.ModuleList(
                _Block(width, heads, inner, activation, cross) for _ in range(layers)
            )

        self.resblocks = blocks(cross=False)
        self.cross_attn = blocks(cross=True)
        self.ln_final = nn.LayerNorm(width, dtype=torch.float32)
        self.text_projection = nn.Parameter(torch.zeros(width, vocabulary, dtype=torch.float32))

    def forward(self, picture: Tensor, text: Tensor) -> Tensor:
        """``picture (B, N, D)`` and ``text (B, T, D)`` to logits ``(B, T, V)``."""
        for own, cross in zip(self.resblocks, self.cross_attn, strict=True):
            text = cross(own(text), picture)
        found: Tensor = self.ln_final(text) @ self.text_projection
        return found


def load_decoder(files: OpenClipFiles, dtype: Any, device: Any) -> CoCaDecoder:
    """The decoder among a checkpoint's tensors.

    Raises UnsupportedModelError for a model without one or with blocks unlike these, WeightsError
    for a damaged one.
    """
    folder = files.folder
    own = {k.removeprefix(_START): t for k, t in files.state.items() if k.startswith(_START)}
    if not own:
        raise UnsupportedModelError(
            f"{folder} has no text_decoder, so it writes no captions; give a CoCa in open_clip's "
            "layout, such as 'coca-l'"
        )
    if files.model.get("multimodal_cfg", {}).get("ls_init_value") is not None:
        raise UnsupportedModelError(f"{folder}: its decoder has layer scales; bridge reads none")
    try:
        module = _shaped(own, files)
        module.load_state_dict(own)
    except (KeyError, ValueError, RuntimeError) as error:
        raise WeightsError(f"The caption decoder in {folder} does not fit: {error}") from error
    return module.to(device, dtype).eval().requires_grad_(False)


def _shaped(own: Mapping[str, Tensor], files: OpenClipFiles) -> CoCaDecoder:
    """An empty decoder: heads from the config, all else from the tensors."""
    width, vocabulary = own["text_projection"].shape
    layers = len({name.split(".")[1] for name in own if name.startswith("resblocks.")})
    heads = int(files.model.get("multimodal_cfg", {}).get("heads", _HEADS))
    if width % heads:
        raise ValueError(f"{heads} heads do not divide states {width} wide")
    inner = len(own["resblocks.0.mlp.c_fc.weight"])
    return CoCaDecoder(layers, width, heads, inner, vocabulary, files.activation("text_cfg"))
