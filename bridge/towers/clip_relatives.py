"""CLIP's relatives in transformers' layout: Chinese-CLIP, AltCLIP, MetaCLIP 2 and AIMv2 with texts.

Yang et al. 2022, "Chinese CLIP: Contrastive Vision-Language Pretraining in Chinese"; Chen et al.
2022, "AltCLIP: Altering the Language Encoder in CLIP for Extended Language Capabilities"; Chuang et
al. 2025, "Meta CLIP 2: A Worldwide Scaling Recipe"; Fini et al. 2024, "Multimodal Autoregressive
Pre-training of Large Vision Encoders" (AIMv2). Each is a text and an image model of transformers,
and one matrix behind each side. Texts are read at the first token of a BERT, or at EOS.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bridge.files import read_json
from bridge.towers.checkpoint import load_tower
from bridge.towers.clip import causal_mask, patch_grid
from bridge.towers.family import (
    Headed,
    ImageFamily,
    Parts,
    Scoring,
    TextFamily,
    TowerSpec,
    positions,
)
from bridge.towers.image_processor import load_image_processor
from bridge.towers.states import ImageStates, Layer, TextStates
from bridge.towers.tensors import read_named
from bridge.towers.tokenizer import TokenRule


@dataclass(frozen=True)
class Relative:
    """How a model differs from CLIP.

    Attributes:
        start: how transformers' classes begin.
        first: whether texts are read at their first token, and not by the model's pooler (at EOS).
        prefix: how many places of a picture's states come before its patches.
        forgets: whether transformers forgets that texts are causal where a batch has no padding, so
            that the mask is said in full.
    """

    start: str
    first: bool = False
    prefix: int = 1
    forgets: bool = False


RELATIVES = {
    "chinese_clip": Relative("ChineseCLIP", first=True),
    "altclip": Relative("AltCLIP", first=True),
    "metaclip_2": Relative("MetaClip2"),
    "aimv2": Relative("Aimv2", prefix=0, forgets=True),
}
"""model_type -> how it differs."""


class Side(Headed):
    """One side with its matrix into the shared space."""

    def __init__(self, encoder: Any, head: nn.Linear, relative: Relative) -> None:
        super().__init__(encoder, head)
        self.relative = relative
        self.pooled = head.out_features


def load_text(folder: Path, dtype: Any, device: Any, allow_pickle: bool = False) -> Parts:
    """The text side of a folder. Raises WeightsError."""
    module, kind = _side(folder, "text", dtype, device)
    config, first = module.config, module.relative.first
    spec = TowerSpec(
        architecture=kind,
        source=str(folder),
        # AltCLIP's published states are as wide as its map makes them.
        width=getattr(config, "project_dim", config.hidden_size),
        layers=config.num_hidden_layers,
        context=positions(getattr(module.encoder, "roberta", module.encoder)),
        pooled_width=module.pooled,
        activation=str(config.hidden_act),
        attention_mask=True,
        mlp_width=config.intermediate_size,
        pooled_at="first" if first else "token",
    )
    return Parts(module, spec, _scoring(folder))


def load_image(folder: Path, dtype: Any, device: Any, allow_pickle: bool = False) -> Parts:
    """The image side of such a folder. Raises WeightsError."""
    module, kind = _side(folder, "vision", dtype, device)
    config = module.config
    spec = TowerSpec(
        architecture=kind,
        source=str(folder),
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        context=(config.image_size // config.patch_size) ** 2 + module.relative.prefix,
        pooled_width=module.pooled,
        activation=str(config.hidden_act),
        mlp_width=config.intermediate_size,
    )
    return Parts(module, spec, _scoring(folder), load_image_processor(folder))


def _side(folder: Path, side: str, dtype: Any, device: Any) -> tuple[Side, str]:
    """The encoder of one side behind its matrix, and its transformers class."""
    relative = RELATIVES[str(read_json(folder / "config.json")["model_type"])]
    # The whole model: transformers renames what files of older versions hold for that alone.
    whole = load_tower(f"{relative.start}Model", folder, dtype=dtype, device=device)
    name = "visual" if side == "vision" else side
    encoder, head = getattr(whole, f"{side}_model"), getattr(whole, f"{name}_projection")
    return Side(encoder, head, relative), type(encoder).__name__


def _scoring(folder: Path) -> Scoring | None:
    """The learned scale, which AIMv2 holds below a limit."""
    found = read_named(folder, ("logit_scale",))
    if not found:
        return None
    most = read_json(folder / "config.json").get("max_logit_scale")
    scale = float(found["logit_scale"].float())
    return Scoring(math.exp(scale if most is None else min(max(scale, 0.0), float(most))))


def encode_text(
    module: Side, ids: Tensor, layers: Sequence[Layer], mask: Tensor, attentions: bool = False
) -> TextStates:
    """One forward pass; padding is not seen. ``Layer(-1)`` is the state that the model publishes:
    with its last norm, and of AltCLIP with its map; all others are as they are within."""
    seen: Tensor | None = mask
    if module.relative.forgets:
        shut = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
        seen = causal_mask(module.encoder, shut.masked_fill(mask == 0, -torch.inf))
    out = module.encoder(
        ids, attention_mask=seen, output_hidden_states=True, output_attentions=attentions
    )
    last = out.last_hidden_state
    norm = getattr(module.encoder, "final_layer_norm", getattr(module.encoder, "rms_norm", None))

    def one(layer: Layer) -> Tensor:
        if layer == Layer(-1):
            return last
        state = out.hidden_states[layer.index]
        return norm(state) if layer.norm and norm is not None else state

    pooled = last[:, 0] if module.relative.first else out.pooler_output
    hidden = tuple(map(one, layers))
    return TextStates(hidden, module.head(pooled), mask, out.attentions or ())


def encode_image(module: Side, pixels: Tensor, layers: Sequence[int] = (-1,)) -> ImageStates:
    """One forward pass; patches without a norm, the class token dropped."""
    out = module.encoder(pixels, output_hidden_states=True)
    patches = tuple(out.hidden_states[layer][:, module.relative.prefix :] for layer in layers)
    return ImageStates(patches, module.head(out.pooler_output), patch_grid(module, pixels))


TEXT = TextFamily("clip_relatives", load_text, encode_text, TokenRule())
IMAGE = ImageFamily("clip_relatives", load_image, encode_image)
