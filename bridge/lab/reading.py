"""What a tower made of a text: the states of its tokens, and how it tells them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bridge.lab.measures import content
from bridge.towers import TextBatch, TextStates

Span = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Reading:
    """One text in one tower, float32 on the CPU, padding left out.

    Attributes:
        pooled: ``(P,)``; of a family without a pooled state the mean of its text's tokens.
        states: ``(N, D)``, of the last layer with its norm, special tokens included.
        ids: N token ids.
        offsets: N places in the text, None for special tokens.
        cut: how many tokens did not fit.
    """

    pooled: Tensor
    states: Tensor
    ids: tuple[int, ...]
    offsets: tuple[Span | None, ...]
    cut: int

    @property
    def content(self) -> list[int]:
        """The places of the text's own tokens."""
        return content(self.offsets)

    @property
    def content_ids(self) -> list[int]:
        """Their ids."""
        return [self.ids[at] for at in self.content]

    @property
    def content_states(self) -> Tensor:
        """Their states ``(n, D)``."""
        return self.states[self.content]


def reading_of(batch: TextBatch, states: TextStates, row: int) -> Reading:
    """One row of a pass as a reading."""
    used = max(1, int(batch.mask[row].sum()))
    own = states.hidden[0][row, :used].float().cpu().contiguous()
    offsets = batch.offsets[row][:used]
    pooled = states.pooled[row].float().cpu() if states.pooled is not None else None
    if pooled is None:
        text = content(offsets)
        pooled = own[text].mean(0) if text else own.mean(0)
    ids = tuple(batch.ids[row, :used].tolist())
    return Reading(pooled.flatten().contiguous(), own, ids, offsets, batch.cut[row])


def stacked(readings: list[Reading]) -> Tensor:
    """The pooled states of several readings ``(N, P)``."""
    return torch.stack([each.pooled for each in readings])
