"""Retrieval on pairs that are set aside: what a model gains in training, and what it forgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bridge.contrastive.losses import caption_groups
from bridge.contrastive.train.pairs import Pair
from bridge.contrastive.train.trainee import Trainee
from bridge.errors import MissingDependencyError
from bridge.towers.tower import ImageTower, TextTower, together

_AT_ONCE = 64
_DEPTHS = (1, 5)


def recall(cosines: Tensor, right: Tensor, depth: int) -> float:
    """The share of rows that have one of their right columns among the first ``depth``.

    Args:
        cosines: ``(N, M)``.
        right: bool ``(N, M)``.
        depth: how many columns are looked at.
    """
    best = cosines.topk(min(depth, cosines.shape[1]), 1).indices
    return float(right.gather(1, best).any(1).float().mean())


@torch.no_grad()
def retrieval(
    trainee: Trainee, towers: tuple[TextTower, ImageTower], pairs: Sequence[Pair]
) -> dict[str, float]:
    """Recall at 1 and 5 from text to picture and back; a text finds every picture it is said of."""
    text, image = towers
    device = image.device
    images: list[Tensor] = []
    texts: list[Tensor] = []
    captions = [pair.captions[0] for pair in pairs]
    for at in range(0, len(pairs), _AT_ONCE):
        some = pairs[at : at + _AT_ONCE]
        pixels = [image.prepare(pair.picture.load()) for pair in some if pair.picture is not None]
        images.append(trainee.encode_image(image.pixels(together(pixels))).float())
        batch = text.tokenize(captions[at : at + _AT_ONCE])
        texts.append(trainee.encode_text(batch.ids.to(device), batch.mask.to(device)).float())
    cosines = normalize(torch.cat(texts), dim=1) @ normalize(torch.cat(images), dim=1).T
    groups = caption_groups(captions).to(device)
    right = groups[:, None] == groups
    found = {}
    for depth in _DEPTHS:
        found[f"text_to_image@{depth}"] = recall(cosines, right, depth)
        found[f"image_to_text@{depth}"] = recall(cosines.T, right, depth)
    return found


def draw_retrieval(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A curve for each set over the steps, where matplotlib is installed."""
    from bridge.pictures import LINES, save_figure

    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "curves are drawn by matplotlib; install it with: pip install 'bridge[train]'"
        ) from error
    names = list(dict.fromkeys(row["set"] for row in rows))
    figure = Figure(figsize=(8, 3))
    for axis, metric in zip(
        figure.subplots(1, 2), ("text_to_image@1", "image_to_text@1"), strict=True
    ):
        for name in names:
            own = [row for row in rows if row["set"] == name]
            axis.plot([r["step"] for r in own], [100 * r[metric] for r in own], label=name)
        axis.set(title=metric, xlabel="step", ylabel="%")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    save_figure(path, figure, dpi=80, colours=LINES)
