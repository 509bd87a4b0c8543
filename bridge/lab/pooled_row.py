"""What a family's pooled state is made of, as a row of its attention rollout."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from bridge.towers import TextStates, rollout

# Where each family reads its pooled state, other than at the last token of the text, as CLIP's
# EOS is: BERT's class token comes first, SigLIP reads the end of the padding, others take the mean.
_FIRST = ("align", "blip2")
_MEAN = ("multilingual_clip", "open_clip_hf")
_END = ("siglip",)
# CoCa reads a class token behind the text, whose attention its tower keeps to itself.
_HIDDEN = ("coca",)


def pooled_row(family: str, states: TextStates, row: int, used: int) -> Tensor | None:
    """``(used,)`` float32: the shares of a text's tokens in its pooled state, or in the mean of its
    tokens where there is none. None for a family that does not show it.

    Args:
        family: a name of ``bridge.towers.TEXT_FAMILIES``.
        states: of a pass with attentions.
        row: of the batch.
        used: how many of its places are no padding.
    """
    if family in _HIDDEN or not states.attentions:
        return None
    width = states.attentions[0].shape[-1] if family in _END else used
    whole = rollout([layer[row, :, :width, :width] for layer in states.attentions])
    pick: Callable[[Tensor], Tensor] = _last
    if family in _FIRST:
        pick = _first
    elif family in _MEAN or states.pooled is None:
        pick = _mean
    return pick(whole)[:used].float()


def _first(whole: Tensor) -> Tensor:
    return whole[0]


def _last(whole: Tensor) -> Tensor:
    return whole[-1]


def _mean(whole: Tensor) -> Tensor:
    return whole.mean(0)
