"""The T5 family as text towers: T5, Flan-T5, mT5, umT5. The encoder is `t5_text`'s.

Texts are padded to the longest of a batch and padding is masked: positions are relative, so
nothing else depends on the length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from bridge.files import read_json
from bridge.towers import t5_text
from bridge.towers.batch import TokenRule
from bridge.towers.checkpoint import load_tower
from bridge.towers.family import Parts, TextFamily
from bridge.towers.spec import TowerSpec, spec_of_config
from bridge.towers.states import Layer, TextStates

# model_type -> class of the encoder alone.
_CLASSES = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}


def load_text(folder: Path, dtype: Any, device: Any, allow_pickle: bool = False) -> Parts:
    """The encoder of a T5 folder, with or without a decoder beside it. Raises WeightsError."""
    config = read_json(folder / "config.json")
    kind = _CLASSES[str(config.get("model_type", "t5"))]
    spec = spec_of_config(config, t5_text.ARCHITECTURE, str(folder))
    return Parts(
        module=load_tower(kind, folder, dtype=dtype, device=device),
        spec=replace(spec, architecture=kind, attention_mask=True),
    )


def encode_text(
    module: Any,
    ids: Tensor,
    mask: Tensor,
    layers: Sequence[Layer] = (Layer(),),
    attentions: bool = False,
) -> TextStates:
    """One forward pass; no pooled state. Raises OptionError for the last layer without norm."""
    return t5_text.encode(module, ids, layers, mask, attentions)


def spec_of(module: Any, source: str) -> TowerSpec:
    """The spec of a live encoder."""
    spec = spec_of_config(module.config.to_dict(), t5_text.ARCHITECTURE, source)
    return replace(spec, architecture=type(module).__name__, attention_mask=True)


TEXT = TextFamily("t5", load_text, encode_text, TokenRule(), spec=spec_of)
