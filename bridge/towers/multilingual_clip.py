"""Multilingual CLIP: XLM-RoBERTa or LaBSE, taught to land where CLIP's text tower does.

Carlsson et al. 2022, "Cross-lingual and Multilingual CLIP"; layout of FreddeFrallan/
Multilingual-CLIP: ``transformer.*`` and ``LinearTransformation``. Its pooled state alone was
trained, so its token states feed no cross-attention without an adapter of their own; its
pictures are CLIP's (ViT-L/14), which are opened as such.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from bridge.errors import WeightsError
from bridge.files import read_json
from bridge.towers.batch import TokenRule
from bridge.towers.family import Parts, TextFamily
from bridge.towers.headed import Headed
from bridge.towers.mean_pooled import encode, kind_of, load_encoder, load_head, spec_of
from bridge.towers.tensors import read_state

_ENCODER = "transformer."
_HEAD = "LinearTransformation."


def load_text(folder: Path, dtype: Any, device: Any, allow_pickle: bool = False) -> Parts:
    """The text tower. Raises WeightsError, UnsupportedModelError."""
    config = read_json(folder / "config.json")
    state = read_state(folder, "model.safetensors", allow_pickle)
    inner = {k.removeprefix(_ENCODER): t for k, t in state.items() if k.startswith(_ENCODER)}
    head = {k.removeprefix(_HEAD): t for k, t in state.items() if k.startswith(_HEAD)}
    if "weight" not in head:
        raise WeightsError(f"{folder} lacks {_HEAD}weight; it is no Multilingual CLIP")
    base = str(config.get("modelBase") or config.get("model_type"))
    changes = {k: config[k] for k in ("num_attention_heads",) if k in config}
    encoder = load_encoder(kind_of(base, folder), inner, folder, dtype, device, **changes)
    pooled, width = head["weight"].shape
    module = Headed(
        encoder, load_head(nn.Linear(width, pooled, dtype=torch.float32), head, dtype, device)
    )
    return Parts(module, spec_of(module, str(folder), pooled))


TEXT = TextFamily("multilingual_clip", load_text, encode, TokenRule(), tokens=False)
