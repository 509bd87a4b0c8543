"""The CLIP family in transformers' layout: ``CLIPModel`` folders, and single text towers.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".
OpenCLIP's, Long-CLIP's, BioCLIP's and PubMedCLIP's checkpoints in this layout are read alike: the
config tells them apart (activation, positions, widths).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bridge.errors import UnsupportedModelError, WeightsError
from bridge.files import read_json
from bridge.towers.checkpoint import load_tower
from bridge.towers.family import (
    ImageFamily,
    Parts,
    Scoring,
    TextFamily,
    TowerSpec,
    spec_of_config,
    told_scoring,
)
from bridge.towers.image_processor import load_image_processor
from bridge.towers.pooled import pool_image, pool_text
from bridge.towers.states import LAST, ImageStates, Layer, TextStates
from bridge.towers.tensors import read_named
from bridge.towers.tokenizer import TokenRule
from bridge.towers.watch import is_watched

TEXT_PLAIN = "CLIPTextModel"
TEXT_PROJECTED = "CLIPTextModelWithProjection"
IMAGE_PROJECTED = "CLIPVisionModelWithProjection"
TOKENIZER = "CLIPTokenizer"


def load_text(folder: Path, dtype: Any, device: Any, allow_pickle: bool = False) -> Parts:
    """The text side of a ``CLIPModel`` folder, or a text tower's own folder.

    A ``CLIPTextModel`` has no projection: its pooled state is the EOS state, and no picture is
    scored with it. Raises WeightsError.
    """
    config, values, told = _side(folder, "text_config")
    if config is not None:
        _check_projected(folder, told, "text_projection.weight")
    kind = TEXT_PLAIN if config is None and TEXT_PROJECTED not in told else TEXT_PROJECTED
    module = load_tower(kind, folder, dtype=dtype, device=device, config=config)
    return Parts(module, spec_of_config(values, kind, str(folder)), read_scoring(folder))


def load_image(folder: Path, dtype: Any, device: Any, allow_pickle: bool = False) -> Parts:
    """The image side of a ``CLIPModel`` folder, or a ``CLIPVisionModelWithProjection``'s own."""
    config, values, told = _side(folder, "vision_config")
    kind = IMAGE_PROJECTED
    if config is None and kind not in (told or (kind,)):
        raise _unprojected(folder, told)
    if config is not None:
        _check_projected(folder, told, "visual_projection.weight")
    module = load_tower(kind, folder, dtype=dtype, device=device, config=config)
    spec = spec_of_config(values, kind, str(folder))
    return Parts(module, spec, read_scoring(folder), load_image_processor(folder))


def _check_projected(folder: Path, told: Sequence[str], name: str) -> None:
    """Refuse a CLIP with another head (CLIPForImageClassification); one that lacks a tensor of its
    own is damaged, and is told so where it loads."""
    if told and "CLIPModel" not in told and not read_named(folder, (name,)):
        raise _unprojected(folder, told)


def _unprojected(folder: Path, told: Sequence[str]) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{folder} holds a {', '.join(map(str, told))}, without the projection into the space that "
        "texts and pictures share; give a folder of a CLIPModel, or of one side of it with its "
        "projection"
    )


def _side(folder: Path, side: str) -> tuple[Any, dict[str, Any], Sequence[str]]:
    """The config of one side of a model with two, None for a folder of one tower; that side's
    values; and the classes that the folder is said to be of.

    The joint width stands at the top; that in the sides' own configs is wrong in some published
    files (LAION's say 512 where the projection is wider), since CLIPModel does not read it there.
    """
    stored = read_json(folder / "config.json")
    told = stored.get("architectures") or ()
    if side not in stored:
        return None, stored, told
    from transformers import CLIPConfig

    try:
        whole = CLIPConfig.from_dict(stored)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{folder / 'config.json'} is not a CLIP config: {error}") from error
    config = getattr(whole, side)
    config.projection_dim = whole.projection_dim
    return config, config.to_dict(), told


def read_scoring(folder: Path) -> Scoring | None:
    """CLIP's learned scale; None for a folder without one."""
    found = read_named(folder, ("logit_scale",))
    own = Scoring(float(found["logit_scale"].float().exp())) if found else None
    return told_scoring(folder, own)


def encode(
    module: Any,
    ids: Tensor,
    layers: Sequence[Layer] = (LAST,),
    mask: Tensor | None = None,
    attentions: bool = False,
) -> TextStates:
    """One forward pass of a text tower, as Stable Diffusion 1 (ViT-L/14), 2 (OpenCLIP ViT-H/14)
    and SDXL (ViT-L/14 and ViT-bigG/14) run it.

    Args:
        module: a ``CLIPTextModel`` or ``CLIPTextModelWithProjection``.
        ids: ``(B, T)`` int64 token ids on the module's device.
        layers: the layers wanted.
        mask: ``(B, T)`` attention mask, 1 for tokens that may be seen; None to see padding too,
            as Stable Diffusion does. Of floats: what is added to the logits of each token
            wherever it is looked at, which needs SDPA or eager attention.
        attentions: give the weights of attention too, which needs eager attention.

    Returns:
        TextStates in the module's dtype; pooled is the EOS state after the final norm, ``(B, D)``,
        or ``(B, P)`` where the module has a projection to multiply it by.
    """
    out = module(
        ids,
        attention_mask=causal_mask(module, mask),
        output_hidden_states=needs_all(layers),
        output_attentions=attentions,
    )
    pooled = out.text_embeds if hasattr(module, "text_projection") else out.pooler_output
    return TextStates(pick(module, out, layers), pooled, mask, out.attentions or ())


