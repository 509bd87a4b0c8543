"""ALIGN: a BERT as text tower, an EfficientNet as image tower.

Jia et al. 2021, "Scaling Up Visual and Vision-Language Representation Learning With Noisy Text
Supervision"; transformers' ``AlignModel`` (kakaobrain/align-base). The pooled text is the first
token's state through a Linear layer; the pooled picture the mean over places; scores are cosines
over a learned temperature.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bridge.errors import OptionError, WeightsError
from bridge.towers.checkpoint import config_of, load_tower
from bridge.towers.family import (
    Headed,
    ImageFamily,
    Parts,
    Scoring,
    TextFamily,
    TowerSpec,
    spec_of_side,
)
from bridge.towers.image_processor import load_image_processor
from bridge.towers.states import ImageStates, Layer, TextStates
from bridge.towers.tensors import read_named, read_prefixed
from bridge.towers.tokenizer import TokenRule

# What the processor of the published checkpoint fills texts up to.
_LENGTH = 64
# Pixels a side of one place of EfficientNet's last map.
_STRIDE = 32


def load_text(folder: Path, dtype: Any, device: Any, allow_pickle: bool = False) -> Parts:
    """The text side of an ``AlignModel`` folder. Raises WeightsError."""
    config = config_of("AlignConfig", folder)
    side = config.text_config
    # Its pooler is not what texts are pooled by.
    encoder = load_tower(
        "AlignTextModel",
        folder,
        dtype=dtype,
        device=device,
        config=side,
        state=read_prefixed(folder, "text_model."),
        may_lack="pooler.",
    )
    encoder.pooler = None
    found = read_prefixed(folder, "text_projection.")
    if len(found) < 2:
        raise WeightsError(f"{folder} lacks text_projection; it is not a whole AlignModel")
    projection = nn.Linear(side.hidden_size, config.projection_dim, dtype=torch.float32)
    projection.load_state_dict(found)
    module = Headed(encoder, projection.to(device, dtype).eval().requires_grad_(False))
    context = min(_LENGTH, side.max_position_embeddings)
    pooled = config.projection_dim
    spec = spec_of_side(
        side, "AlignTextModel", str(folder), context=context, pooled=pooled, pooled_at="first"
    )
    return Parts(module, spec, _scoring(folder))


def load_image(folder: Path, dtype: Any, device: Any, allow_pickle: bool = False) -> Parts:
    """The image side of such a folder. Raises WeightsError."""
    config = config_of("AlignConfig", folder)
    side = config.vision_config
    kind = "AlignVisionModel"
    state = read_prefixed(folder, "vision_model.")
    module = load_tower(kind, folder, dtype=dtype, device=device, config=side, state=state)
    spec = TowerSpec(
        architecture=kind,
        source=str(folder),
        width=side.hidden_dim,
        layers=len(module.encoder.blocks),
        context=(side.image_size // _STRIDE) ** 2,
        pooled_width=side.hidden_dim,
        activation=side.hidden_act,
    )
    return Parts(module, spec, _scoring(folder), load_image_processor(folder))


def _scoring(folder: Path) -> Scoring | None:
    found = read_named(folder, ("temperature",))
    return Scoring(1 / float(found["temperature"].float())) if found else None


def encode_text(
    module: Headed, ids: Tensor, layers: Sequence[Layer], mask: Tensor, attentions: bool = False
) -> TextStates:
    """One forward pass; padding is not seen. Every layer ends in its norm, so a layer without it
    is the same."""
    out = module.encoder(
        ids, attention_mask=mask, output_hidden_states=True, output_attentions=attentions
    )
    return TextStates(
        hidden=tuple(out.hidden_states[layer.index] for layer in layers),
        pooled=module.head(out.last_hidden_state[:, 0]),
        mask=mask,
        attentions=out.attentions or (),
    )


def encode_image(module: Any, pixels: Tensor, layers: Sequence[int] = (-1,)) -> ImageStates:
    """One forward pass; the places of the last feature map as patches.

    Raises OptionError for an inner layer: those are of other widths and grids.
    """
    if any(layer != -1 for layer in layers):
        raise OptionError("ALIGN's inner layers are of other widths and grids; ask for layer -1")
    out = module(pixels)
    state = out.last_hidden_state
    patches = state.flatten(2).transpose(1, 2)
    grid = (state.shape[2], state.shape[3])
    return ImageStates((patches,) * len(layers), out.pooler_output, grid)


TEXT = TextFamily("align", load_text, encode_text, TokenRule(fill=True))
IMAGE = ImageFamily("align", load_image, encode_image)
