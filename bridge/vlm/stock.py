"""A BridgeVLM as a stock LlavaForConditionalGeneration: the other way of `from_llava`."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch

from bridge.vlm.aspect import OneView, mean_colour
from bridge.vlm.chat import CHAT_TEMPLATE, END_OF_ANSWER, IMAGE_TOKEN
from bridge.vlm.checkpoints.text_files import keep_rules
from bridge.vlm.checkpoints.tokenizer import image_mark
from bridge.vlm.features import n_extra_states, patch_size
from bridge.vlm.model import BridgeVLM
from bridge.vlm.projectors import MlpProjector

# Towers and decoders whose stock LLaVA the tests hold equal to bridge's.
_TOWERS = ("clip_vision_model", "siglip_vision_model")
_DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text")


def why_not(vlm: BridgeVLM) -> str | None:
    """Why stock LLaVA cannot be this model, or None if it can."""
    projector = vlm.projector
    tower: Any = vlm.vision
    if not isinstance(projector, MlpProjector) or len(projector) != 3:
        return f"its projector is mlp2x_gelu, not {getattr(projector, 'kind', None)}"
    if tower is None or tower.config.model_type not in _TOWERS:
        return f"its tower is CLIP or SigLIP, not {type(tower).__name__}"
    if vlm.llm.config.model_type not in _DECODERS:
        return f"its language model is one of {_DECODERS}, not {vlm.llm.config.model_type}"
    if vlm.select_feature == "patch" and n_extra_states(tower) > 1:
        return "it drops one state of the tower, or none"
    if vlm.cut_at_images and image_mark(vlm.tokenizer) != IMAGE_TOKEN:
        return "its texts are read in one piece, pictures and all"
    pad = vlm.aspect.pad_colour if isinstance(vlm.aspect, OneView) else None
    if pad is not None and pad != mean_colour(vlm.image_processor.image_mean):
        return "it pads with the processor's mean colour"
    return None


def write_stock(vlm: BridgeVLM, folder: Path) -> None:
    """Model, tokenizer and processor, as transformers' AutoProcessor and Llava... load them."""
    from transformers import LlavaProcessor

    model = as_stock(vlm)
    model.save_pretrained(folder)
    tower: Any = vlm.vision
    tokenizer = with_template(vlm)
    processor = LlavaProcessor(
        image_processor=vlm.image_processor,
        tokenizer=tokenizer,
        patch_size=patch_size(tower)[0],
        vision_feature_select_strategy=model.config.vision_feature_select_strategy,
        num_additional_image_tokens=n_extra_states(tower),
        chat_template=tokenizer.chat_template,
        image_token=vlm.image_token,
    )
    processor.save_pretrained(folder)
    keep_rules(folder)
    if isinstance(vlm.aspect, OneView) and vlm.aspect.pad_colour is not None:
        path = folder / "processor_config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings["image_processor"] |= {
            "image_processor_type": "LlavaImageProcessor",
            "do_pad": True,
        }
        path.write_text(json.dumps(settings, indent=2), encoding="utf-8")


def as_stock(vlm: BridgeVLM) -> Any:
    """The stock model, sharing every parameter; but an embedding table that lacks the image
    token's row is copied, and gets the mean of the others there (as `bridge convert` does)."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    tower: Any = vlm.vision
    projector: Any = vlm.projector
    llm = _with_row(vlm.llm, vlm.image_token_id)
    extra = n_extra_states(tower)
    dropped = {"patch": extra, "cls_patch": 0, "drop_first": 1}[vlm.select_feature]
    layer = vlm.select_layer
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=llm.config,
        image_token_index=vlm.image_token_id,
        vision_feature_layer=layer if isinstance(layer, int) else list(layer),
        vision_feature_select_strategy="default" if dropped else "full",
        projector_hidden_act=projector.activation,
        multimodal_projector_bias=projector.options()["bias"],
        tie_word_embeddings=bool(llm.config.tie_word_embeddings),
        dtype=llm.dtype,
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    core: Any = model.model
    if hasattr(core.vision_tower, "vision_model") and not hasattr(tower, "vision_model"):
        core.vision_tower.vision_model = tower  # the inner model of a CLIPModel
    else:
        core.vision_tower = tower
    core.multi_modal_projector.linear_1 = projector[0]
    core.multi_modal_projector.linear_2 = projector[2]
    core.language_model = getattr(llm, llm.base_model_prefix)
    model.lm_head = llm.get_output_embeddings()
    model.generation_config = llm.generation_config
    return model.eval()


def with_template(vlm: BridgeVLM) -> Any:
    """The tokenizer with the model's own chat template, on a copy where it has another.

    Where the model has none it writes LLaVA's layout, which the template says as well if the
    tokens are LLaVA's.
    """
    template = vlm.chat_template
    own = (vlm.image_token, vlm.tokenizer.eos_token) == (IMAGE_TOKEN, END_OF_ANSWER)
    if template is None and own:
        template = CHAT_TEMPLATE
    if vlm.tokenizer.chat_template == template:
        return vlm.tokenizer
    tokenizer = copy.deepcopy(vlm.tokenizer)
    tokenizer.chat_template = template
    return tokenizer


def _with_row(llm: Any, token_id: int) -> Any:
    """The language model with a row for ``token_id``: itself if it has one, else a copy that
    shares everything but the two tables of words."""
    size = len(llm.get_input_embeddings().weight)
    if token_id < size:
        return llm
    # transformers resizes a table in place, so the copy needs those two of its own.
    words = [llm.get_input_embeddings().weight, llm.get_output_embeddings().weight]
    shared = [t for t in (*llm.parameters(), *llm.buffers()) if all(t is not w for w in words)]
    longer = copy.deepcopy(llm, {id(tensor): tensor for tensor in shared})
    with torch.random.fork_rng(devices=[]):  # the new row is random before it is the mean
        longer.resize_token_embeddings(token_id + 1, mean_resizing=False)
    for table in (longer.get_input_embeddings(), longer.get_output_embeddings()):
        weight = table.weight
        with torch.no_grad():
            weight[size:] = weight[:size].float().mean(0).to(weight.dtype)
    return longer
