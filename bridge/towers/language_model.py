"""Any encoder or decoder language model of transformers as text tower: its hidden states.

Gemma, Qwen, LLaMA, BERT ...: what ``AutoModel`` opens. A decoder's states see what stands before
them only, as CLIP's do. There is no pooled state: no language model shares a space with pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from bridge.errors import OptionError, UnsupportedModelError, WeightsError
from bridge.files import read_json
from bridge.towers.checkpoint import load_tower
from bridge.towers.family import Parts, TextFamily, TowerSpec, positions
from bridge.towers.states import Layer, TextStates
from bridge.towers.tokenizer import TokenRule

# Where the models of transformers keep the norm after their last layer.
_NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "final_norm")


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


def encode_text(
    module: Any, ids: Tensor, layers: Sequence[Layer], mask: Tensor, attentions: bool = False
) -> TextStates:
    """One forward pass; padding is not seen.

    Raises OptionError for the last layer without its norm, and for the norm on an inner layer of
    a model that has none at its end (BERT).
    """
    if Layer(-1, False) in layers:
        raise OptionError(
            "A language model's last layer comes with its norm only; ask for Layer(-1, True)."
        )
    cache = {"use_cache": False} if hasattr(module.config, "use_cache") else {}
    out = module(
        input_ids=ids,
        attention_mask=mask,
        output_hidden_states=True,
        output_attentions=attentions,
        **cache,
    )
    hidden = tuple(_one(module, out, layer) for layer in layers)
    return TextStates(hidden, None, mask, out.attentions or ())


def _one(module: Any, out: Any, layer: Layer) -> Tensor:
    if layer.index == -1:
        return out.last_hidden_state  # ModernBERT's last of hidden_states is without its norm
    state = out.hidden_states[layer.index]
    if not layer.norm:
        return state
    norm = next((getattr(module, name) for name in _NORMS if hasattr(module, name)), None)
    if norm is None:
        raise OptionError(
            f"{type(module).__name__} has no norm after its layers; ask for "
            f"Layer({layer.index}, norm=False)."
        )
    return norm(state)


TEXT = TextFamily("language_model", load_text, encode_text, TokenRule(), spec=spec_of)
