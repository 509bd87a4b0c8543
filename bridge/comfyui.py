"""ComfyUI nodes: bridge's conditioning in a ComfyUI graph.

ComfyUI finds them through a file of two lines in its ``custom_nodes`` folder, with bridge
installed in the same environment::

    # custom_nodes/bridge_nodes.py
    from bridge.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

A ``CONDITIONING`` of ComfyUI is a list of pairs: states (B, T, D), and a dictionary in which its
samplers look for ``pooled_output`` and, for SDXL, the sizes (comfy/model_base.py, ``encode_adm``).
Rows are one prompt each, so every list has one pair.
"""

from __future__ import annotations

from typing import Any

from bridge.encoding import Conditioning, condition, load_conditioning
from bridge.encoding.emphasis import EMPHASES
from bridge.errors import OptionError
from bridge.prompt import DIALECTS, LONG_PROMPTS
from bridge.prompt.dialect import DialectName

__all__ = [
    "NODE_CLASS_MAPPINGS",
    "NODE_DISPLAY_NAME_MAPPINGS",
    "BridgeLoadConditioning",
    "BridgeTextEncode",
    "pairs_of",
]

Pairs = list[list[Any]]

_OWN = "the dialect's own"
# One acts inside diffusers' UNet.
_EMPHASES = tuple(name for name in EMPHASES if name != "unet_attention_bias")


class BridgeTextEncode:
    """A prompt and its negative, read in any dialect, by the text towers of a diffusers model."""

    CATEGORY = "conditioning/bridge"
    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING", "STRING")
    RETURN_NAMES = ("positive", "negative", "report")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, tuple[Any, ...]]]:
        """The node's inputs, as ComfyUI asks for them."""
        text = {"multiline": True, "dynamicPrompts": False}
        size = {"default": 1024, "min": 16, "max": 16384, "step": 8}
        return {
            "required": {
                "model": ("STRING", {"default": "sdxl", "tooltip": "name, folder or hub id"}),
                "prompt": ("STRING", text),
                "negative_prompt": ("STRING", text),
                "dialect": (list(DIALECTS), {"default": "comfy"}),
                "emphasis": ([_OWN, *_EMPHASES],),
                "long_prompt": ([_OWN, *LONG_PROMPTS],),
                "clip_skip": ("INT", {"default": 0, "min": 0, "max": 30}),
                "width": ("INT", size),
                "height": ("INT", size),
            },
            "optional": {
                "negative_clip_skip": (
                    "INT",
                    {"default": -1, "min": -1, "max": 30, "tooltip": "-1: as the dialect's tool"},
                ),
            },
        }

    def encode(
        self,
        model: str,
        prompt: str,
        negative_prompt: str,
        dialect: DialectName,
        emphasis: Any,
        long_prompt: Any,
        clip_skip: int,
        width: int,
        height: int,
        negative_clip_skip: int = -1,
    ) -> tuple[Pairs, Pairs, str]:
        """Positive, negative, and the token report as text. Errors as ``bridge.condition``."""
        cond = condition(
            prompt,
            negative_prompt,
            model=model,
            dialect=dialect,
            emphasis=None if emphasis == _OWN else emphasis,
            long_prompt=None if long_prompt == _OWN else long_prompt,
            clip_skip=clip_skip or None,
            negative_clip_skip=None if negative_clip_skip < 0 else negative_clip_skip,
            width=width,
            height=height,
        )
        return *pairs_of(cond), cond.report().text()


class BridgeLoadConditioning:
    """A conditioning that ``bridge encode`` or ``save_conditioning`` wrote."""

    CATEGORY = "conditioning/bridge"
    FUNCTION = "load"
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING", "STRING")
    RETURN_NAMES = ("positive", "negative", "report")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, tuple[Any, ...]]]:
        """The node's inputs, as ComfyUI asks for them."""
        return {"required": {"path": ("STRING", {"default": "prompt.safetensors"})}}

    def load(self, path: str) -> tuple[Pairs, Pairs, str]:
        """Positive, negative, and the token report as text. Raises WeightsError."""
        cond = load_conditioning(path)
        return *pairs_of(cond), cond.report().text()


def pairs_of(cond: Conditioning) -> tuple[Pairs, Pairs]:
    """ComfyUI's positive and negative of a ``Conditioning``.

    Raises:
        OptionError: weights that act inside a UNet of diffusers, or no negative.
    """
    if cond.is_biased:
        raise OptionError(
            "unet_attention_bias acts inside a UNet of diffusers, which ComfyUI does not have; "
            "choose another emphasis."
        )
    if cond.negative_prompt_embeds is None:
        raise OptionError(
            f"This conditioning of {cond.recipe.name} has no negative, and a graph needs one; "
            'encode it with a negative prompt ("" will do).'
        )
    sizes: dict[str, int] = {}
    if cond.sizes is not None:
        (height, width), (top, left) = cond.sizes.original_size, cond.sizes.crops_coords_top_left
        target_height, target_width = cond.sizes.target_size
        sizes = {
            "width": width,
            "height": height,
            "crop_w": left,
            "crop_h": top,
            "target_width": target_width,
            "target_height": target_height,
        }

    def pair(states: Any, pooled: Any) -> Pairs:
        return [[states, dict(sizes) if pooled is None else {"pooled_output": pooled, **sizes}]]

    return (
        pair(cond.prompt_embeds, cond.pooled_prompt_embeds),
        pair(cond.negative_prompt_embeds, cond.negative_pooled_prompt_embeds),
    )


NODE_CLASS_MAPPINGS = {
    "BridgeTextEncode": BridgeTextEncode,
    "BridgeLoadConditioning": BridgeLoadConditioning,
}
"""The nodes by the names that graphs are saved with."""
NODE_DISPLAY_NAME_MAPPINGS = {
    "BridgeTextEncode": "Text Encode (bridge)",
    "BridgeLoadConditioning": "Load Conditioning (bridge)",
}
"""What ComfyUI's menu calls them."""
