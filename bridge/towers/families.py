"""The tables of families and of a pipeline's encoders, and which family a folder belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bridge.errors import UnsupportedModelError
from bridge.files import read_json
from bridge.towers import (
    align,
    blip2,
    clip,
    clip_relatives,
    language_model,
    mean_pooled,
    open_clip,
    siglip,
    vision_models,
)
from bridge.towers.family import ImageFamily, TextFamily
from bridge.towers.open_clip_config import (
    has_foreign_text,
    has_foreign_words,
    has_layout,
    read_model_config,
)

_TEXT = (
    clip.TEXT,
    open_clip.TEXT,
    open_clip.WORDS_TEXT,
    mean_pooled.OPEN_CLIP_TEXT,
    siglip.TEXT,
    clip_relatives.TEXT,
    align.TEXT,
    open_clip.COCA_TEXT,
    blip2.TEXT,
    mean_pooled.MULTILINGUAL_TEXT,
    language_model.T5_TEXT,
    language_model.TEXT,
)
_IMAGE = (
    clip.IMAGE,
    open_clip.IMAGE,
    open_clip.WORDS_IMAGE,
    mean_pooled.OPEN_CLIP_IMAGE,
    siglip.IMAGE,
    clip_relatives.IMAGE,
    align.IMAGE,
    open_clip.COCA_IMAGE,
    blip2.IMAGE,
    vision_models.IMAGE,
)

TEXT_FAMILIES: dict[str, TextFamily] = {each.name: each for each in _TEXT}
"""The families of text towers by name."""
IMAGE_FAMILIES: dict[str, ImageFamily] = {each.name: each for each in _IMAGE}
"""The families of image towers by name."""

_PIPELINE_TEXT = {
    clip.TEXT_PLAIN: (clip.encode, clip.TOKENIZER),
    clip.TEXT_PROJECTED: (clip.encode, clip.TOKENIZER),
    language_model.T5: (language_model.encode, language_model.T5_TOKENIZER),
}
TEXT_TOWERS = {name: encode for name, (encode, _) in _PIPELINE_TEXT.items()}
"""Class name of a pipeline's text encoder -> its ``encode(module, ids, layers, mask)``."""
TOKENIZERS = {name: tokenizer for name, (_, tokenizer) in _PIPELINE_TEXT.items()}
"""Class name of a pipeline's text encoder -> that of its tokenizer."""

# model_type of a config.json -> family; language models are asked of transformers.
_MODEL_TYPES = {
    "clip": "clip",
    "clip_text_model": "clip",
    "clip_vision_model": "clip",
    "siglip": "siglip",
    "siglip_text_model": "siglip",
    "siglip2": "siglip",
    "siglip2_text_model": "siglip",
    "align": "align",
    "blip-2": "blip2",
    "M-CLIP": "multilingual_clip",
    "t5": "t5",
    "mt5": "t5",
    "umt5": "t5",
    **dict.fromkeys(clip_relatives.RELATIVES, "clip_relatives"),
    **dict.fromkeys(vision_models.KINDS, "vision_models"),
}


def family_of(folder: Path) -> str:
    """The name of the family whose layout ``folder`` has.

    Raises UnsupportedModelError for a layout that no family reads, WeightsError for no config.
    """
    if has_layout(folder):
        model = read_model_config(folder)
        if has_foreign_text(model):
            return mean_pooled.OPEN_CLIP_TEXT.name
        if has_foreign_words(model):
            return open_clip.WORDS_TEXT.name
        return (open_clip.COCA_TEXT if "multimodal_cfg" in model else open_clip.TEXT).name
    config = read_json(folder / "config.json")
    if "modelBase" in config or config.get("architectures") == ["MultilingualCLIP"]:
        return "multilingual_clip"
    return _family_of_type(str(config.get("model_type")), str(folder))


def family_of_config(config: Any) -> str:
    """As `family_of`, for a live module's config."""
    return _family_of_type(str(getattr(config, "model_type", None)), "The module")


def _family_of_type(kind: str, what: str) -> str:
    if kind in _MODEL_TYPES:
        return _MODEL_TYPES[kind]
    from transformers.models.auto import modeling_auto

    names = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if kind in names or kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return language_model.TEXT.name
    raise UnsupportedModelError(
        f"{what} is of the kind {kind!r}, which no family of towers reads; known kinds: "
        f"{', '.join(sorted(_MODEL_TYPES))}, and language models of transformers"
    )
