"""open_clip's and OpenAI's names of CLIP's tensors, turned into transformers' names.

OpenAI's code and open_clip share a layout: ``transformer.resblocks.0.attn.in_proj_weight`` (query,
key and value in one), ``visual.conv1.weight``, projections stored for ``x @ w`` where a Linear
layer has the transpose. open_clip puts ``text.`` before the text tower's names where that tower is
one of several kinds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

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


def text_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a ``CLIPTextModelWithProjection``, out of a model in open_clip's layout.

    Names that are not of a plain CLIP text tower are left out.
    """
    own = {
        name.removeprefix("text."): tensor
        for name, tensor in state.items()
        if not name.startswith("visual.")
    }
    made = dict(_renamed(own, "text_model.", _TEXT))
    made["text_model.embeddings.position_embedding.weight"] = positions(own)
    if "text_projection" in own:
        made["text_projection.weight"] = own["text_projection"].T.contiguous()
    elif "text_projection.weight" in own:
        made["text_projection.weight"] = own["text_projection.weight"]
    return made


def image_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a ``CLIPVisionModelWithProjection``, likewise."""
    start = "visual."
    own = {name[len(start) :]: t for name, t in state.items() if name.startswith(start)}
    made = dict(_renamed(own, "vision_model.", _IMAGE))
    made["vision_model.embeddings.class_embedding"] = own["class_embedding"].reshape(-1)
    made["vision_model.embeddings.position_embedding.weight"] = own["positional_embedding"]
    if "proj" in own:
        made["visual_projection.weight"] = own["proj"].T.contiguous()
    return made


def positions(own: Mapping[str, Tensor]) -> Tensor:
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
