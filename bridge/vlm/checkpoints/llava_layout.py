"""What LLaVA's tensors and settings are called, there and in transformers.

LLaVA keeps the language model's settings and its own (`mm_...`) in one flat file, and the
tower's settings with the tower. Pinpoints are (width, height) there and (height, width) in
transformers; the order in the list decides between equals, so it is kept.

Of the tensors' names the right column is the spelling of the published llava-hf checkpoints, which
every version of transformers loads. Sources: the module names of LLaVA's llava_arch.py and
clip_encoder.py, and transformers' own convert_llava_weights_to_hf.py.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any, NoReturn

from bridge.checks import is_whole
from bridge.errors import UnsupportedModelError
from bridge.vlm.views import Size

# -- names of tensors -------------------------------------------------------------------

TOWER = "model.vision_tower.vision_tower.vision_model."
PROJECTOR = "model.mm_projector."
NEWLINE = "model.image_newline"
EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")

# fmt: off
# The first prefix that fits is exchanged, so "model." comes last.
_PREFIXES = (
    # LLaVA                    transformers
    (TOWER,                    "vision_tower.vision_model."),
    ("model.mm_projector.0.",  "multi_modal_projector.linear_1."),
    ("model.mm_projector.2.",  "multi_modal_projector.linear_2."),
    (NEWLINE,                  "image_newline"),
    ("lm_head.",               "language_model.lm_head."),
    ("model.",                 "language_model.model."),
)

# What other versions of transformers write (on the left), in the published spelling.
_SPELLINGS = (
    ("model.language_model.",         "language_model.model."),
    ("model.vision_tower.",           "vision_tower."),
    ("model.multi_modal_projector.",  "multi_modal_projector."),
    ("model.image_newline",           "image_newline"),
    ("lm_head.",                      "language_model.lm_head."),
)
# fmt: on

# Tables that are computed anew from the config; old checkpoints hold them all the same.
_COMPUTED = (".inv_freq", ".position_ids")


def is_computed(name: str) -> bool:
    return name.endswith(_COMPUTED)


def to_hf(name: str) -> str:
    """LLaVA's name to transformers'. Raises KeyError for a name that has no counterpart."""
    for ours, theirs in _PREFIXES:
        if name.startswith(ours):
            if ours == "model." and name.startswith((PROJECTOR, "model.vision_")):
                break  # a deeper projector or another tower
            return theirs + name.removeprefix(ours)
    raise KeyError(name)


def to_llava(name: str) -> str:
    """Any of transformers' names to LLaVA's. Raises KeyError for a name without counterpart."""
    published = name
    for newer, older in _SPELLINGS:
        if name.startswith(newer):
            published = older + name.removeprefix(newer)
            break
    if published.startswith("vision_tower.") and ".vision_model." not in published:
        published = published.replace("vision_tower.", "vision_tower.vision_model.", 1)
    for ours, theirs in _PREFIXES:
        if published.startswith(theirs):
            return ours + published.removeprefix(theirs)
    raise KeyError(name)


def tower_name(name: str) -> str | None:
    """A tensor of a CLIP folder by LLaVA's name; None for those of the text side."""
    if name.startswith("vision_model."):
        return TOWER + name.removeprefix("vision_model.")
    if name.startswith(("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")):
        return TOWER + name  # a CLIPVisionModel saved by transformers 5
    return None


def projector_name(name: str) -> str:
    """A tensor of mm_projector.bin by LLaVA's full name; trainers put various prefixes before."""
    return PROJECTOR + name.split("mm_projector.", 1)[-1]


# -- settings ---------------------------------------------------------------------------

# LLaVA's model_type (or older spelling) -> the language model's, and its class there.
LLMS = {
    "llava": "llama",
    "llava_llama": "llama",
    "llava_mistral": "mistral",
}
LLM_CLASSES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
_LLAVA_TYPES = {"llama": "llava_llama", "mistral": "llava_mistral"}
_LLAVA_CLASSES = {"llama": "LlavaLlamaForCausalLM", "mistral": "LlavaMistralForCausalLM"}

# Rows that convert added to the embeddings for <image>; taken off again on the way back.
ADDED_ROWS = "bridge_added_rows"
# The conversation that the checkpoint is asked in, noted by convert in both layouts.
CONVERSATION = "bridge_conversation"
# The same of a checkpoint that has a chat template which is none of LLaVA's conversations.
NOTED_TEMPLATE = "bridge_chat_template"
# LLaVA's own entries that transformers' layout has no place for.
LLAVA_ENTRIES = "bridge_llava"

