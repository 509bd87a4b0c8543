"""Which rows are in which step: a function of the seed alone.

The rows are gone through in a new order each epoch. A stretch of that order is sorted by length and
cut into batches, which are shuffled: so a batch wastes little on padding and is still drawn at
random (LLaVA's `group_by_modality_length`, transformers' `LengthGroupedSampler`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

_STRETCH = 50  # batches that are sorted together; at most an epoch of them


@dataclass(frozen=True)
class Order:
    """``steps`` batches of ``batch_size`` indices into ``lengths``. Every batch is full: where the
    rows run out, the next epoch begins."""

    lengths: Sequence[int]
    batch_size: int
    steps: int
    seed: int

    def batch(self, step: int) -> list[int]:
        """The rows of a step, longest first."""
        stretch = max(1, min(_STRETCH, len(self.lengths) // self.batch_size))
        start = step - step % stretch
        return self._batches(start, min(start + stretch, self.steps))[step - start]

    def _batches(self, start: int, stop: int) -> list[list[int]]:
        size = self.batch_size
        drawn = [self._drawn(place) for place in range(start * size, stop * size)]
        drawn.sort(key=lambda row: (-self.lengths[row], row))
        batches = [drawn[at : at + size] for at in range(0, len(drawn), size)]
        random.Random(f"batches {self.seed} {start}").shuffle(batches)
        return batches

    def _drawn(self, place: int) -> int:
        epoch, at = divmod(place, len(self.lengths))
        return _permutation(len(self.lengths), self.seed, epoch)[at]


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> list[int]:
    order = list(range(count))
    random.Random(f"epoch {seed} {epoch}").shuffle(order)
    return order


@dataclass(frozen=True)
class Shuffled:
    """Batches of ``batch_size`` rows out of ``count``, drawn without regard to anything.

    No row is twice in a batch, where it would be its own false negative: an epoch's last rows, too
    few for a batch, are left out of that epoch, as open_clip does.
    """

    count: int
    batch_size: int
    seed: int

    def batch(self, step: int) -> list[int]:
        """The rows of a step."""
        epoch, place = divmod(step, self.count // self.batch_size)
        order = _permutation(self.count, self.seed, epoch)
        return order[place * self.batch_size : (place + 1) * self.batch_size]
