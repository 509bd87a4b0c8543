"""OpenAI's and open_clip's own checkpoints (and Long-CLIP's, BioCLIP's): their key layout.

Radford et al. 2021; Cherti et al. 2023, "Reproducible scaling laws for contrastive language-image
learning"; Zhang et al. 2024, "Long-CLIP"; Yu et al. 2022, "CoCa". FLIP's models in this layout too:
their masking of patches is a matter of training.

An image side is a vision transformer, a ResNet (`open_clip_modules`), or timm's (`timm_images`). A
text side that calculates as CLIP's does is renamed and run by transformers' class, so that LoRA,
textual inversion and a pipeline take it as their own; any other is open_clip's text transformer.
Its states are seen without a norm; pooled states as open_clip gives them.

OpenAI's code and open_clip share a layout: ``transformer.resblocks.0.attn.in_proj_weight`` (query,
key and value in one), ``visual.conv1.weight``, projections stored for ``x @ w`` where a Linear
layer has the transpose. open_clip puts ``text.`` before the text tower's names where that tower is
one of several kinds.

Two ways of CoCa are its own. Its class token comes after the text, so it sees all of it, but
padding (``pad_id``, 0 by default): the mask is one place late, as it was in training, and hidden
from the places after it too, as in open_clip 3; before, and in training, they saw what was before
them, padding or not. The pooled state is the same in both, but for words that have the id of
padding. And its picture's states are read by learnt queries; the first of them is the pooled state.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bridge.checks import is_whole
from bridge.errors import BridgeError, WeightsError
from bridge.towers import clip
from bridge.towers.checkpoint import load_tower
from bridge.towers.clip import TEXT_PROJECTED, TOKENIZER, patch_grid
from bridge.towers.family import ImageFamily, Parts, TextFamily, TowerSpec, spec_of_config
from bridge.towers.image_processor import open_clip_pictures
from bridge.towers.open_clip_config import (
    CONFIG,
    IMAGE_SIZE,
    OpenClipFiles,
    check_layers,
    divided,
    epsilon,
    extras,
    image_size,
    read_files,
    reading_of_texts,
    side_of,
    text_heads,
    told_size,
    vision_heads,
    whole_of,
)
from bridge.towers.open_clip_modules import (
    STRIDE,
    ResNet,
    ResNetShape,
    TextShape,
    TextTransformer,
    VisionShape,
    VisionTransformer,
    made,
)
from bridge.towers.pooled import pool_text as pool_clip
from bridge.towers.states import ImageStates, Layer, TextStates
from bridge.towers.timm_images import TimmImage, TimmShape
from bridge.towers.tokenizer import TokenRule

# transformers pools at the highest id, as OpenAI's code and open_clip do, if EOS is said to be 2.
_HIGHEST = 2
# How a name begins; the longest that fits is taken.
_TEXT = {
    "token_embedding.": "text_model.embeddings.token_embedding.",
    "ln_final.": "text_model.final_layer_norm.",
}
_BLOCK = {
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
    "attn.out_proj.": "self_attn.out_proj.",
}
_BLOCKS = "transformer.resblocks."
_RESBLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
_PLAIN = re.compile(
    r"transformer\.resblocks\.\d+\.(?:ln_[12]\.|attn\.in_proj_|attn\.out_proj\.|mlp\.c_).+"
    r"|token_embedding\.weight|positional_embedding(?:_res)?|ln_final\..+"
    r"|text_projection(?:\.weight)?"
)
_INNER = f"{_BLOCKS}0.mlp.c_fc.bias"
_VISUAL = "visual."
# Where pooled states are read, by what a tower's spec says of it (`family.TowerSpec`).
_PLACES = {"class": "hidden", "last": "end", "first": "first"}

State = Mapping[str, Tensor]


def load_text(folder: Path, dtype: Any, device: Any, allow_pickle: bool = False) -> Parts:
    """The text tower of a folder in this layout. Raises WeightsError, UnsupportedModelError."""
    return text_parts(read_files(folder, allow_pickle, "text_cfg"), dtype, device)


def load_image(folder: Path, dtype: Any, device: Any, allow_pickle: bool = False) -> Parts:
    """The image tower of a folder in this layout, as `load_text`."""
    return image_parts(read_files(folder, allow_pickle, "vision_cfg"), dtype, device)


def text_parts(files: OpenClipFiles, dtype: Any, device: Any) -> Parts:
    """The text tower among a checkpoint's tensors. Raises WeightsError."""
    state = _text_state(files)
    module: Any
    if _is_plain(files, state):
        renamed, config = _told(files, lambda: _renamed_text(files, state))
        module = load_tower(
            TEXT_PROJECTED, files.folder, dtype=dtype, device=device, config=config, state=renamed
        )
        spec = spec_of_config(config.to_dict(), TEXT_PROJECTED, str(files.folder))
    else:
        shape = _told(files, lambda: _text_shape(files, state))
        module = filled(made(TextTransformer, shape), state, files.folder, dtype, device)
        spec = _text_spec(shape, files)
    return Parts(
        module=module,
        spec=spec,
        scoring=files.scoring(),
        reads=reading_of_texts(files.model),
    )


