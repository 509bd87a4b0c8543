"""A stock LLaVA of transformers, 1.5's kind or 1.6's, in the parts of a BridgeVLM."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bridge.errors import UnsupportedModelError
from bridge.runtime import building
from bridge.vlm.aspect import SQUARE, AnyRes, ImageAspect
from bridge.vlm.features import SelectFeature, n_extra_states
from bridge.vlm.model import BridgeVLM
from bridge.vlm.parts import checked_image_token
from bridge.vlm.projectors import MlpProjector


def from_llava(
    model: Any,
    tokenizer: Any,
    image_processor: Any,
    *,
    chat_template: str | None = None,
    aspect: ImageAspect | None = None,
    name: str = "LLaVA",
) -> BridgeVLM:
    """The parts of a stock LlavaForConditionalGeneration or LlavaNext..., sharing its parameters.

    ``aspect`` is for LLaVA 1.5's kind, whose config does not say it; LLaVA 1.6's is always
    "anyres" with the config's pinpoints.
    Raises UnsupportedModelError when the tokenizer does not know the model's image token, and
    for a Pixtral.
    """
    config = model.config
    check_tower(config.vision_config.model_type, name)
    core = model.model
    image_id = int(config.image_token_id)
    image_token = checked_image_token(tokenizer, image_id, name)
    if config.model_type == "llava_next":
        pinpoints = tuple((int(high), int(wide)) for high, wide in config.image_grid_pinpoints)
        tile = int(config.vision_config.image_size)
        aspect = AnyRes(pinpoints, tile, core.image_newline, int(image_processor.resample))
    layer = config.vision_feature_layer
    stock = core.multi_modal_projector
    whole = config.vision_feature_select_strategy == "full"
    return BridgeVLM(
        vision=core.vision_tower,
        projector=MlpProjector(
            stock.linear_1, stock.act, stock.linear_2, activation=config.projector_hidden_act
        ).eval(),
        llm=_causal_lm(model),
        tokenizer=tokenizer,
        image_processor=image_processor,
        image_token_id=image_id,
        image_token=image_token,
        select_layer=layer if isinstance(layer, int) else tuple(layer),
        select_feature="cls_patch" if whole else _default_feature(core.vision_tower),
        chat_template=chat_template,
        name=name,
        aspect=aspect or SQUARE,
    )


def check_tower(kind: object, name: object) -> None:
    """Refuses Pixtral, whose checkpoints say "llava" and are asked otherwise."""
    if kind == "pixtral":
        raise UnsupportedModelError(
            f"{name} is a Pixtral, whose pictures are of any shape and end each row with "
            "[IMG_BREAK]; bridge reads LLaVA's square ones: take a checkpoint with CLIP or SigLIP, "
            "such as llava-hf/llava-1.5-7b-hf, or open this one with transformers"
        )


def _default_feature(tower: nn.Module) -> SelectFeature:
    """transformers' "default" drops one state of every tower, a class token or not."""
    return "patch" if n_extra_states(tower) == 1 else "drop_first"


def _causal_lm(model: Any) -> Any:
    """The language model of a LLaVA as a causal LM of its own, parameters shared."""
    from transformers import AutoModelForCausalLM

    text_config = model.model.language_model.config
    # transformers builds it in the config's dtype, by the process's default.
    with building(), torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(text_config, trust_remote_code=False)
    setattr(llm, llm.base_model_prefix, model.model.language_model)
    llm.set_output_embeddings(model.lm_head)
    llm.config = text_config
    llm.generation_config = model.generation_config
    return llm.eval()
