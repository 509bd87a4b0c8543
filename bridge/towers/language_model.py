"""Language models of transformers as text towers: T5's encoders, and any encoder or decoder.

T5, Flan-T5, mT5, umT5 (Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a
Unified Text-to-Text Transformer"): positions are relative, so an input may be of any length;
pipelines say which. T5-v1.1-XXL is the text tower of PixArt, CogVideoX and LTX, and one of SD 3's
and FLUX.1's.

Gemma, Qwen, LLaMA, BERT ...: what ``AutoModel`` opens. A decoder's states see what stands before
them only, as CLIP's do.

None has a pooled state: no language model shares a space with pictures. Texts of a `TextTower` are
padded to the longest of a batch, and padding is masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from bridge.errors import OptionError, UnsupportedModelError, WeightsError
from bridge.files import read_json
from bridge.towers.checkpoint import load_tower
from bridge.towers.family import Parts, TextFamily, TowerSpec, positions, spec_of_config
from bridge.towers.states import Layer, TextStates
from bridge.towers.tokenizer import TokenRule

T5 = "T5EncoderModel"
T5_TOKENIZER = "T5TokenizerFast"
# model_type -> class of the encoder alone.
_T5_CLASSES = {"t5": T5, "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
# Where the models of transformers keep the norm after their last layer.
_NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "final_norm")


def load_t5(folder: Path, dtype: Any, device: Any, allow_pickle: bool = False) -> Parts:
    """The encoder of a T5 folder, with or without a decoder beside it. Raises WeightsError."""
    config = read_json(folder / "config.json")
    kind = _T5_CLASSES[str(config.get("model_type", "t5"))]
    spec = spec_of_config(config, T5, str(folder))
    return Parts(
        module=load_tower(kind, folder, dtype=dtype, device=device),
        spec=replace(spec, architecture=kind, attention_mask=True),
    )


def t5_spec_of(module: Any, source: str) -> TowerSpec:
    """The spec of a live encoder of T5."""
    spec = spec_of_config(module.config.to_dict(), T5, source)
    return replace(spec, architecture=type(module).__name__, attention_mask=True)


def load_text(folder: Path, dtype: Any, device: Any, allow_pickle: bool = False) -> Parts:
    """The model in ``folder``. Raises WeightsError, UnsupportedModelError."""
    if read_json(folder / "config.json").get("is_encoder_decoder"):
        raise UnsupportedModelError(
            f"{folder} is an encoder-decoder; bridge reads T5's encoder alone, and models that are "
            "one or the other"
        )
    module = load_tower("AutoModel", folder, dtype=dtype, device=device, may_lack="pooler.")
    if getattr(module, "pooler", None) is not None:
        module.pooler = None
    return Parts(module, spec_of(module, str(folder)))


def spec_of(module: Any, source: str) -> TowerSpec:
    """The spec by the module's config. Raises WeightsError naming what that lacks."""
    text = module.config.get_text_config()
    try:
        return TowerSpec(
            architecture=type(module).__name__,
            source=source,
            width=text.hidden_size,
            layers=text.num_hidden_layers,
            context=positions(module),
            pooled_width=0,
            activation=str(
                getattr(text, "hidden_act", None) or getattr(text, "hidden_activation", "")
            ),
            attention_mask=True,
            mlp_width=int(getattr(text, "intermediate_size", None) or 0),
        )
    except AttributeError as error:
        raise WeightsError(f"{source} has no config of a language model: {error}") from error


def encode(
    module: Any,
    ids: Tensor,
    layers: Sequence[Layer] = (Layer(),),
    mask: Tensor | None = None,
    attentions: bool = False,
) -> TextStates:
    """One forward pass.

    Args:
        module: a ``T5EncoderModel``, or another model without a head.
        ids: ``(B, T)`` int64 token ids on the module's device.
        layers: the layers wanted; all pipelines take the last with its norm.
        mask: ``(B, T)`` attention mask, 1 for tokens that may be seen; None to see padding too.
        attentions: give the weights of attention too, which needs eager attention.

    Returns:
        TextStates in the module's dtype, without a pooled state.

    Raises:
        OptionError: the last layer without its norm, which transformers does not give; the norm on
            an inner layer of a model that has none at its end (BERT).
    """
    kind = type(module).__name__
    if Layer(-1, False) in layers:
        raise OptionError(f"{kind}'s last layer comes with its norm only; ask for Layer(-1, True).")
    cache = {"use_cache": False} if hasattr(module.config, "use_cache") else {}
    out = module(
        ids,
        attention_mask=mask,
        output_hidden_states=any(layer.index != -1 for layer in layers),
        output_attentions=attentions,
        **cache,
    )

    def one(layer: Layer) -> Tensor:
        if layer.index == -1:
            return out.last_hidden_state  # ModernBERT's last of hidden_states is without its norm
        state = out.hidden_states[layer.index]
        return _norm(module, layer)(state) if layer.norm else state

    return TextStates(tuple(map(one, layers)), None, mask, out.attentions or ())


def _norm(module: Any, layer: Layer) -> Any:
    for owner in (module, getattr(module, "encoder", None)):  # T5's is the encoder's
        for name in _NORMS:
            if hasattr(owner, name):
                return getattr(owner, name)
    raise OptionError(
        f"{type(module).__name__} has no norm after its layers; ask for "
        f"Layer({layer.index}, norm=False)."
    )


T5_TEXT = TextFamily("t5", load_t5, encode, TokenRule(), spec=t5_spec_of)
TEXT = TextFamily("language_model", load_text, encode, TokenRule(), spec=spec_of)
