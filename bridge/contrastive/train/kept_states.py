"""Pooled states of a locked image tower: computed once a picture, whatever the number of epochs.

LiT (Zhai et al. 2022, "LiT: Zero-Shot Transfer with Locked-image text Tuning") never changes the
image tower, so what it makes of a picture never changes either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bridge.towers.tower import together

MOST_BYTES = 1 << 30
"""What may be kept: half a million pictures at 512 values of fp32. Others are computed anew."""


class KeptStates:
    """States by the numbers of rows, in memory. Threads may ask; one thread fills.

    Args:
        compute: from pixels of some pictures to states ``(b, P)`` without a gradient.
        at_once: pictures that go through the tower at a time.
        most_bytes: what may be kept.
    """

    def __init__(
        self, compute: Callable[[Any], Tensor], at_once: int, most_bytes: int | None = None
    ) -> None:
        self._compute, self._at_once = compute, at_once
        self._most = MOST_BYTES if most_bytes is None else most_bytes
        self._kept: dict[int, Tensor] = {}
        self._bytes = 0

    def __contains__(self, row: int) -> bool:
        return row in self._kept

    def states(self, rows: Sequence[int], pixels: Sequence[Any]) -> Tensor:
        """States ``(b, P)`` of the rows, on the CPU.

        Args:
            rows: their numbers.
            pixels: of each; of a row that is kept, nothing is looked at.
        """
        new = {row: own for row, own in zip(rows, pixels, strict=True) if row not in self}
        found: dict[int, Tensor] = {}
        for at in range(0, len(new), self._at_once):
            some = [*new][at : at + self._at_once]
            states = self._compute(together([new[row] for row in some])).cpu()
            found |= dict(zip(some, states, strict=True))
        made = torch.stack([self._kept[row] if row in self else found[row] for row in rows])
        for row, state in found.items():
            self._bytes += state.nbytes
            if self._bytes > self._most:
                break
            self._kept[row] = state.clone()  # not a view, which would keep its whole batch
        return made
