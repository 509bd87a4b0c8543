"""Do tower, projector, language model and tokenizer fit together? Said when they are joined."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bridge.errors import OptionError, UnsupportedModelError
from bridge.vlm.features import SelectFeature, SelectLayer, patch_size, states_width
from bridge.vlm.prompting import special_tokens

SELECT_FEATURES = ("patch", "cls_patch", "drop_first")


def check_llm(llm: Any, name: str) -> None:
    """Raises UnsupportedModelError unless ``llm`` is a causal language model of transformers."""
    kind = type(llm).__name__
    if not (hasattr(llm, "generate") and hasattr(llm, "get_input_embeddings")):
        raise UnsupportedModelError(
            f"{name}: llm is a {kind}; give a causal language model of transformers "
            "(AutoModelForCausalLM)"
        )
    if getattr(llm.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{name}: {kind} is an encoder-decoder; soft tokens go into a decoder-only model"
        )
    if llm.get_output_embeddings() is None:
        raise UnsupportedModelError(
            f"{name}: {kind} has no output head; give the model with one (…ForCausalLM)"
        )


def check_vision(
    vision: nn.Module | None,
    projector: object,
    select_layer: SelectLayer,
    select_feature: SelectFeature,
    name: str,
) -> None:
    """Raises UnsupportedModelError for a tower of another kind, OptionError for a wrong choice."""
    if (vision is None) != (projector is None):
        given, lacking = ("projector", "vision") if vision is None else ("vision", "projector")
        raise OptionError(f"{name}: {given} is given and {lacking} is not; give both or neither")
    if vision is None:
        return
    patch_size(vision)
    if select_feature not in SELECT_FEATURES:
        raise OptionError(f"{name}: select_feature is {select_feature!r}; one of {SELECT_FEATURES}")
    layers = (select_layer,) if isinstance(select_layer, int) else select_layer
    depth = getattr(vision.config, "num_hidden_layers", None)
    for layer in layers:
        if isinstance(depth, int) and not -depth - 1 <= layer <= depth:
            raise OptionError(
                f"{name}: select_layer is {layer}; {type(vision).__name__} has {depth} layers: "
                f"{-depth - 1} to {depth}, where 0 is the embeddings"
            )


def check_widths(
    vision: nn.Module, projector: object, llm: Any, select_layer: SelectLayer, name: str
) -> None:
    """Raises OptionError when the projector is of another width than its neighbours."""
    kind = getattr(projector, "kind", type(projector).__name__)
    sides = (
        ("vision_width", "takes states", type(vision).__name__, states_width(vision, select_layer)),
        ("llm_width", "gives soft tokens", type(llm).__name__, llm_width(llm)),
    )
    for attribute, does, neighbour, wanted in sides:
        width = getattr(projector, attribute, wanted)
        if width != wanted:
            raise OptionError(
                f"{name}: the projector {kind!r} {does} of width {width}, and {neighbour} has "
                f"{wanted}; build it with {attribute}={wanted}"
            )


def check_image_token(tokenizer: Any, token: str, token_id: int, name: str) -> None:
    """Raises UnsupportedModelError unless the tokenizer reads ``token`` as that one id."""
    found = list(tokenizer(f"a{token}b", add_special_tokens=False)["input_ids"])
    if found.count(token_id) != 1:
        raise UnsupportedModelError(
            f"{name}: the tokenizer does not read the image token {token!r} as the one id "
            f"{token_id}; bridge.vlm.pair adds it to a copy of the tokenizer"
        )


def checked_image_token(tokenizer: Any, image_id: int, name: str) -> str:
    """The text of the image token. Raises UnsupportedModelError unless it is a special token."""
    token = tokenizer.convert_ids_to_tokens(image_id) if image_id < len(tokenizer) else None
    if token is None or token not in special_tokens(tokenizer):
        raise UnsupportedModelError(
            f"{name}: the config's image token {image_id} is no special token of the tokenizer "
            f"(it is {token!r})"
        )
    return str(token)


def llm_width(llm: Any) -> int:
    """The width of the language model's word embeddings."""
    return int(llm.get_input_embeddings().weight.shape[-1])


def numbers_of(module: Any, otherwise: torch.Tensor) -> torch.Tensor:
    """A tensor of the dtype and on the device that a module calculates in, ``otherwise`` where it
    has none. Of a quantised one most weights are whole numbers, which nothing is calculated in."""
    weights = module.parameters() if isinstance(module, nn.Module) else ()
    return next((weight for weight in weights if weight.is_floating_point()), otherwise)


def is_quantised(module: Any) -> bool:
    """Whether weights of a module are kept in whole numbers (4 or 8 bits)."""
    weights = module.parameters() if isinstance(module, nn.Module) else ()
    return any(not weight.is_floating_point() for weight in weights)
