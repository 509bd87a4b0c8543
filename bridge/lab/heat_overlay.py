"""A heat map over its picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bridge.checks import keywords
from bridge.rgb import to_rgb

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

# Black, purple, orange, pale yellow: dark to light as it gets hotter, so that it reads in grey too.
_COLOURS = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]])


@keywords
def overlay(image: Image, heat: Tensor, strength: float = 0.6) -> Image:
    """``image`` with ``heat (h, w)`` laid over it, scaled to its own largest value.

    Where nothing is hot the picture shows in grey; ``strength`` is the share of the colours.
    """
    from PIL import Image as Pictures

    values = heat.detach().float().cpu().numpy()
    top = float(values.max()) or 1.0
    small = Pictures.fromarray((values / top).astype(np.float32), mode="F")
    hot = np.clip(np.asarray(small.resize(image.size, Pictures.Resampling.BICUBIC)), 0, 1)
    stops = np.linspace(0, 1, len(_COLOURS))
    colours = np.stack([np.interp(hot, stops, _COLOURS[:, c]) for c in range(3)], axis=-1)
    grey = np.asarray(to_rgb(image).convert("L"), dtype=np.float32)[..., None]
    mixed = (1 - strength) * grey + strength * colours
    return Pictures.fromarray(mixed.round().astype(np.uint8))
