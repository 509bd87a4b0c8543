"""The T5 family's encoders as text towers: T5, Flan-T5, mT5, umT5; no pooled state.

Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer". Positions are relative, so an input may be of any length; pipelines say which.
T5-v1.1-XXL is the text tower of PixArt, CogVideoX and LTX, and one of SD 3's and FLUX.1's. Texts of
a `TextTower` are padded to the longest of a batch, and padding is masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from bridge.errors import OptionError
from bridge.files import read_json
from bridge.towers.checkpoint import load_tower
from bridge.towers.family import Parts, TextFamily, TowerSpec, spec_of_config
from bridge.towers.states import Layer, TextStates
from bridge.towers.tokenizer import TokenRule

ARCHITECTURE = "T5EncoderModel"
TOKENIZER = "T5TokenizerFast"
# model_type -> class of the encoder alone.
_CLASSES = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}


def load_text(folder: Path, dtype: Any, device: Any, allow_pickle: bool = False) -> Parts:
    """The encoder of a T5 folder, with or without a decoder beside it. Raises WeightsError."""
    config = read_json(folder / "config.json")
    kind = _CLASSES[str(config.get("model_type", "t5"))]
    spec = spec_of_config(config, ARCHITECTURE, str(folder))
    return Parts(
        module=load_tower(kind, folder, dtype=dtype, device=device),
        spec=replace(spec, architecture=kind, attention_mask=True),
    )


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


def spec_of(module: Any, source: str) -> TowerSpec:
    """The spec of a live encoder."""
    spec = spec_of_config(module.config.to_dict(), ARCHITECTURE, source)
    return replace(spec, architecture=type(module).__name__, attention_mask=True)


TEXT = TextFamily("t5", load_text, encode, TokenRule(), spec=spec_of)
