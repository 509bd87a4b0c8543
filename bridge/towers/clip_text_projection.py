"""The CLIP text tower with its projection (``CLIPTextModelWithProjection``).

SDXL's second tower is OpenCLIP ViT-bigG/14 in this shape; its pooled state is the EOS state
after the final norm times ``text_projection``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from bridge.towers.clip_text import causal, needs_all, pick
from bridge.towers.states import Layer, TextStates

ARCHITECTURE = "CLIPTextModelWithProjection"
TOKENIZER = "CLIPTokenizer"


def encode(
    module: Any,
    ids: Tensor,
    layers: Sequence[Layer] = (Layer(),),
    mask: Tensor | None = None,
    attentions: bool = False,
) -> TextStates:
    """One forward pass; as ``clip_text.encode``, but pooled is projected: ``(B, P)``."""
    out = module(
        ids,
        attention_mask=causal(module, mask),
        output_hidden_states=needs_all(layers),
        output_attentions=attentions,
    )
    return TextStates(pick(module, out, layers), out.text_embeds, mask, out.attentions or ())
