"""OpenAI's and open_clip's own checkpoints (and Long-CLIP's, BioCLIP's): their key layout.

Radford et al. 2021; Cherti et al. 2023, "Reproducible scaling laws for contrastive language-image
learning"; Zhang et al. 2024, "Long-CLIP". Tensors are renamed and run by transformers' CLIP
classes, which are the same calculation. FLIP's models in this layout too: their masking of patches
is a matter of training.

OpenAI's code and open_clip share a layout: ``transformer.resblocks.0.attn.in_proj_weight`` (query,
key and value in one), ``visual.conv1.weight``, projections stored for ``x @ w`` where a Linear
layer has the transpose. open_clip puts ``text.`` before the text tower's names where that tower is
one of several kinds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bridge.errors import WeightsError
from bridge.towers.checkpoint import load_tower
from bridge.towers.clip import IMAGE_PROJECTED, TEXT_PROJECTED, TOKENIZER, encode_image, encode_text
from bridge.towers.family import ImageFamily, Parts, TextFamily, spec_of_config
from bridge.towers.image_processor import OpenClipPictures, open_clip_pictures
from bridge.towers.open_clip_config import (
    CONFIG,
    OpenClipFiles,
    cleaning,
    epsilon,
    image_size,
    is_projected,
    read_files,
    text_heads,
    vision_heads,
)
from bridge.towers.pooled import pool_image, pool_text
from bridge.towers.tokenizer import TokenRule

# transformers pools at the highest id, as OpenAI's code and open_clip do, if EOS is said to be 2.
_HIGHEST = 2
# How a name begins; the longest that fits is taken.
_TEXT = {
    "token_embedding.": "text_model.embeddings.token_embedding.",
    "ln_final.": "text_model.final_layer_norm.",
}
_IMAGE = {
    "conv1.": "vision_model.embeddings.patch_embedding.",
    "ln_pre.": "vision_model.pre_layrnorm.",
    "ln_post.": "vision_model.post_layernorm.",
}
_BLOCK = {
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
    "attn.out_proj.": "self_attn.out_proj.",
}
_RESBLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")


def load_text(folder: Path, dtype: Any, device: Any, allow_pickle: bool = False) -> Parts:
    """The text tower of a folder in this layout. Raises WeightsError, UnsupportedModelError."""
    files = read_files(folder, allow_pickle)
    state, config = text_side(files)
    kind = TEXT_PROJECTED
    return Parts(
        module=load_tower(kind, folder, dtype=dtype, device=device, config=config, state=state),
        spec=spec_of_config(config.to_dict(), kind, str(folder)),
        scoring=files.scoring(),
        clean=cleaning(files.model),
    )


def load_image(folder: Path, dtype: Any, device: Any, allow_pickle: bool = False) -> Parts:
    """The image tower of a folder in this layout, as `load_text`."""
    files = read_files(folder, allow_pickle)
    state, config = image_side(files)
    kind = IMAGE_PROJECTED
    return Parts(
        module=load_tower(kind, folder, dtype=dtype, device=device, config=config, state=state),
        spec=spec_of_config(config.to_dict(), kind, str(folder)),
        scoring=files.scoring(),
        processor=processor(files, config.image_size),
    )


def text_side(files: OpenClipFiles) -> tuple[dict[str, Tensor], Any]:
    """The text tower's tensors by transformers' names, and its config: widths from the tensors,
    heads from open_clip's config. Raises WeightsError, UnsupportedModelError."""
    return _side(files, _text_state, _text_config)


def image_side(files: OpenClipFiles) -> tuple[dict[str, Tensor], Any]:
    """The same of the image tower."""
    return _side(files, _image_state, _vision_config)


def processor(files: OpenClipFiles, side: int) -> OpenClipPictures:
    """open_clip's way with pictures, as ``preprocess_cfg`` says it, to squares of ``side``.

    Raises UnsupportedModelError for a way that open_clip does not know.
    """
    return open_clip_pictures(files.preprocess, (side, side), str(files.folder / CONFIG))


def _side(files: OpenClipFiles, rename: Any, configure: Any) -> tuple[dict[str, Tensor], Any]:
    try:
        state = rename(files)
    except KeyError as error:
        raise WeightsError(
            f"{files.folder} lacks the tensor {error}; it is damaged or of another layout"
        ) from error
    try:
        return state, configure(files, state)
    except WeightsError as error:
        raise WeightsError(f"{files.folder / CONFIG}: {error}") from error


