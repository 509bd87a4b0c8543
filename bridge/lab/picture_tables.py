"""The tables of a study's pictures: how far each is from the one that the prompt itself draws with
the same seed, and whether a judge finds it right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bridge.errors import OptionError
from bridge.lab.measures import cosines, mean_interval
from bridge.lab.variants import ORIGINAL
from bridge.towers import ImageTower

if TYPE_CHECKING:
    from PIL.Image import Image

    from bridge.lab.variant_pictures import VariantPicture

Judge = Callable[["Image", str], Mapping[str, float]]
"""From a picture and the prompt that it is to be judged by to named figures; 1 and 0 for yes and
no."""

Row = dict[str, Any]
_BATCH = 32  # pictures of one pass


def picture_rows(
    drawn: Sequence[tuple[str, VariantPicture]],
    image_tower: ImageTower | None,
    judge: Judge | None,
) -> list[Row]:
    """A row per picture. Drift is from the prompt's own picture of the same choice and seed."""
    bases = {
        (prompt, each.choice, each.seed): each.image
        for prompt, each in drawn
        if each.variant.operation == ORIGINAL
    }
    images = [each.image for _, each in drawn]
    beside = [bases[prompt, each.choice, each.seed] for prompt, each in drawn]
    distances: Sequence[float | None] = [None] * len(drawn)
    if image_tower is not None and drawn:
        distances = tower_distances(image_tower, images, beside)
    rows = []
    for (prompt, each), base, distance in zip(drawn, beside, distances, strict=True):
        row: Row = {
            "prompt": prompt,
            "operation": each.variant.operation,
            "detail": each.variant.detail,
            "text": each.variant.text,
            "dialect": each.variant.dialect,
            "choice": each.choice,
            "seed": each.seed,
            "pixel_distance": pixel_distance(base, each.image),
        }
        if distance is not None:
            row["tower_distance"] = distance
        if judge is not None:
            row |= {f"judge_{name}": value for name, value in _judged(judge, each.image, prompt)}
        rows.append(row)
    return rows


def verdict_rows(rows: Sequence[Row]) -> list[Row]:
    """For each operation and choice the mean of each of the judge's figures, with its interval."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith("judge_"):
                key = (row["operation"], row["choice"], name.removeprefix("judge_"))
                groups.setdefault(key, []).append(value)
    found = []
    for (operation, choice, figure), values in groups.items():
        mean, low, high = mean_interval(values)
        found.append(
            {
                "operation": operation, "choice": choice, "figure": figure,
                "mean": mean, "low": low, "high": high, "pictures": len(values),
            }
        )  # fmt: skip
    return found


def _judged(judge: Judge, image: Image, prompt: str) -> list[tuple[str, float]]:
    found = judge(image, prompt)
    if not isinstance(found, Mapping):
        raise OptionError(
            f"judge gave a {type(found).__name__}; it must give a mapping of names to numbers."
        )
    return [(str(name), float(value)) for name, value in found.items()]


# ---------------------------------------------------------------- distances


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
