"""What towers give: states of layers, pooled states, and attention, which is rolled out here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Layer:
    """One layer of a tower, counted from the end: -1 is the last, -2 the penultimate.

    ``norm`` says whether the tower's final norm is applied to it. The last layer of CLIP is
    published with its norm, SDXL takes the penultimate without.
    """

    index: int = -1
    norm: bool = True


LAST = Layer()
"""The last, as CLIP publishes it."""


@dataclass(frozen=True)
class TextStates:
    """Token states, one tensor ``(B, T, D)`` for each layer asked for, in that order.

    ``pooled`` is ``(B, P)``: the EOS state after the final norm, projected if the tower has a
    projection; None for a family without one (T5). ``mask`` is the ``(B, T)`` attention mask that
    the tower was given, if any. ``attentions``, where asked for, are the weights of every layer,
    ``(B, heads, T, T)`` each: row by token that looks, column by token that is looked at.
    """

    hidden: tuple[Tensor, ...]
    pooled: Tensor | None
    mask: Tensor | None = None
    attentions: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class ImageStates:
    """Patch states, one tensor ``(B, h*w, D)`` for each layer asked for, class token dropped.

    ``pooled`` is the projected class state ``(B, P)``; ``(B, Q, P)`` for BLIP-2's query tokens, one
    a query; None for a model that shares no space with texts. ``grid`` is ``(h, w)`` in row-major
    order; None where states have no place in the picture.
    """

    patches: tuple[Tensor, ...]
    pooled: Tensor | None
    grid: tuple[int, int] | None


def rollout(attentions: Sequence[Tensor], rows: Sequence[int] | None = None) -> Tensor:
    """Attention rollout: how much of a state comes from which place, through all layers.

    Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers", section 3: a layer passes
    on half of a state by its residual and half by attention, so its map is (A + I) / 2 with A the
    mean over heads; the maps of all layers are multiplied.

    Args:
        attentions: of each layer, the first layer first: ``(H, T, T)`` (heads) or ``(T, T)``. Rows
            may sum to less than 1, by half precision or because a place sees nothing.
        rows: the places asked for; None for all.

    Returns:
        float64 ``(len(rows) or T, T)`` on the CPU; every row sums to 1.
    """
    import torch

    flow = torch.eye(attentions[0].shape[-1], dtype=torch.float64)
    if rows is not None:
        flow = flow[list(rows)]
    for layer in reversed(attentions):
        mean = layer.double().cpu()
        mean = mean.mean(0) if mean.ndim == 3 else mean
        # (A + I) with its rows brought to a sum of 1, without making it.
        flow = flow / (1 + mean.sum(-1))
        flow = flow @ mean + flow
    return flow