# Entries of LLaVA's config that are neither mm_... nor the language model's.
# fmt: off
_OWN = frozenset({
    "architectures", "auto_map", "freeze_mm_mlp_adapter", "freeze_mm_vision_resampler",
    "image_aspect_ratio", "image_crop_resolution", "image_grid_pinpoints",
    "image_split_resolution", "model_type", "s2", "s2_scales", "tokenizer_model_max_length",
    "tokenizer_padding_side", "transformers_version", "tune_mm_mlp_adapter",
    "tune_mm_vision_resampler", "unfreeze_mm_vision_tower", "use_mm_proj", "_name_or_path",
})
# Entries that every config of transformers has and that say nothing of a language model.
_GENERAL = frozenset({
    "chunk_size_feed_forward", "id2label", "is_encoder_decoder", "label2id", "output_attentions",
    "output_hidden_states", "problem_type", "return_dict",
})
# fmt: on


@dataclass(frozen=True)
class LlavaSettings:
    """LLaVA's own settings, checked, and its language model's config as transformers takes it."""

    tower: str  # a folder or hub id of CLIP
    projector: str  # mm_projector_type
    select_layer: int
    select_feature: str  # "patch" or "cls_patch"
    aspect: str  # "square", "pad" or "anyres"
    pinpoints: tuple[Size, ...]  # (height, width)
    llm: str  # "llama" or "mistral"
    text: dict[str, Any]


def is_original(config: dict[str, Any]) -> bool:
    """Whether a config.json is of the original LLaVA."""
    return "mm_vision_tower" in config or "mm_projector_type" in config


def read_settings(config: dict[str, Any], name: object) -> LlavaSettings:
    """A config.json of the original LLaVA. Raises UnsupportedModelError for what bridge lacks."""
    kind = config.get("model_type")
    aspect = config.get("image_aspect_ratio") or "square"
    feature = config.get("mm_vision_select_feature") or "patch"
    merge = config.get("mm_patch_merge_type") or "flat"
    tower = config.get("mm_vision_tower")
    layer = config.get("mm_vision_select_layer", -2)
    if kind not in LLMS:
        _refuse(name, f"the language model {kind!r}", "bridge reads " + ", ".join(LLMS))
    if not isinstance(tower, str) or not tower:
        _refuse(name, f"mm_vision_tower {tower!r}", "it must name a CLIP folder or hub id")
    if aspect not in ("square", "pad", "anyres"):
        _refuse(name, f"image_aspect_ratio {aspect!r}", "bridge knows square, pad and anyres")
    if aspect == "anyres" and merge != "spatial_unpad":
        _refuse(name, f"mm_patch_merge_type {merge!r} with anyres", "only spatial_unpad is read")
    if feature not in ("patch", "cls_patch"):
        _refuse(name, f"mm_vision_select_feature {feature!r}", "it is patch or cls_patch")
    if not is_whole(layer):
        _refuse(name, f"mm_vision_select_layer {layer!r}", "it is a whole number, such as -2")
    if config.get("mm_use_im_start_end"):
        _refuse(name, "mm_use_im_start_end", "LLaVA 1.5 and later have no such tokens")
    if config.get("s2"):
        _refuse(name, "several picture scales (s2)", "bridge reads single-scale checkpoints")
    if config.get("mm_resampler_type") not in (None, "None", "identity"):
        _refuse(name, f"mm_resampler_type {config['mm_resampler_type']!r}", "there must be none")
    points = config.get("image_grid_pinpoints")
    own = {key for key in config if key.startswith(("mm_", "bridge_")) or key in _OWN}
    text = {key: value for key, value in config.items() if key not in own}
    if "rope_parameters" in text:  # transformers 5's form; the other two say the same to older ones
        text.pop("rope_theta", None), text.pop("rope_scaling", None)
    return LlavaSettings(
        tower=str(tower),
        projector=str(config.get("mm_projector_type") or "linear"),
        select_layer=layer,
        select_feature=feature,
        aspect=aspect,
        pinpoints=_pinpoints(points, name) if aspect == "anyres" else (),
        llm=LLMS[str(kind)],
        text={**text, "model_type": LLMS[str(kind)]},
    )


# Those of them that say where and how a checkpoint is kept, which the way back says anew.
_KEEPING = frozenset({
    "architectures", "auto_map", "mm_vision_tower", "model_type", "transformers_version",
    "unfreeze_mm_vision_tower",
})  # fmt: skip


def llava_entries(config: dict[str, Any]) -> dict[str, Any]:
    """What a config.json of the original LLaVA says that transformers' layout has no place for."""
    own = {key for key in config if key.startswith("mm_") or key in _OWN}
    return {key: config[key] for key in sorted(own - _KEEPING)}


