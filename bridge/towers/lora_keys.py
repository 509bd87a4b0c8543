"""What the tensors of a LoRA file are called, and what that means: one pattern for all trainers.

=========================  ==================================================================
kohya (SD 1, 2 / SDXL)     ``lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight``;
                           ``lora_te1_...``, ``lora_te2_...``; ``.alpha``
diffusers, of peft         ``text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight``
diffusers, before peft     ``text_encoder....mlp.fc1.lora_linear_layer.down.weight``
diffusers, the oldest      ``text_encoder....self_attn.to_q_lora.down.weight``
peft                       ``base_model.model.text_model.encoder....fc1.lora_A.weight``
=========================  ==================================================================

Facts from diffusers 0.42, ``utils/state_dict_utils.py`` and ``loaders/lora_conversion_utils.py``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Role = Literal["down", "up", "alpha"]

_TOWER = r"(?P<tower>lora_te1?_|lora_te2_|text_encoder(?:_2)?\.|)"
_LAYER = (
    r"encoder[._]layers[._](?P<number>[0-9]{1,4})[._](?P<block>self_attn|mlp)[._]"
    r"(?P<linear>[qkv]_proj|out_proj|fc[12]|to_(?:q|k|v|out)_lora)"
)
_ROLE = (
    r"(?P<down>lora_down\.weight|lora_A\.(?:\w+\.)?weight|(?:lora_linear_layer\.|lora\.)?down\.weight)"
    r"|(?P<up>lora_up\.weight|lora_B\.(?:\w+\.)?weight|(?:lora_linear_layer\.|lora\.)?up\.weight)"
    r"|(?P<alpha>alpha)"
)
_KEY = re.compile(
    rf"{_TOWER}(?:base_model\.model\.)?(?:text_model[._])?"
    rf"(?:{_LAYER}|text_projection)\.(?:{_ROLE})"
)
# A key that begins so is for a text tower, understood or not.
_TEXT = re.compile(
    r"lora_te[12]?_|text_encoder(_2)?\.|(base_model\.model\.)(text_|encoder\.layers)"
)
_OLDEST = {f"to_{name}_lora": f"{name}_proj" for name in ("q", "k", "v", "out")}
# A UNet's cross-attention reads the text states, so this layer's input is as wide as they are.
_CROSS = re.compile(
    r"(?:lora_unet_|unet\.).*attn2[._](?:processor\.)?to_k(?:_lora)?[._]"
    r"(?:lora_down\.weight|lora_A\.weight|(?:lora\.)?down\.weight)"
)


@dataclass(frozen=True)
class Key:
    """One tensor's meaning.

    Attributes:
        tower: ``text_encoder`` or ``text_encoder_2``, ``""`` where the key does not say.
        layer: the layer's path in a ``CLIPTextModel``, such as ``encoder.layers.0.mlp.fc1``.
        role: ``down`` (r, in), ``up`` (out, r), or ``alpha``, a number.
    """

    tower: str
    layer: str
    role: Role


def read_key(key: str) -> Key | None:
    """The meaning of a key of a text tower's LoRA; None for any other."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    prefix = match["tower"]
    tower = "text_encoder_2" if "2" in prefix else "text_encoder" if prefix else ""
    role: Role = "down" if match["down"] else "up" if match["up"] else "alpha"
    if match["number"] is None:
        return Key(tower, "text_projection", role)
    linear = _OLDEST.get(match["linear"], match["linear"])
    return Key(tower, f"encoder.layers.{match['number']}.{match['block']}.{linear}", role)


def is_text_key(key: str) -> bool:
    """Whether a key is for a text tower, though perhaps of a kind that is not read here."""
    return _TEXT.match(key) is not None


def is_cross_attention(key: str) -> bool:
    """Whether a key is the down matrix of a layer of the UNet that reads the text states."""
    return _CROSS.fullmatch(key) is not None
