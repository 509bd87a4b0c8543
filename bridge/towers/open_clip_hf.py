"""open_clip's models with a text tower of transformers: XLM-RoBERTa under a mean pooler.

Their text side is ``HFTextEncoder`` of open_clip: the mean state goes through two Linear layers
without bias and a GELU between (``hf_proj_type`` "mlp"), one ("linear"), or none. The image side
is open_clip's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bridge.errors import UnsupportedModelError
from bridge.towers.batch import TokenRule
from bridge.towers.clip import encode_image
from bridge.towers.family import ImageFamily, Parts, TextFamily
from bridge.towers.headed import Headed
from bridge.towers.mean_pooled import encode, kind_of, load_encoder, load_head, spec_of
from bridge.towers.open_clip import load_image
from bridge.towers.open_clip_files import read_files

_ENCODER = "text.transformer."
_HEAD = "text.proj."
# open_clip's default, which the published configs leave as it is.
_CONTEXT = 77
# LAION's multilingual models come without a config.
_USUAL = "xlm-roberta"


def load_text(folder: Path, dtype: Any, device: Any, allow_pickle: bool = False) -> Parts:
    """The text tower. Raises WeightsError, UnsupportedModelError."""
    files = read_files(folder, allow_pickle)
    told = files.model.get("text_cfg", {})
    pooler = told.get("hf_pooler_type", "mean_pooler")
    if pooler != "mean_pooler":
        raise UnsupportedModelError(f"{folder} pools by {pooler!r}; bridge reads mean_pooler")
    inner = {k.removeprefix(_ENCODER): t for k, t in files.state.items() if k.startswith(_ENCODER)}
    head = {k.removeprefix(_HEAD): t for k, t in files.state.items() if k.startswith(_HEAD)}
    kind = kind_of(str(told.get("hf_model_name", _USUAL)), folder)
    changes = told.get("hf_model_config") or {}
    encoder = load_encoder(kind, inner, folder, dtype, device, **changes)
    module = Headed(encoder, load_head(_head(head), head, dtype, device))
    width = encoder.config.hidden_size
    pooled = list(head.values())[-1].shape[0] if head else width
    context = int(told.get("context_length", _CONTEXT))
    return Parts(
        module=module,
        spec=spec_of(module, str(folder), pooled, context),
        scoring=files.scoring(),
    )


def _head(state: Mapping[str, Tensor]) -> nn.Module:
    """The layers that the tensors are of: ``0`` and ``2`` of a Sequential, one Linear, or none."""
    if not state:
        return nn.Identity()
    if "weight" in state:
        pooled, width = state["weight"].shape
        return nn.Linear(width, pooled, bias=False, dtype=torch.float32)
    inner, width = state["0.weight"].shape
    pooled = state["2.weight"].shape[0]
    return nn.Sequential(
        nn.Linear(width, inner, bias=False, dtype=torch.float32),
        nn.GELU(),
        nn.Linear(inner, pooled, bias=False, dtype=torch.float32),
    )


TEXT = TextFamily("open_clip_hf", load_text, encode, TokenRule(fill=True))
IMAGE = ImageFamily("open_clip_hf", load_image, encode_image)
