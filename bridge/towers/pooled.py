"""CLIP's pooled states alone, at a part of the work: the same numbers up to rounding.

Two things that a whole pass computes and a pooled state does not depend on are left out: what
stands behind a text's end (attention is causal), and of the last layer every row but the one that
is pooled, the text's EOS or the picture's class token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bridge.towers.watch import is_watched


def pool_text(module: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Pooled states ``(B, P)`` of a ``CLIPTextModel`` or ``CLIPTextModelWithProjection``.

    Args:
        module: the tower.
        ids: ``(B, T)``, padded on the right.
        mask: ``(B, T)``, 1 for a text's tokens, EOS included.
    """
    length = int(mask.sum(1).max())
    ids = ids[:, :length]
    # A tower with a projection wraps its transformer.
    text = getattr(module, "text_model", module)
    layers = text.encoder.layers
    if is_watched(layers[-1]) or is_watched(layers[-1].self_attn):
        out = module(ids)
        return _projected(module, out)
    ends = _ends(ids, module.config)
    state = text.embeddings(input_ids=ids)
    # transformers' attention needs the mask said; 0 and -inf are what it would make itself.
    later = torch.full((length, length), -torch.inf, device=ids.device, dtype=state.dtype).triu(1)
    for layer in layers[:-1]:
        state = layer(state, attention_mask=later[None, None])
    seen = torch.arange(length, dtype=torch.long, device=ids.device) <= ends[:, None]
    last = text.final_layer_norm(_last_row(layers[-1], state, ends, seen[:, None, None]))
    return module.text_projection(last) if hasattr(module, "text_projection") else last


def pool_image(module: Any, pixels: Tensor) -> Tensor:
    """Pooled states ``(B, P)`` of a ``CLIPVisionModelWithProjection``; pixels ``(B, 3, H, W)``."""
    vision = getattr(module, "vision_model", module)
    layers = vision.encoder.layers
    if is_watched(layers[-1]) or is_watched(layers[-1].self_attn):
        return module(pixels).image_embeds
    state = vision.pre_layrnorm(vision.embeddings(pixels))
    for layer in layers[:-1]:
        state = layer(state, attention_mask=None)
    first = torch.zeros(len(state), dtype=torch.long, device=state.device)
    last = vision.post_layernorm(_last_row(layers[-1], state, first, None))
    return module.visual_projection(last)


def _last_row(layer: Any, state: Tensor, places: Tensor, seen: Tensor | None) -> Tensor:
    """What a ``CLIPEncoderLayer`` gives at one place of each row: ``(B, D)``.

    Args:
        state: ``(B, T, D)``.
        places: ``(B,)``, the place that is wanted.
        seen: bool, ``(B, 1, 1, T)``, what that place may look at; None for all.
    """
    rows = torch.arange(len(state), dtype=torch.long, device=state.device)
    attention = layer.self_attn

    def in_heads(flat: Tensor) -> Tensor:
        return flat.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)

    normed = layer.layer_norm1(state)
    found = scaled_dot_product_attention(
        in_heads(attention.q_proj(normed[rows, places][:, None])),
        in_heads(attention.k_proj(normed)),
        in_heads(attention.v_proj(normed)),
        attn_mask=seen,
    )
    own = state[rows, places] + attention.out_proj(found.transpose(1, 2).flatten(2))[:, 0]
    out: Tensor = own + layer.mlp(layer.layer_norm2(own))
    return out


def _ends(ids: Tensor, config: Any) -> Tensor:
    """Where each text is pooled, ``(B,)``: at its highest id where EOS is said to be 2 (OpenAI's
    first configs, open_clip), else at the first EOS, as transformers has it."""
    if config.eos_token_id == 2:
        return ids.argmax(1)
    return (ids == config.eos_token_id).int().argmax(1)


def _projected(module: Any, out: Any) -> Tensor:
    pooled: Tensor = out.text_embeds if hasattr(module, "text_projection") else out.pooler_output
    return pooled
