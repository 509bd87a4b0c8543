"""The attention probabilities of a diffusers cross-attention, worked out beside it.

They follow ``diffusers.models.attention_processor.AttnProcessor``: the module's own norms, query
and key layers (LoRAs in them included), scale and mask, softmax in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bridge.diffusion.hooks import Kwargs
from bridge.errors import UnsupportedModelError


@torch.no_grad()
def probabilities(module: Any, args: tuple[Any, ...], kwargs: Kwargs) -> Tensor | None:
    """``(R, N, T)`` float32, the mean over the heads, for a call of ``module``.

    R rows, N places, T keys. None for a call without a prompt.

    Raises:
        UnsupportedModelError: keys that are not the prompt's alone.
    """
    names = ("hidden_states", "encoder_hidden_states", "attention_mask")
    call = dict(zip(names, args, strict=False)) | kwargs
    hidden, states = call["hidden_states"], call.get("encoder_hidden_states")
    if states is None:
        return None
    if not isinstance(states, Tensor):  # an IP-Adapter's pictures come behind the text
        states = states[0]
    if getattr(module, "add_k_proj", None) is not None:
        raise UnsupportedModelError(
            f"The keys of {type(module.processor).__name__} are the prompt's and the picture's at "
            "once, so they give no heat maps."
        )
    if hidden.ndim == 4:
        hidden = hidden.flatten(2).transpose(1, 2)
    if module.group_norm is not None:
        hidden = module.group_norm(hidden.transpose(1, 2)).transpose(1, 2)
    if module.norm_cross is not None and module.norm_cross is not False:
        states = module.norm_encoder_hidden_states(states)
    query, key = (_heads(module, x) for x in (module.to_q(hidden), module.to_k(states)))
    query = query if module.norm_q is None else module.norm_q(query)
    key = key if module.norm_k is None else module.norm_k(key)
    mask = call.get("attention_mask")
    # Row by row, so that no more than one row's heads are in memory.
    rows = [
        _softmax(query[row], key[row], module.scale, None if mask is None else mask[row])
        for row in range(len(query))
    ]
    return torch.stack(rows)


def _heads(module: Any, states: Tensor) -> Tensor:
    """``(R, N, heads * d)`` as ``(R, heads, N, d)``."""
    return states.unflatten(-1, (module.heads, -1)).transpose(1, 2)


def _softmax(query: Tensor, key: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    scores = query.float() @ key.float().transpose(-1, -2) * scale
    if mask is not None:
        scores = scores + mask.float()
    return scores.softmax(-1).mean(0)
