"""Text models of transformers whose states are pooled and mapped into CLIP's space: two families.

Both are an encoder, the mean of its states over the text's tokens (or its first token's), and a
head.

Multilingual CLIP (Carlsson et al. 2022, "Cross-lingual and Multilingual CLIP") is XLM-RoBERTa or
LaBSE, taught to land where CLIP's text tower does; layout of FreddeFrallan/Multilingual-CLIP:
``transformer.*`` and ``LinearTransformation``. Its pooled state alone was trained, so its token
states feed no cross-attention without an adapter of their own; its pictures are CLIP's (ViT-L/14),
which are opened as such.

open_clip's models with a text tower of transformers (``HFTextEncoder``): XLM-RoBERTa, RoBERTa and
mT5's encoder under a mean pooler, NLLB's encoder (M2M-100) read at its first token, BERT by its own
pooler. What is pooled goes through two Linear layers without bias and a GELU between
(``hf_proj_type`` "mlp"), one ("linear"), or none. The image side is open_clip's own. What the
tensors do not tell of the text model stands in its own config.json, on the hub or in a folder, as
open_clip asks for it; those of the published models are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bridge.errors import BridgeError, UnsupportedModelError, WeightsError
from bridge.files import read_json
from bridge.store import resolve
from bridge.towers.checkpoint import load_tower
from bridge.towers.family import (
    Headed,
    ImageFamily,
    Parts,
    TextFamily,
    TowerSpec,
    positions,
    spec_of_side,
)
from bridge.towers.open_clip import encode_image, load_image, pool_image
from bridge.towers.open_clip_config import read_files, reading_of_texts, side_of
from bridge.towers.states import Layer, TextStates
from bridge.towers.tensors import read_state
from bridge.towers.tokenizer import TokenRule

# model_type -> class, id of padding, epsilon of the norms: what the tensors do not tell.
_KINDS = {
    "xlm-roberta": ("XLMRobertaModel", 1, 1e-5),
    "roberta": ("RobertaModel", 1, 1e-5),
    "bert": ("BertModel", 0, 1e-12),
}
_HEAD_WIDTH = 64
# open_clip's default, which the published configs leave as it is.
_CONTEXT = 77
# Text models whose heads and epsilons are their kind's (`mean_pooled`).
_PUBLISHED = {
    "xlm-roberta", "xlm-roberta-base", "xlm-roberta-large", "roberta-base", "roberta-large",
    "bert-base-uncased", "bert-base-cased", "bert-base-multilingual-cased", "bert-large-uncased",
    "bert-large-cased", "LaBSE", "mt5-small", "mt5-base", "mt5-large", "mt5-xl", "mt5-xxl",
    "nllb-200-distilled-600M", "nllb-200-distilled-1.3B", "nllb-200-1.3B", "nllb-200-3.3B",
}  # fmt: skip
_UNTOLD = (
    "num_attention_heads", "layer_norm_eps", "hidden_act", "pad_token_id",
    "position_embedding_type", "feed_forward_proj", "layer_norm_epsilon", "scale_embedding",
    "encoder_attention_heads", "activation_function", "relative_attention_max_distance",
)  # fmt: skip
# hf_pooler_type -> where states are pooled: BERT and its kin have a pooler of their own.
_POOLERS = {"mean_pooler": "mean", "cls_pooler": "own", "cls_last_hidden_state_pooler": "first"}
# LAION's multilingual models come without a config.
_USUAL = "xlm-roberta"


def load_multilingual(folder: Path, dtype: Any, device: Any, allow_pickle: bool = False) -> Parts:
    """The text tower. Raises WeightsError, UnsupportedModelError."""
    config = read_json(folder / "config.json")
    state = read_state(folder, "model.safetensors", allow_pickle)
    inner, head = _parts(state, "transformer.", "LinearTransformation.")
    if "weight" not in head:
        raise WeightsError(
            f"{folder} lacks LinearTransformation.weight; it is not a Multilingual CLIP"
        )
    base = str(config.get("modelBase") or config.get("model_type"))
    changes = {k: config[k] for k in ("num_attention_heads",) if k in config}
    encoder = load_encoder(kind_of(base, folder), inner, folder, dtype, device, **changes)
    pooled, width = head["weight"].shape
    module = Pooled(
        encoder, load_head(nn.Linear(width, pooled, dtype=torch.float32), head, dtype, device)
    )
    return Parts(module, _spec(module, folder, pooled))


def load_open_clip(folder: Path, dtype: Any, device: Any, allow_pickle: bool = False) -> Parts:
    """The text tower. Raises WeightsError, UnsupportedModelError."""
    files = read_files(folder, allow_pickle, "text_cfg")
    told = side_of(files.model, "text_cfg")
    pooler = told.get("hf_pooler_type") or "mean_pooler"
    if pooler not in _POOLERS:
        raise UnsupportedModelError(
            f"{folder} asks for text_cfg.hf_pooler_type={pooler!r}; bridge reads "
            f"{', '.join(_POOLERS)}"
        )
    inner, head = _parts(files.state, "text.transformer.", "text.proj.")
    kind, values = _text_model(str(told.get("hf_model_name") or _USUAL), folder)
    changes = {**values, **(told.get("hf_model_config") or {})}
    pool = "first" if kind in _HALVES and pooler == "cls_pooler" else _POOLERS[pooler]
    load = _HALVES.get(kind, partial(load_encoder, kind, pooler=pool == "own"))
    encoder = load(inner, folder, dtype, device, **changes)
    module = Pooled(encoder, load_head(_head(head), head, dtype, device), pool)
    width = encoder.config.hidden_size
    pooled = list(head.values())[-1].shape[0] if head else width
    context = int(told.get("context_length", _CONTEXT))
    return Parts(
        module=module,
        spec=_spec(module, folder, pooled, context),
        scoring=files.scoring(),
        reads=reading_of_texts(files.model),
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


def _parts(state: Mapping[str, Tensor], encoder: str, head: str) -> tuple[Any, Any]:
    """The tensors of the encoder and of the head, by the rest of their names."""
    inner, outer = (
        {name.removeprefix(start): t for name, t in state.items() if name.startswith(start)}
        for start in (encoder, head)
    )
    return inner, outer


def kind_of(base: str, folder: Path) -> str:
    """The model_type of a published encoder by its name. Raises UnsupportedModelError, which names
    the ``folder`` that asks for it."""
    name = base.lower()
    if "roberta" in name:
        return "xlm-roberta" if "xlm" in name else "roberta"
    if "bert" in name or "labse" in name:
        return "bert"
    if "mt5" in name or "nllb" in name:
        return "mt5" if "mt5" in name else "m2m_100"
    raise UnsupportedModelError(
        f"{folder}: the text model {base!r} is of no kind that bridge knows; it reads XLM-RoBERTa, "
        "RoBERTa, BERT (LaBSE), mT5 and NLLB"
    )


def kind_of_type(model_type: str, folder: Path) -> str:
    """``model_type`` itself. Raises UnsupportedModelError for one that bridge does not know."""
    if model_type not in {*_KINDS, *_HALVES}:
        raise UnsupportedModelError(
            f"{folder}: its text model is of the kind {model_type!r}; bridge reads "
            f"{', '.join((*_KINDS, *_HALVES))}"
        )
    return model_type


def load_encoder(
    kind: str,
    state: Mapping[str, Tensor],
    folder: Path,
    dtype: Any,
    device: Any,
    pooler: bool = False,
    **changes: Any,
) -> Any:
    """The encoder of ``state``, by transformers' own names; its widths are those of its tensors.

    ``changes`` go into the config. Without ``pooler`` its own one is left out. Raises WeightsError.
    """
    from transformers import AutoConfig

    name, pad, epsilon = _KINDS[kind]
    try:
        words = state["embeddings.word_embeddings.weight"]
        layers = sum(each.endswith(".intermediate.dense.bias") for each in state)
        config = AutoConfig.for_model(
            kind,
            vocab_size=len(words),
            hidden_size=words.shape[1],
            num_hidden_layers=layers,
            num_attention_heads=words.shape[1] // _HEAD_WIDTH,
            intermediate_size=len(state["encoder.layer.0.intermediate.dense.bias"]),
            max_position_embeddings=len(state["embeddings.position_embeddings.weight"]),
            type_vocab_size=len(state["embeddings.token_type_embeddings.weight"]),
            pad_token_id=pad,
            layer_norm_eps=epsilon,
        )
    except KeyError as error:
        raise WeightsError(f"The text model in {folder} lacks {error}; it is damaged") from error
    _change(config, changes, folder)
    heads = config.num_attention_heads
    if heads < 1 or config.hidden_size % heads:
        raise WeightsError(
            f"The text model in {folder} has {heads} heads by its config, and they do not divide "
            f"states {config.hidden_size} wide"
        )
    kept = {each: t for each, t in state.items() if pooler or not each.startswith("pooler.")}
    lacking = None if pooler else "pooler."
    encoder = load_tower(
        name, folder, dtype=dtype, device=device, config=config, state=kept, may_lack=lacking
    )
    if not pooler:
        encoder.pooler = None
    return encoder


def _change(config: Any, changes: Mapping[str, Any], folder: Path) -> None:
    """Put what a config says into one that was read from tensors. Raises WeightsError."""
    try:
        config.update({**changes})
    # transformers' strict configs raise a class of huggingface_hub's own.
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise WeightsError(
            f"The text model in {folder} has a config that cannot be: {' '.join(lines)}"
        ) from error


def _load_mt5(
    state: Mapping[str, Tensor], folder: Path, dtype: Any, device: Any, **changes: Any
) -> Any:
    """mT5's encoder; its config stands in its tensors, and it is gated by GELU."""
    from transformers import MT5Config

    block = "block.0.layer.0.SelfAttention."
    try:
        words = state["embed_tokens.weight"]
        buckets, heads = state[f"{block}relative_attention_bias.weight"].shape
        config = MT5Config(
            vocab_size=len(words),
            d_model=words.shape[1],
            d_kv=len(state[f"{block}q.weight"]) // heads,
            d_ff=len(state["block.0.layer.1.DenseReluDense.wi_0.weight"]),
            num_layers=sum(name.endswith("SelfAttention.q.weight") for name in state),
            num_heads=heads,
            relative_attention_num_buckets=buckets,
        )
    except KeyError as error:
        raise WeightsError(f"The text model in {folder} lacks {error}; it is damaged") from error
    _change(config, changes, folder)
    own = {f"encoder.{name}": tensor for name, tensor in state.items()}
    own["shared.weight"] = words
    return load_tower(
        "MT5EncoderModel", folder, dtype=dtype, device=device, config=config, state=own
    )


