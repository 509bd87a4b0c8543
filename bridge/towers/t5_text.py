"""The T5 encoder (``T5EncoderModel``): token ids in, token states out, no pooled state.

Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer". Its positions are relative, so an input may be of any length; pipelines say which.
T5-v1.1-XXL is the text tower of PixArt, CogVideoX and LTX, and one of SD 3's and FLUX.1's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from bridge.errors import OptionError
from bridge.towers.states import Layer, TextStates

ARCHITECTURE = "T5EncoderModel"
TOKENIZER = "T5TokenizerFast"


def encode(
    module: Any,
    ids: Tensor,
    layers: Sequence[Layer] = (Layer(),),
    mask: Tensor | None = None,
    attentions: bool = False,
) -> TextStates:
    """One forward pass of ``module``.

    Args:
        module: a ``T5EncoderModel``.
        ids: ``(B, T)`` int64 token ids on the module's device.
        layers: the layers wanted; all pipelines take the last with its norm.
        mask: ``(B, T)`` attention mask, 1 for tokens that may be seen; None to see padding too.
        attentions: give the weights of attention too, which needs eager attention.

    Returns:
        TextStates without a pooled state.

    Raises:
        OptionError: the last layer without its norm, which transformers does not give.
    """
    if Layer(-1, False) in layers:
        raise OptionError("T5's last layer comes with its norm only; ask for Layer(-1, True).")
    inner = any(layer.index != -1 for layer in layers)
    out = module(ids, attention_mask=mask, output_hidden_states=inner, output_attentions=attentions)
    hidden = tuple(_one(module, out, layer) for layer in layers)
    return TextStates(hidden, None, mask, out.attentions or ())


def _one(module: Any, out: Any, layer: Layer) -> Tensor:
    if layer.index == -1:
        return out.last_hidden_state
    state = out.hidden_states[layer.index]
    return module.encoder.final_layer_norm(state) if layer.norm else state
