"""The CLIP image tower (``CLIPVisionModelWithProjection``): pixels in, patch states out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from bridge.towers.states import ImageStates

ARCHITECTURE = "CLIPVisionModelWithProjection"


def encode(module: Any, pixels: Tensor, layers: Sequence[int] = (-2,)) -> ImageStates:
    """One forward pass of ``module``.

    Args:
        module: a ``CLIPVisionModelWithProjection``.
        pixels: ``(B, 3, H, W)`` normalised pixels of the tower's size, in its dtype and device.
        layers: layers wanted, counted from the end; LLaVA takes the penultimate, -2. No norm is
            applied (CLIP norms the class state only).

    Returns:
        ImageStates with patches ``(B, h*w, D)``, the class token dropped.
    """
    out = module(pixels, output_hidden_states=True)
    patch = int(module.config.patch_size)
    grid = (pixels.shape[-2] // patch, pixels.shape[-1] // patch)
    patches = tuple(out.hidden_states[layer][:, 1:] for layer in layers)
    return ImageStates(patches, out.image_embeds, grid)
