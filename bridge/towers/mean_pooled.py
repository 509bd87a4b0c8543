"""BERT-like encoders whose states are averaged and mapped into CLIP's space.

open_clip's towers with a text model of transformers (XLM-RoBERTa) and Multilingual CLIP are both
this: an encoder, the mean of its states over the text's tokens, a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bridge.errors import UnsupportedModelError, WeightsError
from bridge.towers.checkpoint import load_tower
from bridge.towers.headed import Headed
from bridge.towers.positions import positions
from bridge.towers.spec import TowerSpec
from bridge.towers.states import Layer, TextStates

# model_type -> class, id of padding, epsilon of the norms: what the tensors do not tell.
_KINDS = {
    "xlm-roberta": ("XLMRobertaModel", 1, 1e-5),
    "roberta": ("RobertaModel", 1, 1e-5),
    "bert": ("BertModel", 0, 1e-12),
}
_HEAD_WIDTH = 64


def kind_of(base: str, folder: Path) -> str:
    """The model_type of a published encoder by its name. Raises UnsupportedModelError, which names
    the ``folder`` that asks for it."""
    name = base.lower()
    if "roberta" in name:
        return "xlm-roberta" if "xlm" in name else "roberta"
    if "bert" in name or "labse" in name:
        return "bert"
    raise UnsupportedModelError(
        f"{folder}: the text model {base!r} is of no kind that bridge knows; it reads XLM-RoBERTa, "
        "RoBERTa and BERT (LaBSE) under a mean pooler"
    )


def kind_of_type(model_type: str, folder: Path) -> str:
    """``model_type`` itself. Raises UnsupportedModelError for one that bridge does not know."""
    if model_type not in _KINDS:
        raise UnsupportedModelError(
            f"{folder}: its text model is of the kind {model_type!r}; bridge reads "
            f"{', '.join(_KINDS)} under a mean pooler"
        )
    return model_type


def load_encoder(
    kind: str,
    state: Mapping[str, Tensor],
    folder: Path,
    dtype: Any,
    device: Any,
    **changes: Any,
) -> Any:
    """The encoder of ``state``, by transformers' own names; its widths are those of its tensors.

    ``changes`` go into the config. The pooler, which mean pooling does not use, is left out.
    Raises WeightsError.
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
    try:
        config.update(changes)
    # transformers' strict configs raise a class of huggingface_hub's own.
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise WeightsError(
            f"The text model in {folder} has a config that cannot be: {' '.join(lines)}"
        ) from error
    heads = config.num_attention_heads
    if heads < 1 or config.hidden_size % heads:
        raise WeightsError(
            f"The text model in {folder} has {heads} heads by its config, and they do not divide "
            f"states {config.hidden_size} wide"
        )
    kept = {each: t for each, t in state.items() if not each.startswith("pooler.")}
    encoder = load_tower(
        name, folder, dtype=dtype, device=device, config=config, state=kept, may_lack="pooler."
    )
    encoder.pooler = None
    return encoder


def load_head(head: nn.Module, state: Mapping[str, Tensor], dtype: Any, device: Any) -> nn.Module:
    """The head with its tensors. Raises WeightsError."""
    try:
        head.load_state_dict(dict(state))
    except RuntimeError as error:
        raise WeightsError(f"The map into CLIP's space does not fit: {error}") from error
    return head.to(device, dtype).eval().requires_grad_(False)


def spec_of(module: Headed, source: str, pooled: int, context: int | None = None) -> TowerSpec:
    """The spec; ``context`` at most, of as many places as the encoder has."""
    config = module.config
    places = positions(module.encoder)
    return TowerSpec(
        architecture=type(module.encoder).__name__,
        source=source,
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        context=min(context or places, places),
        pooled_width=pooled,
        activation=config.hidden_act,
        attention_mask=True,
        mlp_width=config.intermediate_size,
    )


def encode(
    module: Headed,
    ids: Tensor,
    mask: Tensor,
    layers: Sequence[Layer] = (Layer(),),
    attentions: bool = False,
) -> TextStates:
    """One forward pass; padding is not seen. Every layer ends in its norm, so a layer without it
    is the same."""
    out = module.encoder(
        ids, attention_mask=mask, output_hidden_states=True, output_attentions=attentions
    )
    seen = mask[..., None].to(out.last_hidden_state.dtype)
    mean = (out.last_hidden_state * seen).sum(1) / seen.sum(1)
    hidden = tuple(out.hidden_states[layer.index] for layer in layers)
    weights = out.attentions if attentions else ()
    return TextStates(hidden, module.head(mean), mask, weights)
