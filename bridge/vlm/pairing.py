"""Any image tower with any language model: the parts, a fresh projector, and what they lack."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from bridge.errors import OptionError
from bridge.vlm.chat import IMAGE_TOKEN
from bridge.vlm.features import SelectFeature, SelectLayer, states_width
from bridge.vlm.model import BridgeVLM
from bridge.vlm.parts import check_llm, check_vision, llm_width
from bridge.vlm.projectors import Projector, build_projector
from bridge.vlm.prompting import special_tokens
from bridge.vlm.tower_processor import tower_processor


def pair(
    vision: Any,
    llm: Any,
    tokenizer: Any,
    *,
    projector: str | Projector | None = "mlp2x_gelu",
    projector_options: Mapping[str, Any] | None = None,
    image_processor: Any = None,
    select_layer: SelectLayer = -2,
    select_feature: SelectFeature = "patch",
    chat_template: str | None = None,
    image_token: str = IMAGE_TOKEN,
    name: str | None = None,
) -> BridgeVLM:
    """Join an image tower and a causal language model of transformers, to be trained or run.

    ``vision`` is a tower of patches (CLIPVisionModel, SiglipVisionModel, Dinov2Model ...), or a
    model that has one (CLIPModel), or None for text alone. ``projector`` is a name of
    `bridge.vlm.projectors.PROJECTORS`, built with ``projector_options`` at the right widths on
    the language model's device and in its dtype, with random weights (torch.manual_seed); or a
    projector. ``image_processor`` defaults to the one that the tower's family was published
    with, ``chat_template`` to the tokenizer's, and where that has none to LLaVA's layout.

    What you give is not changed. Tower and language model are shared, not copied. A tokenizer
    that lacks ``image_token`` is copied, and the copy gets it (``vlm.tokenizer``). The word
    embeddings stay as they are: the image token is a place, whose embedding is never looked up.

    Raises OptionError, UnsupportedModelError.
    """
    name = name or f"{type(vision).__name__} + {type(llm).__name__}"
    check_llm(llm, name)
    if vision is None:
        projector = None
    else:
        vision = image_tower(vision)
        check_vision(vision, projector, select_layer, select_feature, name)
        tokenizer = with_image_token(tokenizer, image_token)
        image_processor = image_processor or tower_processor(vision)
    if isinstance(projector, str):
        widths = states_width(vision, select_layer), llm_width(llm)
        fresh: Any = build_projector(projector, *widths, **(projector_options or {}))
        weight = llm.get_input_embeddings().weight
        made: Projector | None = fresh.to(weight.device, weight.dtype).eval()
    elif projector_options:
        raise OptionError("projector_options go with a projector's name, not with a projector")
    else:
        made = projector
    if chat_template is None and isinstance(tokenizer.chat_template, str):
        chat_template = tokenizer.chat_template
    return BridgeVLM(
        vision=vision,
        projector=made,
        llm=llm,
        tokenizer=tokenizer,
        image_processor=image_processor,
        image_token_id=tokenizer.convert_tokens_to_ids(image_token) if vision is not None else -1,
        image_token=image_token,
        select_layer=select_layer,
        select_feature=select_feature,
        chat_template=chat_template,
        name=name,
    )


def image_tower(model: Any) -> nn.Module:
    """The image tower itself, or that of a model with two (CLIPModel, SiglipModel)."""
    inner = getattr(model, "vision_model", None)
    if inner is not None and hasattr(getattr(model, "config", None), "vision_config"):
        model = inner
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise OptionError(
            f"vision is a {type(model).__name__}; give an image tower of transformers, such as "
            "CLIPVisionModel.from_pretrained(...)"
        )
    return model


def with_image_token(tokenizer: Any, token: str) -> Any:
    """The tokenizer if it has ``token`` as a special token, else a copy that has."""
    from transformers import AddedToken

    if token in special_tokens(tokenizer):
        return tokenizer
    longer = copy.deepcopy(tokenizer)
    added = AddedToken(token, special=True, normalized=False)
    longer.add_tokens([added], special_tokens=True)
    return longer
