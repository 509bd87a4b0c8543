"""How each model family makes its conditioning: a table, and the rule that picks a row.

The rows are what diffusers' ``encode_prompt`` does (0.42). A new pipeline is a new row:

==============  =========================  =====  =======================  ==================
recipe          towers, layer taken        norm   pooled                   without a negative
==============  =========================  =====  =======================  ==================
sd15            CLIP ViT-L/14, last        yes    none                     encodes ""
sd21            OpenCLIP ViT-H/14, last    yes    none                     encodes ""
sdxl            CLIP-L ‖ bigG, last but 1  no     bigG                     zeros if configured
sdxl-refiner    bigG, last but 1           no     bigG                     zeros if configured
sd3             CLIP-L ‖ bigG, last but 1  no     CLIP-L ‖ bigG            encodes ""
                then T5 (256), last        yes
flux            T5 (512), last             yes    CLIP-L, not projected    none
pixart-alpha    T5 (120), last             yes    none                     encodes ""
pixart-sigma    T5 (300), last             yes    none                     encodes ""
chroma          T5 (512), last             yes    none                     encodes ""
cogview3plus    T5 (224), last             yes    none                     zeros
cogvideox       T5 (226), last             yes    none                     encodes ""
ltx             T5 (128), last             yes    none                     encodes ""
ltx-condition   T5 (256), last             yes    none                     encodes ""
allegro         T5 (512), last             yes    none                     encodes ""
deepfloyd-if    T5 (77), last              yes    none                     encodes ""
==============  =========================  =====  =======================  ==================

``‖`` joins states along their width; "then" sets them end to end, the narrower ones filled up
with zeros. In brackets is how many tokens T5 is given, where the caller does not say
(``max_sequence_length``). SD 3's T5 may be left out: zeros stand in its place, as in diffusers.
In the comfy dialect FLUX.1's T5 is given 256 and SD 3's 77, and more where a prompt has more, as in
ComfyUI, which puts nothing in the place of a T5 that is left out; in a1111 256 and more in both, as
in Forge.
FLUX.1's ``text_ids`` are zeros that its pipeline makes by itself.

Padding is the tokenizer's own (CLIP-L's EOS; id 0 for OpenCLIP and T5). CLIP towers see it unless
their config says otherwise; PixArt, Chroma, Allegro and IF hide it from T5. PixArt, Chroma, LTX
and Allegro also hide it from the model that draws, by a ``prompt_attention_mask``.

The penultimate layer of OpenCLIP-H that SD 2 is trained on is the *last* of the published folder,
which ships 23 of the 24 layers; so the rows of sd15 and sd21 differ in their towers only.

``clip_skip=k`` takes the layer k further from the end of each CLIP tower whose token states are
used. For the negative ``negative_clip_skip`` does so; by default the dialect's tool decides: in
diffusers it keeps the recipe's layer (its issues 13796 and 13973 ask whether that is meant), the
other tools skip as many for both. On transformers 5, diffusers 0.42's own Stable Diffusion 1 and 2
pipelines fail when given ``clip_skip``, since they look for ``text_encoder.text_model``; here it
works.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bridge.checks import keywords
from bridge.errors import UnsupportedModelError
from bridge.towers import Layer


@dataclass(frozen=True)
class TowerUse:
    """One tower's part in a recipe: where a pipeline keeps it, and what is taken of it.

    Attributes:
        component, tokenizer: where a pipeline keeps them.
        architecture: the tower's transformers class.
        layer: the layer whose token states are taken; None where only the pooled state is.
        pooled: whether its pooled state is part of the conditioning.
        follows: its token states come after those of the towers before it; else beside them.
        length: how many tokens it is given if the caller does not say; None for a tower of a
            context of its own, which long prompts fill several times.
        masked: whether padding is hidden from it.
        lower: whether it reads text in small letters.
        optional: whether a pipeline works without it; zeros then stand for its states.
        least: dialect -> how many tokens its tool gives T5, where it cuts nothing off and gives a
            longer prompt more: ComfyUI, and Forge as the tool of ``a1111``.
    """

    component: str
    tokenizer: str
    architecture: str
    layer: Layer | None
    pooled: bool = False
    follows: bool = False
    length: int | None = None
    masked: bool = False
    lower: bool = False
    optional: bool = False
    least: tuple[tuple[str, int], ...] = ()

    @property
    def skips(self) -> bool:
        """Whether ``clip_skip`` acts on it."""
        return self.layer is not None and self.length is None

    @property
    def part(self) -> str:
        """What files of textual inversions call it."""
        if self.length is not None:
            return "t5xxl"
        return "clip_g" if self.component.endswith("_2") else "clip_l"


MaskKind = Literal["int", "bool", "one_pad"]


@dataclass(frozen=True)
class Recipe:
    """One row of the table.

    Attributes:
        name: the row's name.
        towers: the towers in the order in which their states are joined. The first reads
            ``prompt``, the second ``prompt_2``, the third ``prompt_3``.
        zeros_for_none: whether no negative means zeros, unless the pipeline's own
            ``force_zeros_for_empty_prompt`` says otherwise.
        none_for_none: whether no negative means none at all, as in a guidance-distilled model.
        time_ids: whether sizes are part of the conditioning.
        obeys_mask: whether a tower whose config says ``use_attention_mask`` is given the mask.
        mask: how ``prompt_attention_mask`` is written, if it is part of the conditioning:
            ``int`` and ``bool`` by their dtype, ``one_pad`` with one padding token left to see, in
            the dtype of the states.
        cleared: arguments that the pipeline must be given as None beside embeddings.
        swapped: what the pipeline's loop lets a callback change between two steps.
        backbone: the component that draws.
        classes: its classes; empty for any.
        pipeline: how the pipeline's class name begins, where the parts alone do not tell two rows
            apart; "" for any.
        activation: of the first tower; "" for any.
    """

    name: str
    towers: tuple[TowerUse, ...]
    zeros_for_none: bool = False
    none_for_none: bool = False
    time_ids: bool = False
    obeys_mask: bool = False
    mask: MaskKind | None = None
    cleared: tuple[str, ...] = ()
    swapped: tuple[str, ...] = ()
    backbone: str = "unet"
    classes: tuple[str, ...] = ()
    pipeline: str = ""
    activation: str = ""

    @property
    def pooled(self) -> bool:
        """Whether a pooled state is part of the conditioning."""
        return any(use.pooled for use in self.towers)


_LAST = Layer(-1, norm=True)
_PENULTIMATE = Layer(-2, norm=False)
_PROJECTED = "CLIPTextModelWithProjection"
_SD = (TowerUse("text_encoder", "tokenizer", "CLIPTextModel", _LAST),)
_CLIP_L = TowerUse("text_encoder", "tokenizer", "CLIPTextModel", _PENULTIMATE)
_CLIP_L_PROJECTED = TowerUse("text_encoder", "tokenizer", _PROJECTED, _PENULTIMATE, pooled=True)
_CLIP_L_POOLED = TowerUse("text_encoder", "tokenizer", "CLIPTextModel", None, pooled=True)
_BIG_G = TowerUse("text_encoder_2", "tokenizer_2", _PROJECTED, _PENULTIMATE, pooled=True)


def _t5(
    length: int, number: str = "", *, masked: bool = False, lower: bool = False, **more: Any
) -> TowerUse:
    return TowerUse(
        f"text_encoder{number}", f"tokenizer{number}", "T5EncoderModel", _LAST,
        length=length, masked=masked, lower=lower, **more,
    )  # fmt: skip


_T5_OF_FLUX = _t5(512, "_2", least=(("a1111", 256), ("comfy", 256)))
_T5_OF_SD3 = _t5(256, "_3", follows=True, optional=True, least=(("a1111", 256), ("comfy", 77)))

_STATES = ("prompt_embeds",)
_NEGATIVE = ("negative_prompt",)
# PixArt-alpha's folders name the class of the time before it had one of its own.
_PIXART = ("PixArtTransformer2DModel", "Transformer2DModel")

_ROWS = (
    Recipe("sd15", _SD, obeys_mask=True, swapped=_STATES, activation="quick_gelu"),
    Recipe("sd21", _SD, obeys_mask=True, swapped=_STATES),
    Recipe(
        "sdxl", (_CLIP_L, _BIG_G), zeros_for_none=True, time_ids=True,
        swapped=(*_STATES, "add_text_embeds"),
    ),
    Recipe(
        "sdxl-refiner", (_BIG_G,), zeros_for_none=True, time_ids=True,
        swapped=(*_STATES, "add_text_embeds"),
    ),
    Recipe(
        "sd3", (_CLIP_L_PROJECTED, _BIG_G, _T5_OF_SD3),
        swapped=(*_STATES, "pooled_prompt_embeds"),
        backbone="transformer", classes=("SD3Transformer2DModel",),
    ),
    Recipe(
        "flux", (_CLIP_L_POOLED, _T5_OF_FLUX), none_for_none=True,
        backbone="transformer", classes=("FluxTransformer2DModel",),
    ),
    Recipe(
        "pixart-sigma", (_t5(300, masked=True, lower=True),), mask="int", cleared=_NEGATIVE,
        backbone="transformer", classes=_PIXART, pipeline="PixArtSigma",
    ),
    Recipe(
        "pixart-alpha", (_t5(120, masked=True, lower=True),), mask="int", cleared=_NEGATIVE,
        backbone="transformer", classes=_PIXART,
    ),
    Recipe(
        "chroma", (_t5(512, masked=True),), mask="one_pad",
        backbone="transformer", classes=("ChromaTransformer2DModel",),
    ),
    Recipe(
        "cogview3plus", (_t5(224),), zeros_for_none=True,
        backbone="transformer", classes=("CogView3PlusTransformer2DModel",),
    ),
    Recipe(
        "cogvideox", (_t5(226),),
        backbone="transformer", classes=("CogVideoXTransformer3DModel",),
    ),
    Recipe(
        "ltx-condition", (_t5(256, masked=True),), mask="bool",
        backbone="transformer", classes=("LTXVideoTransformer3DModel",), pipeline="LTXCondition",
    ),
    Recipe(
        "ltx", (_t5(128),), mask="bool",
        backbone="transformer", classes=("LTXVideoTransformer3DModel",),
    ),
    Recipe(
        "allegro", (_t5(512, masked=True, lower=True),), mask="int", cleared=_NEGATIVE,
        backbone="transformer", classes=("AllegroTransformer3DModel",),
    ),
    Recipe(
        "deepfloyd-if", (_t5(77, masked=True, lower=True),), classes=("UNet2DConditionModel",)
    ),
)  # fmt: skip

RECIPES = {row.name: row for row in _ROWS}
"""The table, in the order in which it is searched."""


@keywords
def find_recipe(
    components: Mapping[str, str | None],
    activation: str,
    source: str,
    pipelines: Sequence[str] = (),
) -> Recipe:
    """The recipe of a model, from the classes of its parts and never from its name.

    Args:
        components: part name -> class name (None for a part that is absent), as in
            ``model_index.json``.
        activation: of the first text tower; OpenCLIP's ``gelu`` tells sd21 from sd15.
        source: what the model is called in an error.
        pipelines: the pipeline's class and its parents; they tell PixArt's two models apart, whose
            parts are the same.

    Raises:
        UnsupportedModelError: no row fits; the message lists the parts found.
    """
    text = {
        name: kind
        for name, kind in components.items()
        if name.startswith("text_encoder") and kind is not None
    }
    for row in RECIPES.values():
        backbone = components.get(row.backbone)
        if (
            backbone is not None
            and (not row.classes or backbone in row.classes)
            and _has_towers(row, text)
            and row.activation in ("", activation)
            and (not row.pipeline or any(name.startswith(row.pipeline) for name in pipelines))
        ):
            return row
    found = ", ".join(f"{name}: {kind}" for name, kind in sorted(text.items())) or "none"
    raise UnsupportedModelError(
        f"No recipe for {source}: its text towers are {found}, its UNet is "
        f"{components.get('unet') or 'absent'}, its transformer "
        f"{components.get('transformer') or 'absent'}. Recipes exist for {', '.join(RECIPES)}. "
        "(If a live pipeline's text encoder was set to None, put it back or pass the model's "
        "folder.)"
    )


def _has_towers(row: Recipe, text: Mapping[str, str]) -> bool:
    """Whether the towers found are the row's; optional ones may be missing."""
    wanted = {use.component: use.architecture for use in row.towers}
    optional = {use.component for use in row.towers if use.optional}
    return text.items() <= wanted.items() and wanted.keys() - text.keys() <= optional
