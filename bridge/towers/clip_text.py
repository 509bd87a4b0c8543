"""The CLIP text tower (``CLIPTextModel``): token ids in, token states and EOS state out.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision";
as used by Stable Diffusion 1 (ViT-L/14), 2 (OpenCLIP ViT-H/14) and SDXL's first tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bridge.towers.states import Layer, TextStates

ARCHITECTURE = "CLIPTextModel"
TOKENIZER = "CLIPTokenizer"


def encode(
    module: Any,
    ids: Tensor,
    layers: Sequence[Layer] = (Layer(),),
    mask: Tensor | None = None,
    attentions: bool = False,
) -> TextStates:
    """One forward pass of ``module``.

    Args:
        module: a ``CLIPTextModel``.
        ids: ``(B, T)`` int64 token ids on the module's device.
        layers: the layers wanted.
        mask: ``(B, T)`` attention mask, 1 for tokens that may be seen; None to see padding too,
            as Stable Diffusion does. Of floats: what is added to the logits of each token
            wherever it is looked at, which needs SDPA or eager attention.
        attentions: give the weights of attention too, which needs eager attention.

    Returns:
        TextStates in the module's dtype; pooled is the EOS state after the final norm.
    """
    out = module(
        ids,
        attention_mask=causal(module, mask),
        output_hidden_states=needs_all(layers),
        output_attentions=attentions,
    )
    return TextStates(pick(module, out, layers), out.pooler_output, mask, out.attentions or ())


def causal(module: Any, mask: Tensor | None) -> Tensor | None:
    """A mask of floats ``(B, T)`` as ``(B, 1, T, T)`` for causal attention; others as they are.

    transformers takes a mask of four dimensions as the whole of what is added to the logits.
    """
    if mask is None or not mask.is_floating_point():
        return mask
    length = mask.shape[-1]
    later = torch.full((length, length), -torch.inf, device=mask.device, dtype=torch.float32).triu(
        1
    )
    return (mask[:, None, None] + later).to(module.dtype)


def needs_all(layers: Sequence[Layer]) -> bool:
    """Whether any layer but the published last one is wanted."""
    return any(layer != Layer(-1, True) for layer in layers)


def pick(module: Any, out: Any, layers: Sequence[Layer]) -> tuple[Tensor, ...]:
    """The states of ``layers`` out of a CLIP text model's output."""
    return tuple(_one(module, out, layer) for layer in layers)


def _one(module: Any, out: Any, layer: Layer) -> Tensor:
    if layer == Layer(-1, True):
        return out.last_hidden_state
    # hidden_states starts with the embeddings and ends with the last layer before the norm.
    state = out.hidden_states[layer.index]
    return _final_norm(module)(state) if layer.norm else state


def _final_norm(module: Any) -> Any:
    # CLIPTextModel wrapped its transformer as .text_model until transformers 5.
    return getattr(module, "text_model", module).final_layer_norm
