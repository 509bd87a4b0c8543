"""Emphasis: how token weights change the states that a tower gives, by each tool's own formula.

``EMPHASES`` names them; any goes with any prompt dialect. z is a token's state, e the state of
the empty prompt at the same place, w its weight:

=======================  ===================================================================
``none``                 weights are read and not used
``a1111``                z * w, then scaled so that each window keeps its mean
``no_norm``              z * w (sd_embed; stable-diffusion-webui's "No norm")
``comfy``                e + w * (z - e)
``compel``               as comfy; below 1 also mixed with the prompt whose words are masked
``comfy++``              below 1 as down_weight; above 1 adds w - 1 times what the words contribute
``down_weight``          all weights below 1, relative to the largest; mixed with masked prompts
``text_attention_bias``  log w is added to the token's attention logits in the text tower
``unet_attention_bias``  log w is added to its cross-attention logits in the UNet
=======================  ===================================================================
"""

from __future__ import annotations

from bridge.encoding.emphasis.a1111 import A1111, NO_NORM
from bridge.encoding.emphasis.adv import COMFY_PLUS_PLUS, DOWN_WEIGHT
from bridge.encoding.emphasis.bias import TEXT_ATTENTION_BIAS, UNET_ATTENTION_BIAS
from bridge.encoding.emphasis.comfy import COMFY
from bridge.encoding.emphasis.compel import COMPEL
from bridge.encoding.emphasis.method import NONE, Emphasis, TowerInput

EMPHASES: dict[str, Emphasis] = {
    "none": NONE,
    "a1111": A1111,
    "no_norm": NO_NORM,
    "comfy": COMFY,
    "compel": COMPEL,
    "comfy++": COMFY_PLUS_PLUS,
    "down_weight": DOWN_WEIGHT,
    "text_attention_bias": TEXT_ATTENTION_BIAS,
    "unet_attention_bias": UNET_ATTENTION_BIAS,
}
"""The methods by name."""

__all__ = ["EMPHASES", "Emphasis", "TowerInput"]