def _text_config(files: OpenClipFiles, state: Mapping[str, Tensor]) -> Any:
    from transformers import CLIPTextConfig

    positions = state["text_model.embeddings.position_embedding.weight"]
    width = positions.shape[1]
    projection = state.get("text_projection.weight")
    return CLIPTextConfig(
        vocab_size=len(state["text_model.embeddings.token_embedding.weight"]),
        hidden_size=width,
        max_position_embeddings=len(positions),
        num_attention_heads=text_heads(files.model, width),
        projection_dim=width if projection is None else len(projection),
        hidden_act=files.activation("text_cfg"),
        layer_norm_eps=epsilon(files.model, "text_cfg"),
        eos_token_id=_HIGHEST,
        **_depth(state, "text_model."),
    )


def _vision_config(files: OpenClipFiles, state: Mapping[str, Tensor]) -> Any:
    from transformers import CLIPVisionConfig

    patches = state["vision_model.embeddings.patch_embedding.weight"]
    width, patch = patches.shape[0], patches.shape[-1]
    count = len(state["vision_model.embeddings.position_embedding.weight"]) - 1
    projection = state.get("visual_projection.weight")
    return CLIPVisionConfig(
        hidden_size=width,
        num_attention_heads=vision_heads(files.model, width),
        patch_size=patch,
        image_size=image_size(files.model, round(count**0.5), patch),
        projection_dim=width if projection is None else len(projection),
        hidden_act=files.activation("vision_cfg"),
        layer_norm_eps=epsilon(files.model, "vision_cfg"),
        **_depth(state, "vision_model."),
    )


def _depth(state: Mapping[str, Tensor], side: str) -> dict[str, int]:
    ending = ".mlp.fc1.bias"
    found = [name for name in state if name.startswith(side) and name.endswith(ending)]
    if not found:
        raise WeightsError(f"there are no blocks of {side.rstrip('.')} among the tensors")
    return {"num_hidden_layers": len(found), "intermediate_size": len(state[found[0]])}


# ---------------------------------------------------------------- names of tensors


def _text_state(files: OpenClipFiles) -> dict[str, Tensor]:
    """The tensors of a ``CLIPTextModelWithProjection``; names that are not of a plain CLIP text
    tower are left out. ``proj_type: none`` is a projection that leaves all as it is."""
    own = {
        name.removeprefix("text."): tensor
        for name, tensor in files.state.items()
        if not name.startswith("visual.")
    }
    made = dict(_renamed(own, "text_model.", _TEXT))
    made["text_model.embeddings.position_embedding.weight"] = _positions(own)
    if "text_projection" in own:
        made["text_projection.weight"] = own["text_projection"].T.contiguous()
    elif "text_projection.weight" in own:
        made["text_projection.weight"] = own["text_projection.weight"]
    elif not is_projected(files.model):
        norm = made["text_model.final_layer_norm.weight"]
        made["text_projection.weight"] = torch.eye(len(norm), dtype=norm.dtype)
    return made


def _image_state(files: OpenClipFiles) -> dict[str, Tensor]:
    """The tensors of a ``CLIPVisionModelWithProjection``, likewise."""
    own = {k.removeprefix("visual."): t for k, t in files.state.items() if k.startswith("visual.")}
    made = dict(_renamed(own, "vision_model.", _IMAGE))
    made["vision_model.embeddings.class_embedding"] = own["class_embedding"].reshape(-1)
    made["vision_model.embeddings.position_embedding.weight"] = own["positional_embedding"]
    if "proj" in own:
        made["visual_projection.weight"] = own["proj"].T.contiguous()
    return made


def _positions(own: Mapping[str, Tensor]) -> Tensor:
    """The positions' embeddings; Long-CLIP has two tables of 248.

    The first 20 rows of the one stayed as CLIP had them, and from there the other holds
    (beichenzbc/Long-CLIP, ``model/model_longclip.py``).
    """
    table = own["positional_embedding"]
    if "positional_embedding_res" not in own:
        return table
    made = own["positional_embedding_res"].clone()
    made[:20] = table[:20]
    return made


def _renamed(
    own: Mapping[str, Tensor], side: str, names: Mapping[str, str]
) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in own.items():
        block = _RESBLOCK.fullmatch(name)
        if block:
            start = f"{side}encoder.layers.{block[1]}."
            yield from ((start + of, part) for of, part in _block(block[2], tensor))
        for old, new in names.items():
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


TEXT = TextFamily(
    "open_clip",
    load_text,
    encode_text,
    TokenRule(fill=True, pad=0, clean="lower"),
    TOKENIZER,
    pool=pool_text,
)
IMAGE = ImageFamily("open_clip", load_image, encode_image, pool_image)