def _load_m2m(
    state: Mapping[str, Tensor], folder: Path, dtype: Any, device: Any, **changes: Any
) -> Any:
    """NLLB's encoder, with heads of 64 unless its config says otherwise."""
    from transformers import M2M100Config
    from transformers.models.m2m_100.modeling_m2m_100 import M2M100Encoder

    try:
        words = state["embed_tokens.weight"]
        config = M2M100Config(
            vocab_size=len(words),
            d_model=words.shape[1],
            encoder_layers=sum(name.endswith(".fc1.bias") for name in state),
            encoder_ffn_dim=len(state["layers.0.fc1.bias"]),
            encoder_attention_heads=words.shape[1] // _HEAD_WIDTH,
        )
    except KeyError as error:
        raise WeightsError(f"The text model in {folder} lacks {error}; it is damaged") from error
    _change(config, changes, folder)
    return load_tower(M2M100Encoder, folder, dtype=dtype, device=device, config=config, state=state)


# The encoders of what also has a decoder.
_HALVES = {"mt5": _load_mt5, "m2m_100": _load_m2m}


def load_head(head: nn.Module, state: Mapping[str, Tensor], dtype: Any, device: Any) -> nn.Module:
    """The head with its tensors. Raises WeightsError."""
    try:
        head.load_state_dict(dict(state))
    except RuntimeError as error:
        raise WeightsError(f"The map into CLIP's space does not fit: {error}") from error
    return head.to(device, dtype).eval().requires_grad_(False)


