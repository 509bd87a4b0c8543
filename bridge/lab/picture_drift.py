"""How far a picture is from the one that the prompt itself draws with the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from bridge.errors import OptionError
from bridge.lab.measures import cosines
from bridge.towers import ImageTower

if TYPE_CHECKING:
    from PIL.Image import Image

_BATCH = 32


def pixel_distance(a: Image, b: Image) -> float:
    """Root mean square difference of RGB values of 0 to 1. Pictures of one size."""
    left, right = (np.asarray(each.convert("RGB"), dtype=np.float64) / 255 for each in (a, b))
    return float(np.sqrt(((left - right) ** 2).mean()))


def tower_distances(tower: ImageTower, a: Sequence[Image], b: Sequence[Image]) -> list[float]:
    """``1 - cosine`` of the pooled states of each pair of pictures, each encoded once.

    LPIPS-like (Zhang et al. 2018) in that a trained network's space is measured in, though with
    the pooled state, so that it is about what is in a picture and not where.
    """
    different = list({id(each): each for each in (*a, *b)}.values())
    place = {id(each): at for at, each in enumerate(different)}
    chunks = (different[at : at + _BATCH] for at in range(0, len(different), _BATCH))
    pooled = torch.cat([_pooled(tower, chunk) for chunk in chunks])
    left, right = ([place[id(each)] for each in side] for side in (a, b))
    return (1 - cosines(pooled[left], pooled[right])).tolist()


def _pooled(tower: ImageTower, pictures: Sequence[Image]) -> torch.Tensor:
    """``(B, P)`` float32 on the CPU."""
    found = tower.encode(pictures).pooled
    if found is None:
        raise OptionError(f"{tower.name} has no pooled state to compare pictures by; give another.")
    # BLIP-2 has a state for each query token.
    return (found.mean(1) if found.ndim == 3 else found).float().cpu()
