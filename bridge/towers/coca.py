"""CoCa, as open_clip trained it: a text tower with a class token, an attention-pooled image side.

Yu et al. 2022, "CoCa: Contrastive Captioners are Image-Text Foundation Models"; layout and
calculation of open_clip (``coca_model.py``, ``transformer.py``). Two of its ways are its own:

- the class token comes after the text, so it sees all of it, but padding (``pad_id``, 0 by
  default). The mask is one place late, as it was in training: place k is hidden where token k - 1
  is padding. It is hidden from the places after it too, as in open_clip 3; before, and in training,
  they saw what was before them, padding or not. The pooled state is the same in both, but for words
  that have the id of padding;
- the picture's states are read by learnt queries through cross-attention; the first of them is
  the pooled state.

The caption decoder is in ``captioner.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bridge.errors import WeightsError
from bridge.towers.checkpoint import load_tower
from bridge.towers.clip import TEXT_PROJECTED, TOKENIZER, causal_mask, patch_grid, pick
from bridge.towers.family import ImageFamily, Parts, TextFamily, spec_of_config
from bridge.towers.open_clip import (
    image_side,
    processor,
    text_side,
)
from bridge.towers.open_clip_config import OpenClipFiles, cleaning, pad_id, read_files
from bridge.towers.states import ImageStates, Layer, TextStates
from bridge.towers.tokenizer import TokenRule

FAMILY = "coca"
ARCHITECTURE = "CoCaText"
_PAD = 0
_TOKENS = "text_model.embeddings.token_embedding.weight"
_POOL = "visual.attn_pool."


def load_text(folder: Path, dtype: Any, device: Any, allow_pickle: bool = False) -> Parts:
    """The text tower of a folder. Raises WeightsError, UnsupportedModelError."""
    return text_parts(read_files(folder, allow_pickle), dtype, device)


def text_parts(files: OpenClipFiles, dtype: Any, device: Any) -> Parts:
    """A ``CLIPTextModelWithProjection`` whose last id is the class token. Raises WeightsError."""
    folder = files.folder
    state, config = text_side(files)
    if "text.cls_emb" not in files.state:
        raise WeightsError(f"{folder} lacks text.cls_emb; it is not a CoCa")
    state[_TOKENS] = torch.cat([state[_TOKENS], files.state["text.cls_emb"].reshape(1, -1)])
    config.vocab_size += 1
    config.pad_token_id = pad_id(files.model)
    kind = TEXT_PROJECTED
    values = config.to_dict()
    # One place is the class token's.
    values["max_position_embeddings"] -= 1
    return Parts(
        module=load_tower(kind, folder, dtype=dtype, device=device, config=config, state=state),
        # Run as CLIP's it would be read at EOS, and not at its class token.
        spec=replace(spec_of_config(values, kind, str(folder)), architecture=ARCHITECTURE),
        scoring=files.scoring(),
        clean=cleaning(files.model),
    )


def encode_text(
    module: Any, ids: Tensor, layers: Sequence[Layer], mask: Tensor | None, attentions: bool = False
) -> TextStates:
    """One forward pass; the class token is among the states in ``pooled`` only.

    The caption decoder was fed ``Layer(-1, norm=False)``.
    """
    batch = len(ids)
    last = ids.new_full((batch, 1), module.config.vocab_size - 1)
    places = torch.cat([ids, last], 1)
    padding = ids == module.config.pad_token_id
    hidden = torch.cat([ids.new_zeros(batch, 1, dtype=torch.bool), padding], 1)
    shut = torch.zeros_like(hidden, dtype=torch.float32).masked_fill(hidden, -torch.inf)
    out = module(
        places,
        attention_mask=causal_mask(module, shut),
        output_hidden_states=True,
        output_attentions=attentions,
    )
    return TextStates(
        hidden=tuple(state[:, :-1] for state in pick(module, out, layers)),
        pooled=module.text_projection(out.last_hidden_state[:, -1]),
        mask=mask,
        attentions=tuple(each[..., :-1, :-1] for each in out.attentions) if attentions else (),
    )


class CoCaImage(nn.Module):
    """CLIP's vision transformer, and the queries that read its last states."""

    def __init__(self, vision: Any, queries: int, width: int, pooled: int, heads: int) -> None:
        super().__init__()
        inner = vision.config.hidden_size
        self.vision = vision
        self.config = vision.config
        self.query = nn.Parameter(torch.empty(queries, width, dtype=torch.float32))
        self.attn = nn.MultiheadAttention(
            width, heads, kdim=inner, vdim=inner, batch_first=True, dtype=torch.float32
        )
        self.ln_q = nn.LayerNorm(width, dtype=torch.float32)
        self.ln_k = nn.LayerNorm(inner, dtype=torch.float32)
        self.ln_post = nn.LayerNorm(width, dtype=torch.float32)
        self.proj = nn.Linear(width, pooled, bias=False, dtype=torch.float32)

    def pool(self, states: Tensor) -> Tensor:
        """States ``(B, N, D)`` as read by the queries, ``(B, Q, width)``; the first pools."""
        keys = self.ln_k(states)
        queries = self.ln_q(self.query).expand(len(states), -1, -1)
        return self.ln_post(self.attn(queries, keys, keys, need_weights=False)[0])


