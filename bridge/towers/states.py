"""What towers give: states of the layers asked for, and the pooled state."""

from __future__ import annotations

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
