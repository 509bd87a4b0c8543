"""What the language model sees of a picture: which layer of the tower, and which of its states.

Layers are counted as LLaVA counts them: an index into the hidden states, where 0 is the
embeddings, -1 the last layer's output and -2 the one before. The tower's final norm is
not applied. A class token, where the tower has one, is state 0.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

SelectFeature = Literal["patch", "cls_patch"]
SelectLayer = int | tuple[int, ...]


def image_states(
    tower: nn.Module,
    pixel_values: torch.Tensor,
    select_layer: SelectLayer,
    select_feature: SelectFeature,
) -> torch.Tensor:
    """(B, 3, H, W) pixels to (B, N, D) states; several layers are joined along D.

    "patch" drops state 0, "cls_patch" keeps all. After LLaVA's `CLIPVisionTower`.
    """
    hidden = tower(pixel_values, output_hidden_states=True, return_dict=True).hidden_states
    layers = (select_layer,) if isinstance(select_layer, int) else select_layer
    start = 1 if select_feature == "patch" else 0
    return torch.cat([hidden[layer][:, start:] for layer in layers], dim=-1)


def n_image_states(tower: nn.Module, height: int, width: int, select_feature: SelectFeature) -> int:
    """How many states `image_states` gives for pictures of this size, without running it."""
    patch = int(tower.config.patch_size)  # type: ignore[union-attr, arg-type]
    total = (height // patch) * (width // patch) + has_class_token(tower)
    return total - (1 if select_feature == "patch" else 0)


def has_class_token(tower: nn.Module) -> bool:
    """CLIP's towers have a class token, SigLIP's do not; the config does not say."""
    return any(name.endswith("class_embedding") for name, _ in tower.named_parameters())
