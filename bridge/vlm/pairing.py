"""Any image tower with any language model: the parts, a fresh projector, and what they lack."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import nn

from bridge.checks import keywords
from bridge.errors import OptionError, UnsupportedModelError
from bridge.vlm.chat import IMAGE_TOKEN
from bridge.vlm.chat_writer import special_tokens
from bridge.vlm.model import BridgeVLM
from bridge.vlm.projectors import Projector, build_projector
from bridge.vlm.validation import check_llm, check_vision, llm_width
from bridge.vlm.vision import SelectFeature, SelectLayer, patch_size, states_width


@keywords
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

    What you give is not changed. Tower and language model are shared, not copied. A tokenizer
    that lacks ``image_token`` is copied, and the copy gets it (``vlm.tokenizer``). The word
    embeddings stay as they are: the image token is a place, whose embedding is never looked up.

    Args:
        vision: a tower of patches (CLIPVisionModel, SiglipVisionModel, Dinov2Model ...), or a model
            that has one (CLIPModel), or None for text alone.
        llm, tokenizer: the language model, and what reads its texts.
        projector: one, or a name of `bridge.vlm.projectors.PROJECTORS`: then it is built with
            ``projector_options`` at the right widths on the language model's device and in its
            dtype, with random weights (torch.manual_seed).
        image_processor: by default the one that the tower's family was published with.
        select_layer, select_feature: what the projector is shown; see `bridge.vlm.vision`.
        chat_template: by default the tokenizer's, and where that has none LLaVA's layout.

    Raises:
        OptionError, UnsupportedModelError: parts that do not fit together.
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


# The tower's model_type -> family of its processor.
_FAMILIES = {
    "clip_vision_model": "clip",
    "siglip_vision_model": "siglip",
    "siglip2_vision_model": "siglip",
    "dinov2": "bit",
    "dinov2_with_registers": "bit",
}
_CLASSES = {
    "clip": "CLIPImageProcessorPil",
    "siglip": "SiglipImageProcessorPil",
    "bit": "BitImageProcessorPil",
}


def tower_processor(tower: Any) -> Any:
    """Resizing, cropping and normalising as CLIP, SigLIP or DINOv2 were published with.

    For towers that come without their checkpoint's processor, which is always the better choice.
    CLIP and DINOv2 cut the middle square out; SigLIP squeezes the whole picture. Raises
    UnsupportedModelError for another family of tower.
    """
    kind = getattr(tower.config, "model_type", None)
    family = _FAMILIES.get(str(kind))
    if family is None:
        raise UnsupportedModelError(
            f"bridge does not know how {type(tower).__name__} ({kind}) was shown its pictures; "
            "give image_processor, such as AutoImageProcessor.from_pretrained(...)"
        )
    side = tower_side(tower)
    square = {"height": side, "width": side}
    # DINOv2 is shown the middle 224 of 256 pixels, CLIP the middle of just as many.
    short = {"shortest_edge": round(side * 256 / 224) if family == "bit" else side}
    sizes: dict[str, Any] = (
        {"size": square} if family == "siglip" else {"size": short, "crop_size": square}
    )
    means: dict[str, Any] = {}
    if family == "bit":
        means = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    module = import_module(f"transformers.models.{family}.image_processing_pil_{family}")
    return getattr(module, _CLASSES[family])(**sizes, **means)


def tower_side(tower: Any) -> int:
    """The side in pixels of the square pictures that a tower was made for."""
    side = getattr(tower.config, "image_size", None)
    if isinstance(side, list | tuple):
        return int(side[0])
    if isinstance(side, int):
        return side
    # SigLIP 2 of free shapes says how many patches at most.
    return int(int(tower.config.num_patches) ** 0.5) * patch_size(tower)[0]
