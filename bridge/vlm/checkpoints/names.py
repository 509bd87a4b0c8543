"""What a tensor is called: in the original LLaVA, and in transformers.

The right column is the spelling of the published llava-hf checkpoints, which every version of
transformers loads. Sources: the module names of LLaVA's llava_arch.py and clip_encoder.py, and
transformers' own convert_llava_weights_to_hf.py.
"""

from __future__ import annotations

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