def image_parts(files: OpenClipFiles, dtype: Any, device: Any) -> Parts:
    """The image tower among a checkpoint's tensors. Raises WeightsError, UnsupportedModelError,
    MissingDependencyError for a network of timm without timm."""
    state = _own(files.state, _VISUAL)
    module = filled(
        _told(files, lambda: _image_module(files, state)), state, files.folder, dtype, device
    )
    side = module.config.image_size
    return Parts(
        module=module,
        spec=_image_spec(module, str(files.folder)),
        scoring=files.scoring(),
        processor=open_clip_pictures(files.preprocess, (side, side), str(files.folder / CONFIG)),
    )


def filled(module: Any, state: State, folder: Path, dtype: Any, device: Any) -> Any:
    """The module with these tensors, all of them and no others. Raises WeightsError."""
    try:
        module.load_state_dict(dict(state), assign=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        raise WeightsError(
            f"{folder} lacks tensors of its {type(module).__name__}, or has others: "
            f"{' '.join(lines)[:400]}"
        ) from error
    return module.to(device, dtype).eval().requires_grad_(False)


def _own(state: State, start: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``start``, by the rest of their names."""
    return {name[len(start) :]: t for name, t in state.items() if name.startswith(start)}


def _told(files: OpenClipFiles, make: Any) -> Any:
    """What ``make`` makes of the tensors and the config; what is wrong with either names it."""
    try:
        return make()
    except KeyError as error:
        raise WeightsError(
            f"{files.folder} lacks the tensor {error}; it is damaged or of another layout"
        ) from error
    except BridgeError as error:
        raise type(error)(f"{files.folder / CONFIG}: {error}") from error


# ---------------------------------------------------------------- text


def _text_state(files: OpenClipFiles) -> dict[str, Tensor]:
    """The text tower's tensors by open_clip's names."""
    own = _own(files.state, "text.") or files.state
    starts = ("token_embedding.", "positional_embedding", "cls_emb", "transformer.", "ln_final.")
    return {k: t for k, t in own.items() if k.startswith((*starts, "text_projection"))}


def _is_plain(files: OpenClipFiles, state: State) -> bool:
    """Whether a text tower calculates as CLIP's, by its config and by its tensors."""
    told = side_of(files.model, "text_cfg")
    unlike = ("no_causal_mask", "embed_cls", "proj_bias")
    return not (
        any(told.get(name) for name in unlike)
        or told.get("ls_init_value") is not None
        or told.get("pool_type") not in (None, "argmax")
        or extras(files.model, "text_cfg")
        or not all(map(_PLAIN.fullmatch, state))
    )


def _blocks(files: OpenClipFiles, state: State, side: str) -> dict[str, Any]:
    """What the config and the tensors tell of a side's blocks, as fields of a `Shape`."""
    names = {name.split(".")[2] for name in state if name.startswith(_BLOCKS)}
    layers = check_layers(files.model, side, len(names))
    return {
        "layers": layers,
        "inner": len(state[_INNER]),
        "activation": files.activation(side),
        "epsilon": epsilon(files.model, side),
        "layer_scale": side_of(files.model, side).get("ls_init_value") is not None,
        "extras": extras(files.model, side),
    }


def _text_shape(files: OpenClipFiles, state: State) -> TextShape:
    model, told = files.model, side_of(files.model, "text_cfg")
    places, width = state["positional_embedding"].shape
    projection, pooled = "none", width
    if told.get("proj_type") != "none":
        projection = "linear" if told.get("proj_bias") else "matrix"
        name = "text_projection.weight" if projection == "linear" else "text_projection"
        pooled = state[name].shape[0 if projection == "linear" else 1]
    own_token = told.get("embed_cls", "cls_emb" in state)
    return TextShape(
        width=width,
        heads=text_heads(model, width),
        vocabulary=len(state["token_embedding.weight"]),
        places=places,
        causal=not told.get("no_causal_mask"),
        pool="class" if own_token else told.get("pool_type") or "argmax",
        eos=whole_of(model, "text_cfg", "eos_id", 2),
        pad=whole_of(model, "text_cfg", "pad_id", 0),
        projection=projection,
        pooled=pooled,
        **_blocks(files, state, "text_cfg"),
    )


def _text_spec(shape: TextShape, files: OpenClipFiles) -> TowerSpec:
    own = shape.pool == "class"
    read = _PLACES.get(shape.pool, "token" if shape.causal else "hidden")
    return TowerSpec(
        architecture="OpenClipText",
        source=str(files.folder),
        width=shape.width,
        layers=shape.layers,
        context=shape.places - own,
        pooled_width=shape.pooled,
        activation=shape.activation,
        mlp_width=shape.inner,
        pooled_at=read,
    )


def encode_text(
    module: Any, ids: Tensor, layers: Sequence[Layer], mask: Tensor | None, attentions: bool = False
) -> TextStates:
    """One forward pass that sees padding, but in a CoCa. A CoCa's class token is among the states
    in ``pooled`` only; its caption decoder was fed ``Layer(-1, norm=False)``."""
    if not isinstance(module, TextTransformer):
        return clip.encode_text(module, ids, layers, mask, attentions)  # type: ignore[arg-type]
    kept: list[Tensor] | None = [] if attentions else None
    states, pooled = module(ids, kept)
    length = ids.shape[1]
    shown = (states[layer.index][:, :length] for layer in layers)
    return TextStates(
        hidden=tuple(
            module.ln_final(state) if layer.norm else state
            for layer, state in zip(layers, shown, strict=True)
        ),
        pooled=pooled,
        mask=mask,
        attentions=tuple(each[..., :length, :length] for each in kept or ()),
    )


# ---------------------------------------------------------------- text, as transformers' CLIP


def _renamed_text(files: OpenClipFiles, own: State) -> tuple[dict[str, Tensor], Any]:
    """The tensors of a ``CLIPTextModelWithProjection`` and its config. ``proj_type: none`` is a
    projection that leaves all as it is."""
    from transformers import CLIPTextConfig

    new = dict(_renamed(own))
    places = new["text_model.embeddings.position_embedding.weight"] = _positions(own)
    if "text_projection" in own:
        new["text_projection.weight"] = own["text_projection"].T.contiguous()
    elif "text_projection.weight" in own:
        new["text_projection.weight"] = own["text_projection.weight"]
    elif side_of(files.model, "text_cfg").get("proj_type") == "none":
        norm = own["ln_final.weight"]
        new["text_projection.weight"] = torch.eye(len(norm), dtype=norm.dtype)
    blocks, width = _blocks(files, own, "text_cfg"), places.shape[1]
    projection = new.get("text_projection.weight")
    return new, CLIPTextConfig(
        vocab_size=len(own["token_embedding.weight"]),
        hidden_size=width,
        max_position_embeddings=len(places),
        num_attention_heads=text_heads(files.model, width),
        num_hidden_layers=blocks["layers"],
        intermediate_size=blocks["inner"],
        projection_dim=width if projection is None else len(projection),
        hidden_act=blocks["activation"],
        layer_norm_eps=blocks["epsilon"],
        eos_token_id=_HIGHEST,
    )


def _positions(own: State) -> Tensor:
    """The positions' embeddings; Long-CLIP has two tables of 248.

    The first 20 rows of the one stayed as CLIP had them, and from there the other holds
    (beichenzbc/Long-CLIP, ``model/model_longclip.py``).
    """
    table = own["positional_embedding"]
    if "positional_embedding_res" not in own:
        return table
    joined = own["positional_embedding_res"].clone()
    joined[:20] = table[:20]
    return joined


def _renamed(own: State) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in own.items():
        block = _RESBLOCK.fullmatch(name)
        if block:
            start = f"text_model.encoder.layers.{block[1]}."
            yield from ((start + of, part) for of, part in _block(block[2], tensor))
        for old, new in _TEXT.items():
            if name.startswith(old):
                yield new + name[len(old) :], tensor


def _block(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """One tensor of a block; the one of query, key and value becomes three."""
    if name.startswith("attn.in_proj_"):
        kind = name.removeprefix("attn.in_proj_")
        for part, third in zip("qkv", tensor.chunk(3), strict=True):
            yield f"self_attn.{part}_proj.{kind}", third.clone()
    for old, new in _BLOCK.items():
        if name.startswith(old):
            yield new + name[len(old) :], tensor


# ---------------------------------------------------------------- pictures


def _image_module(files: OpenClipFiles, state: State) -> nn.Module:
    """The image tower's module, before it has its tensors."""
    told = side_of(files.model, "vision_cfg")
    if told.get("timm_model_name"):
        return TimmImage(_timm_shape(files))
    if isinstance(told.get("layers"), list) or "layer1.0.conv1.weight" in state:
        return made(ResNet, _resnet_shape(files, state))
    return made(VisionTransformer, _vision_shape(files, state))


def _timm_shape(files: OpenClipFiles) -> TimmShape:
    told, pooled = side_of(files.model, "vision_cfg"), files.model.get("embed_dim")
    if not is_whole(pooled, 1):
        raise WeightsError(f"embed_dim is {pooled!r}; it must be a whole number above 0")
    return TimmShape(
        name=str(told["timm_model_name"]),
        pool=str(told.get("timm_pool", "avg") or ""),
        projection=str(told.get("timm_proj", "linear") or ""),
        bias=bool(told.get("timm_proj_bias")),
        image_size=told_size(files.model) or IMAGE_SIZE,
        pooled=pooled,
    )


def _resnet_shape(files: OpenClipFiles, state: State) -> ResNetShape:
    names = [name.split(".") for name in state if name.startswith("layer")]
    stages = sorted({stage for stage, *_ in names})
    width = len(state["conv3.weight"])
    side = STRIDE * round((len(state["attnpool.positional_embedding"]) - 1) ** 0.5)
    channels = state["attnpool.q_proj.weight"].shape[1]
    heads = vision_heads(files.model, channels)
    layers = [len({number for of, number, *_ in names if of == stage}) for stage in stages]
    told = side_of(files.model, "vision_cfg").get("layers", layers)
    if list(told) != layers:
        raise WeightsError(f"vision_cfg.layers is {told!r}, and the tensors are of {layers}")
    size = image_size(files.model, side // STRIDE, STRIDE)
    pooled = len(state["attnpool.c_proj.weight"])
    return ResNetShape(tuple(layers), width, heads, size, pooled)


def _vision_shape(files: OpenClipFiles, state: State) -> VisionShape:
    model, told = files.model, side_of(files.model, "vision_cfg")
    width, patch = state["conv1.weight"].shape[0], state["conv1.weight"].shape[-1]
    places = len(state["positional_embedding"])
    last, pooled = state["proj"].shape
    queried = told.get("attentional_pool", "attn_pool.query" in state)
    return VisionShape(
        width=width,
        heads=vision_heads(model, width),
        patch_size=patch,
        image_size=image_size(model, round((places - 1) ** 0.5), patch),
        places=places,
        norm_first=not told.get("no_ln_pre"),
        pool=told.get("pool_type") or "tok",
        norm_last=bool(told.get("final_ln_after_pool")),
        queries=len(state["attn_pool.query"]) if queried else 0,
        query_width=last if queried else 0,
        query_heads=divided(
            "attn_pooler_heads", whole_of(model, "vision_cfg", "attn_pooler_heads", 8, 1), last
        )
        if queried
        else 0,
        pooled=pooled,
        **_blocks(files, state, "vision_cfg"),
    )


def _image_spec(module: Any, source: str) -> TowerSpec:
    shape = module.config
    grid = (shape.image_size // shape.patch_size) ** 2
    if isinstance(module, VisionTransformer):
        width, layers, context = shape.width, shape.layers, shape.places
    elif isinstance(module, ResNet):
        width, layers, context = module.attnpool.q_proj.in_features, len(shape.layers), grid
    else:
        width, layers, context = module.trunk.num_features, module.layers, grid
    return TowerSpec(
        architecture=f"OpenClip{type(module).__name__}",
        source=source,
        width=width,
        layers=layers,
        context=context,
        pooled_width=shape.pooled,
        activation=getattr(shape, "activation", ""),
        mlp_width=getattr(shape, "inner", 0),
    )


def encode_image(module: Any, pixels: Tensor, layers: Sequence[int] = (-1,)) -> ImageStates:
    """One forward pass; patches without a norm, and without the class token.

    Raises OptionError for an inner layer of a network of stages, whose layers are of other widths
    and grids.
    """
    if isinstance(module, VisionTransformer):
        states, pooled = module(pixels)
        patches = tuple(states[layer][:, 1:] for layer in layers)
        return ImageStates(patches, pooled, patch_grid(module, pixels))
    maps, pooled = module(pixels, layers)
    patches = tuple(each.flatten(2).transpose(1, 2) for each in maps)
    return ImageStates(patches, pooled, (maps[0].shape[2], maps[0].shape[3]))


def pool_text(module: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Pooled states ``(B, P)`` alone."""
    own = isinstance(module, TextTransformer)
    return module.pool(ids) if own else pool_clip(module, ids, mask)


def pool_image(module: Any, pixels: Tensor) -> Tensor:
    """Pooled states ``(B, P)`` alone."""
    if isinstance(module, VisionTransformer | TimmImage):
        return module.pool(pixels)
    found: Tensor = module(pixels, (-1,))[1]
    return found


def picture_tokens(module: VisionTransformer, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled states ``(B, P)`` and what a CoCa's caption decoder is shown: ``(B, Q - 1, D)``, the
    queries after the first."""
    states, pooled = module(pixels)
    return pooled, module.read(states[-1])[:, 1:]


_RULE = TokenRule(fill=True, pad=0, clean="lower")
TEXT = TextFamily("open_clip", load_text, encode_text, _RULE, TOKENIZER, pool=pool_text)
WORDS_TEXT = TextFamily(
    "open_clip_words",
    load_text,
    encode_text,
    TokenRule(fill=True, clean="whitespace"),
    pool=pool_text,
)
COCA_TEXT = TextFamily("coca", load_text, encode_text, _RULE, TOKENIZER, pool=pool_text)
IMAGE, WORDS_IMAGE, COCA_IMAGE = (
    ImageFamily(name, load_image, encode_image, pool_image)
    for name in ("open_clip", "open_clip_words", "coca")
)
