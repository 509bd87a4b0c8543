"""open_clip's models with a text tower of transformers: XLM-RoBERTa under a mean pooler.

Their text side is ``HFTextEncoder`` of open_clip: the mean state goes through two Linear layers
without bias and a GELU between (``hf_proj_type`` "mlp"), one ("linear"), or none. The image side
is open_clip's own. What the tensors do not tell of the text model stands in its own config.json,
on the hub or in a folder, as open_clip asks for it; those of the published models are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bridge.errors import BridgeError, UnsupportedModelError
from bridge.files import read_json
from bridge.store import resolve
from bridge.towers.batch import TokenRule
from bridge.towers.clip import encode_image
from bridge.towers.family import ImageFamily, Parts, TextFamily
from bridge.towers.headed import Headed
from bridge.towers.mean_pooled import (
    encode,
    kind_of,
    kind_of_type,
    load_encoder,
    load_head,
    spec_of,
)
from bridge.towers.open_clip import load_image
from bridge.towers.open_clip_config import cleaning
from bridge.towers.open_clip_files import read_files

_ENCODER = "text.transformer."
_HEAD = "text.proj."
# open_clip's default, which the published configs leave as it is.
_CONTEXT = 77
# Text models whose heads and epsilons are their kind's (`mean_pooled`).
_PUBLISHED = {
    "xlm-roberta", "xlm-roberta-base", "xlm-roberta-large", "roberta-base", "roberta-large",
    "bert-base-uncased", "bert-base-cased", "bert-base-multilingual-cased", "bert-large-uncased",
    "bert-large-cased", "LaBSE",
}  # fmt: skip
_UNTOLD = (
    "num_attention_heads", "layer_norm_eps", "hidden_act", "pad_token_id",
    "position_embedding_type",
)  # fmt: skip
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
    kind, values = _text_model(str(told.get("hf_model_name") or _USUAL), folder)
    changes = {**values, **(told.get("hf_model_config") or {})}
    encoder = load_encoder(kind, inner, folder, dtype, device, **changes)
    module = Headed(encoder, load_head(_head(head), head, dtype, device))
    width = encoder.config.hidden_size
    pooled = list(head.values())[-1].shape[0] if head else width
    context = int(told.get("context_length", _CONTEXT))
    return Parts(
        module=module,
        spec=spec_of(module, str(folder), pooled, context),
        scoring=files.scoring(),
        clean=cleaning(files.model),
    )


def _text_model(name: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """The model_type of a text model, and what its config says that no tensor does.

    Raises UnsupportedModelError for a kind that bridge does not know, and for a config that is
    neither known nor to be had.
    """
    if name.rpartition("/")[2] in _PUBLISHED:
        return kind_of(name, folder), {}
    try:
        told = read_json(resolve(name, allow_patterns=("config.json",)) / "config.json")
    except BridgeError as error:
        raise UnsupportedModelError(
            f"{folder} has the text model {name!r}, whose heads stand in its own config.json, and "
            f"that cannot be had: {error} Or write num_attention_heads and layer_norm_eps into "
            "text_cfg.hf_model_config."
        ) from error
    kind = str(told.get("model_type"))
    return kind_of_type(kind, folder), {each: told[each] for each in _UNTOLD if each in told}


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


TEXT = TextFamily("open_clip_hf", load_text, encode, TokenRule(fill=True, clean="whitespace"))
IMAGE = ImageFamily("open_clip_hf", load_image, encode_image)