def encode_text(
    module: Any, ids: Tensor, layers: Sequence[Layer], mask: Tensor, attentions: bool = False
) -> TextStates:
    """One forward pass that sees padding, as OpenAI's code, open_clip and Stable Diffusion do.

    Attention is causal, so no text's own states depend on the padding behind it.
    """
    out = encode(module, ids, layers, None, attentions)
    return TextStates(out.hidden, out.pooled, mask, out.attentions)


def encode_image(module: Any, pixels: Tensor, layers: Sequence[int] = (-1,)) -> ImageStates:
    """One forward pass.

    Args:
        module: a ``CLIPVisionModelWithProjection``.
        pixels: ``(B, 3, H, W)`` normalised pixels of the tower's size, in its dtype and device.
        layers: layers wanted, counted from the end; LLaVA takes the penultimate, -2. No norm is
            applied (CLIP norms the class state only).

    Returns:
        ImageStates with patches ``(B, h*w, D)``, the class token dropped.
    """
    out = module(pixels, output_hidden_states=True)
    patches = tuple(out.hidden_states[layer][:, 1:] for layer in layers)
    return ImageStates(patches, out.image_embeds, patch_grid(module, pixels))


def patch_grid(module: Any, pixels: Tensor) -> tuple[int, int]:
    """Rows and columns of patches that ``pixels`` ``(B, 3, H, W)`` are cut into."""
    patch = int(module.config.patch_size)
    return pixels.shape[-2] // patch, pixels.shape[-1] // patch


def causal_mask(module: Any, mask: Tensor | None) -> Tensor | None:
    """A mask of floats ``(B, T)`` as ``(B, 1, T, T)`` for causal attention; others as they are.

    transformers takes a mask of four dimensions as the whole of what is added to the logits.
    """
    if mask is None or not mask.is_floating_point():
        return mask
    length = mask.shape[-1]
    later = torch.full((length, length), -torch.inf, device=mask.device, dtype=torch.float32)
    return (mask[:, None, None] + later.triu(1)).to(module.dtype)


def needs_all(layers: Sequence[Layer]) -> bool:
    """Whether any layer but the published last one is wanted."""
    return any(layer != LAST for layer in layers)


def pick(module: Any, out: Any, layers: Sequence[Layer]) -> tuple[Tensor, ...]:
    """The states of ``layers`` out of a CLIP text model's output."""
    # A tower with a projection wraps its transformer.
    norm = getattr(module, "text_model", module).final_layer_norm

    def one(layer: Layer) -> Tensor:
        if layer == LAST:
            return out.last_hidden_state
        # hidden_states starts with the embeddings and ends with the last layer before the norm.
        state = out.hidden_states[layer.index]
        return norm(state) if layer.norm else state

    return tuple(map(one, layers))


def spec_of(module: Any, source: str) -> TowerSpec:
    """The spec of a live ``CLIPTextModel`` or ``CLIPTextModelWithProjection``."""
    return spec_of_config(module.config.to_dict(), type(module).__name__, source)


# ---------------------------------------------------------------- towers that end early

_KINDS = (TEXT_PLAIN, TEXT_PROJECTED)
_AS_IT_IS = nn.Identity()


def shortened(module: Any, layer: Layer) -> Any | None:
    """The tower without what stands behind ``layer``; None where it can only run as a whole.

    SDXL takes the penultimate layer of both its towers, and the pooled state of the second alone;
    with ``clip_skip`` Stable Diffusion 1 stops before the end too. What runs is transformers' own
    code on the tower's own layers, so the states are the same bit for bit.

    Only a whole tower runs for another kind of module, for the last layer, and where somebody would
    miss what is left out: hooks on it or on the tower, offloading, compiled code.

    Args:
        module: a text tower of transformers.
        layer: the only layer of which states are wanted; no pooled state is.

    Returns:
        A module to be called with ids. Its ``last_hidden_state`` is the layer's, without the final
        norm; its pooled state means nothing.
    """
    if type(module).__name__ not in _KINDS or layer.index >= -1:
        return None
    text = getattr(module, "text_model", module)  # a tower with a projection wraps its transformer
    layers = text.encoder.layers
    kept = len(layers) + 1 + layer.index
    whole = (module, text, text.encoder)
    if kept < 1 or not all(map(_is_plain, whole)):
        return None
    dropped = [part for each in layers[kept:] for part in each.modules()]
    if any(map(is_watched, (*whole, *dropped, layers, text.final_layer_norm))):
        return None
    encoder = _with(text.encoder, {"layers": layers[:kept]})
    cut = _with(text, {"encoder": encoder, "final_layer_norm": _AS_IT_IS})
    return cut if text is module else _with(module, {"text_model": cut})


def states_of(module: Any, cut: Any, ids: Tensor, layer: Layer) -> Tensor:
    """What ``cut``, which `shortened` made of ``module`` for ``layer``, gives: ``(B, T, D)``."""
    out = cut(ids)
    state: Tensor = out.last_hidden_state
    norm = getattr(module, "text_model", module).final_layer_norm
    return norm(state) if layer.norm else state


def _with(module: Any, parts: Mapping[str, Any]) -> Any:
    """A module with some parts of its own in the place of the given one's; the rest is shared."""
    made = object.__new__(type(module))
    made.__dict__.update(module.__dict__)
    made.__dict__["_modules"] = {**module._modules, **parts}
    return made


def _is_plain(module: Any) -> bool:
    """Whether calling it runs its class's code, and no offloading's or compiler's."""
    own = module.__dict__
    return "forward" not in own and own.get("_compiled_call_impl") is None


TEXT = TextFamily(
    "clip", load_text, encode_text, TokenRule(fill=True), TOKENIZER, spec=spec_of, pool=pool_text
)
IMAGE = ImageFamily("clip", load_image, encode_image, pool_image)