def load_image(folder: Path, dtype: Any, device: Any, allow_pickle: bool = False) -> Parts:
    """The image side of a folder. Raises WeightsError, UnsupportedModelError."""
    return image_parts(read_files(folder, allow_pickle), dtype, device)


def image_parts(files: OpenClipFiles, dtype: Any, device: Any) -> Parts:
    """The vision transformer with its queries. Raises WeightsError."""
    folder = files.folder
    state, config = image_side(files)
    # The norm is the queries', and of their width; the transformer's own place for one is unused.
    norm = {f"ln_post.{kind}": state[f"vision_model.post_layernorm.{kind}"] for kind in _AFFINE}
    for kind, fill in _AFFINE.items():
        state[f"vision_model.post_layernorm.{kind}"] = torch.full(
            (config.hidden_size,), fill, dtype=torch.float32
        )
    proj = state.pop("visual_projection.weight")
    vision = load_tower(
        "CLIPVisionModel", folder, dtype=dtype, device=device, config=config, state=state
    )
    own = {k.removeprefix(_POOL): t for k, t in files.state.items() if k.startswith(_POOL)}
    told = files.model.get("vision_cfg", {})
    try:
        queries, width = own["query"].shape
        module = CoCaImage(vision, queries, width, len(proj), int(told.get("attn_pooler_heads", 8)))
        lacking = module.load_state_dict({**own, **norm, "proj.weight": proj}, strict=False)
    except (KeyError, RuntimeError) as error:
        raise WeightsError(f"The attention pooler in {folder} does not fit: {error}") from error
    missing = [name for name in lacking.missing_keys if not name.startswith("vision.")]
    if missing or lacking.unexpected_keys:
        raise WeightsError(f"{folder} lacks {', '.join(missing)} of its attention pooler")
    spec = spec_of_config(config.to_dict(), "CLIPVisionModelWithProjection", str(folder))
    return Parts(
        module=module.to(device, dtype).eval().requires_grad_(False),
        spec=replace(spec, architecture="CoCaImage", pooled_width=len(proj)),
        scoring=files.scoring(),
        processor=processor(files, config.image_size),
    )


_AFFINE = {"weight": 1.0, "bias": 0.0}


def encode_image(module: Any, pixels: Tensor, layers: Sequence[int] = (-1,)) -> ImageStates:
    """One forward pass: patches before the queries, as CLIP's; pooled by the first query."""
    out = module.vision(pixels, output_hidden_states=True)
    return ImageStates(
        patches=tuple(out.hidden_states[layer][:, 1:] for layer in layers),
        pooled=module.proj(module.pool(out.hidden_states[-1])[:, 0]),
        grid=patch_grid(module, pixels),
    )


def picture_tokens(module: CoCaImage, pixels: Tensor) -> Tensor:
    """What the caption decoder is shown: ``(B, Q - 1, D)``, the queries after the pooling one."""
    return module.pool(module.vision(pixels, output_hidden_states=True).hidden_states[-1])[:, 1:]


TEXT = TextFamily(
    FAMILY, load_text, encode_text, TokenRule(fill=True, pad=_PAD, clean="lower"), TOKENIZER
)
IMAGE = ImageFamily(FAMILY, load_image, encode_image)