def to_hf_config(
    settings: LlavaSettings, vision: dict[str, Any], image_token_id: int, added_rows: int
) -> dict[str, Any]:
    """The config.json of `LlavaForConditionalGeneration`, for anyres of `LlavaNext...`."""
    if settings.projector != "mlp2x_gelu":
        raise UnsupportedModelError(
            f"transformers' LLaVA has only the projector mlp2x_gelu, not {settings.projector!r}; "
            "bridge itself answers with the folder as it is"
        )
    following = settings.aspect == "anyres"
    text = {**settings.text}
    text["vocab_size"] = int(text["vocab_size"]) + added_rows
    side = int(vision["image_size"]) // int(vision["patch_size"])
    config: dict[str, Any] = {
        "architectures": [f"Llava{'Next' if following else ''}ForConditionalGeneration"],
        "model_type": "llava_next" if following else "llava",
        "image_token_index": image_token_id,
        "image_seq_length": side**2 + (settings.select_feature == "cls_patch"),
        "vision_feature_layer": settings.select_layer,
        "vision_feature_select_strategy": (
            "full" if settings.select_feature == "cls_patch" else "default"
        ),
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "tie_word_embeddings": bool(text.get("tie_word_embeddings", False)),
        "text_config": text,
        "vision_config": vision,
        ADDED_ROWS: added_rows,
    }
    if "dtype" in text or "torch_dtype" in text:
        config["dtype"] = text.get("dtype") or text.get("torch_dtype")
    if following:
        config["image_grid_pinpoints"] = [list(size) for size in settings.pinpoints]
        config["use_image_newline_parameter"] = True
    return config


def to_llava_config(
    config: Any, raw: dict[str, Any], aspect: str, tower: str, name: object
) -> dict[str, Any]:
    """The config.json of the original LLaVA from a LlavaConfig or LlavaNextConfig.

    ``raw`` is the same config as the file has it. Raises UnsupportedModelError for what LLaVA
    cannot say: other towers and language models, several layers, another projector.
    """
    text, vision = config.text_config, config.vision_config
    layer = config.vision_feature_layer
    if text.model_type not in LLM_CLASSES:
        _refuse(name, f"the language model {text.model_type!r}", "LLaVA's is LLaMA or Mistral")
    if vision.model_type != "clip_vision_model":
        _refuse(name, f"the tower {vision.model_type!r}", "LLaVA's is CLIP")
    if not isinstance(layer, int):
        _refuse(name, f"the layers {layer}", "LLaVA takes one")
    if config.projector_hidden_act != "gelu" or not config.multimodal_projector_bias:
        _refuse(name, "its projector", "LLaVA's mlp2x_gelu has GELU and biases")
    flat = {key: value for key, value in text.to_dict().items() if key not in _OWN | _GENERAL}
    flat["vocab_size"] = int(text.vocab_size) - int(raw.get(ADDED_ROWS, 0))
    # transformers 4, which LLaVA's own code runs on, knows only these two.
    rope = flat.get("rope_parameters") or {}
    if "rope_theta" in rope:
        flat["rope_theta"] = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        flat["rope_scaling"] = {"type": rope["rope_type"], "factor": rope.get("factor")}
    dtype = raw.get("dtype") or raw.get("torch_dtype")
    if dtype:
        flat["torch_dtype"] = flat["dtype"] = dtype
    following = config.model_type == "llava_next"
    flat.update(
        architectures=[_LLAVA_CLASSES[text.model_type]],
        model_type=_LLAVA_TYPES[text.model_type],
        tie_word_embeddings=bool(config.tie_word_embeddings),
        mm_vision_tower=tower,
        mm_hidden_size=int(vision.hidden_size),
        mm_projector_type="mlp2x_gelu",
        mm_vision_select_layer=layer,
        mm_vision_select_feature=(
            "cls_patch" if config.vision_feature_select_strategy == "full" else "patch"
        ),
        mm_patch_merge_type="spatial_unpad" if following else "flat",
        mm_use_im_start_end=False,
        mm_use_im_patch_token=False,
        use_mm_proj=True,
        # The tower's tensors are in the checkpoint, so LLaVA must make room for them at once.
        unfreeze_mm_vision_tower=True,
        image_aspect_ratio="anyres" if following else aspect,
    )
    if following:
        points = config.image_grid_pinpoints
        flat["image_grid_pinpoints"] = [[wide, high] for high, wide in points]
    return {**raw.get(LLAVA_ENTRIES, {}), **flat}


def _pinpoints(value: Any, name: object) -> tuple[Size, ...]:
    """A list, or the text of one, of (width, height); given as (height, width)."""
    try:
        pairs = ast.literal_eval(value) if isinstance(value, str) else value
        found = tuple((int(high), int(wide)) for wide, high in pairs)
    except (ValueError, SyntaxError, TypeError):
        found = ()
    if not found or min(min(pair) for pair in found) < 1:
        _refuse(name, f"image_grid_pinpoints {value!r}", "it is a list of (width, height)")
    return found


def _refuse(name: object, what: str, instead: str) -> NoReturn:
    raise UnsupportedModelError(f"{name} has {what}, which this road does not take: {instead}")
