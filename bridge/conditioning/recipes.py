"""How each model family makes its conditioning: a table, and the rule that picks a row.

The rows are what diffusers' ``encode_prompt`` does (StableDiffusionPipeline and
StableDiffusionXLPipeline of diffusers 0.42):

==============  =====================  ======  ====  =============  =====================
recipe          towers                 layer   norm  pooled         negative_prompt=None
==============  =====================  ======  ====  =============  =====================
sd15            CLIP ViT-L/14          -1      yes   none           encodes ""
sd21            OpenCLIP ViT-H/14      -1      yes   none           encodes ""
sdxl            CLIP-L, OpenCLIP-bigG  -2, -2  no    second tower   zeros if configured
sdxl-refiner    OpenCLIP-bigG          -2      no    that tower     zeros if configured
==============  =====================  ======  ====  =============  =====================

Token states of several towers are joined along their width. Padding is the tokenizer's own. The
penultimate layer of OpenCLIP-H that SD 2 is trained on is the *last* of the published folder,
which ships 23 of the 24 layers; so the rows of sd15 and sd21 differ in their towers only.

``clip_skip=k`` takes the layer k further from the end, for the prompt only: the negative keeps
the recipe's layer, as in diffusers (its issues 13796 and 13973 ask whether that is meant).
On transformers 5, diffusers 0.42's own Stable Diffusion 1 and 2 pipelines fail when given
``clip_skip``, since they look for ``text_encoder.text_model``; here it works.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bridge.errors import UnsupportedModelError
from bridge.towers.states import Layer


@dataclass(frozen=True)
class TowerUse:
    """One tower's part in a recipe: where a pipeline keeps it, and which layer is taken."""

    component: str
    tokenizer: str
    architecture: str
    layer: Layer


@dataclass(frozen=True)
class Recipe:
    """One row of the table.

    Attributes:
        name: the row's name.
        towers: the towers, in the order in which their states are joined.
        pooled: whether the last tower's pooled state is part of the conditioning.
        zeros_for_none: whether ``force_zeros_for_empty_prompt`` is obeyed.
        time_ids: whether sizes are part of the conditioning.
        obeys_mask: whether a tower whose config says ``use_attention_mask`` is given the mask.
    """

    name: str
    towers: tuple[TowerUse, ...]
    pooled: bool = False
    zeros_for_none: bool = False
    time_ids: bool = False
    obeys_mask: bool = False


_LAST = Layer(-1, norm=True)
_PENULTIMATE = Layer(-2, norm=False)
_SD = (TowerUse("text_encoder", "tokenizer", "CLIPTextModel", _LAST),)
_CLIP_L = TowerUse("text_encoder", "tokenizer", "CLIPTextModel", _PENULTIMATE)
_BIG_G = TowerUse("text_encoder_2", "tokenizer_2", "CLIPTextModelWithProjection", _PENULTIMATE)

RECIPES = {
    "sd15": Recipe("sd15", _SD, obeys_mask=True),
    "sd21": Recipe("sd21", _SD, obeys_mask=True),
    "sdxl": Recipe("sdxl", (_CLIP_L, _BIG_G), pooled=True, zeros_for_none=True, time_ids=True),
    "sdxl-refiner": Recipe(
        "sdxl-refiner", (_BIG_G,), pooled=True, zeros_for_none=True, time_ids=True
    ),
}
"""The table."""


def find_recipe(components: Mapping[str, str | None], activation: str, source: str) -> Recipe:
    """The recipe of a model, from the classes of its parts and never from its name.

    Args:
        components: part name -> class name (None for a part that is absent), as in
            ``model_index.json``.
        activation: of the first text tower; OpenCLIP's ``gelu`` tells sd21 from sd15.
        source: what the model is called in an error.

    Raises:
        UnsupportedModelError: no row fits; the message lists the parts found.
    """
    text = {
        name: kind
        for name, kind in components.items()
        if name.startswith("text_encoder") and kind is not None
    }
    if components.get("unet") is not None:
        for name in ("sdxl", "sdxl-refiner"):
            if text == {use.component: use.architecture for use in RECIPES[name].towers}:
                return RECIPES[name]
        if text == {use.component: use.architecture for use in _SD}:
            return RECIPES["sd15" if activation == "quick_gelu" else "sd21"]
    found = ", ".join(f"{name}: {kind}" for name, kind in sorted(text.items())) or "none"
    raise UnsupportedModelError(
        f"No recipe for {source}: its text towers are {found}, its UNet is "
        f"{components.get('unet') or 'absent'}. Recipes exist for {', '.join(RECIPES)}: a UNet "
        "with a CLIPTextModel, or with that and a CLIPTextModelWithProjection. (If a live "
        "pipeline's text encoder was set to None, put it back or pass the model's folder.)"
    )