class Pooled(Headed):
    """An encoder, its head, and where its states are pooled: "mean", "first" or by its "own"
    pooler."""

    def __init__(self, encoder: Any, head: nn.Module, pool: str = "mean") -> None:
        super().__init__(encoder, head)
        self.pool = pool


def _spec(module: Pooled, folder: Path, pooled: int, context: int | None = None) -> TowerSpec:
    """The spec; ``context`` at most, of as many places as the encoder has."""
    encoder = module.encoder
    config, kind = encoder.config, type(encoder).__name__
    where = "mean" if module.pool == "mean" else "first"
    if config.model_type in _HALVES:
        # Its positions have no end.
        return TowerSpec(
            architecture=kind,
            source=str(folder),
            width=config.hidden_size,
            layers=config.num_hidden_layers,
            context=context or _CONTEXT,
            pooled_width=pooled,
            activation=str(getattr(config, "feed_forward_proj", "relu")),
            attention_mask=True,
            pooled_at=where,
        )
    places = positions(encoder)
    context = min(context or places, places)
    return spec_of_side(config, kind, str(folder), context=context, pooled=pooled, pooled_at=where)


def encode_text(
    module: Pooled, ids: Tensor, layers: Sequence[Layer], mask: Tensor, attentions: bool = False
) -> TextStates:
    """One forward pass; padding is not seen. Every layer ends in its norm (of mT5 and NLLB the
    last), so a layer without it is the same."""
    out = module.encoder(
        ids, attention_mask=mask, output_hidden_states=True, output_attentions=attentions
    )
    last = out.last_hidden_state
    if module.pool == "mean":
        seen = mask[..., None].to(last.dtype)
        pooled = (last * seen).sum(1) / seen.sum(1)
    else:
        pooled = last[:, 0] if module.pool == "first" else out.pooler_output
    hidden = tuple(out.hidden_states[layer.index] for layer in layers)
    return TextStates(hidden, module.head(pooled), mask, out.attentions or ())


MULTILINGUAL_TEXT = TextFamily(
    "multilingual_clip", load_multilingual, encode_text, TokenRule(), tokens=False
)
OPEN_CLIP_TEXT = TextFamily(
    "open_clip_hf", load_open_clip, encode_text, TokenRule(fill=True, clean="whitespace")
)
OPEN_CLIP_IMAGE = ImageFamily("open_clip_hf", load_image, encode_image, pool_image)
