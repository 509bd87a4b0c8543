"""What options cannot say of a run: rows without end, a loss beside, another way to change weights.

A `Recipe` is for a person who trains a CLIP of their own; whoever adapts one needs none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bridge.checks import keywords
from bridge.contrastive.train.options import ClipTrainOptions
from bridge.contrastive.train.pairs import Pair, read_pairs
from bridge.errors import DataError, OptionError

Rows = Callable[[int], Iterable[Mapping[str, Any]]]
"""The rows of a step, by its number from 0. What it gives must follow from the number alone: so a
run that was stopped goes on to the same losses."""

_KEPT = 4  # steps whose rows are at hand: as many as are read ahead, and one


class FurtherLoss(nn.Module):
    """A loss beside the contrastive one, of the image tower's states; a base class.

    Its parameters are trained with the towers, are in the checkpoint and in the averages, and are
    not in the saved model.

    Attributes:
        layers: the layers that it is shown, counted from the end, as `ImageTower.encode`.
    """

    layers: tuple[int, ...] = (-1,)

    def target(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Tensor]:
        """What is to be learnt of some rows of the data, by their fields; row k of each is row k's.

        Made in the threads that read pictures.
        """
        raise NotImplementedError

    def forward(self, patches: tuple[Tensor, ...], target: Mapping[str, Tensor]) -> Tensor:
        """The loss, a mean over rows.

        Args:
            patches: ``(B, N, D)`` for each of `layers`.
            target: as made, on the tower's device.
        """
        raise NotImplementedError


@keywords
@dataclass(frozen=True, eq=False)
class Recipe:
    """What a run is made of where options do not say it.

    Attributes:
        optimizer: from the parameters that are trained, by name, to an AdamW of them; by default as
            `ClipTrainOptions` says. The highest rate of a group is its ``lr``.
        schedule: from a step, from 0, and the number of steps to the part of the highest rate that
            the step has; by default a warm-up and a cosine.
        trained: whether a parameter of a tower is trained, by its name (``text.`` or ``image.`` and
            its name in the module); by default as ``mode`` says.
        further: a loss beside the contrastive one.
    """

    optimizer: Callable[[Mapping[str, nn.Parameter]], torch.optim.AdamW] | None = None
    schedule: Callable[[int, int], float] | None = None
    trained: Callable[[str], bool] | None = None
    further: FurtherLoss | None = None

    def identity(self, steps: int) -> dict[str, Any]:
        """What a stopped run must have had of this to go on with it: its learning rates."""
        if self.schedule is None:
            return {}
        at = sorted({steps * part // 16 for part in range(16)})
        return {"schedule": [self.schedule(step, steps) for step in at]}


NO_RECIPE = Recipe()


class Stream(Sequence[Pair]):
    """The rows that a function makes for each step, as one long table of pairs."""

    def __init__(self, make: Rows, batch: int, steps: int) -> None:
        self._make, self._batch, self._steps = make, batch, steps
        self._made: dict[int, list[Pair]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._batch * self._steps

    def __getitem__(self, row: Any) -> Any:
        step, place = divmod(row, self._batch)
        return self.step(step)[place]

    def __iter__(self) -> Iterator[Pair]:
        return (pair for step in range(self._steps) for pair in self.step(step))

    def step(self, step: int) -> list[Pair]:
        """The rows of a step. Raises DataError for more or fewer than a batch."""
        with self._lock:
            if step not in self._made:
                while len(self._made) >= _KEPT:
                    self._made.pop(min(self._made))
                self._made[step] = self._read(step)
            return self._made[step]

    def _read(self, step: int) -> list[Pair]:
        found = read_pairs(list(self._make(step)), fields=True)
        if len(found) != self._batch:
            raise DataError(
                f"data({step}) gives {len(found)} rows, and batch_size is {self._batch}; give as "
                "many for every step"
            )
        return [replace(pair, where=f"step {step + 1}, {pair.where}") for pair in found]


def check_stream(options: ClipTrainOptions) -> tuple[int, int]:
    """Batch and steps of data that a function gives. Raises OptionError where they are not said,
    and for what would ask for all of the data."""
    if options.batch_size is None or options.steps is None:
        raise OptionError(
            "data is a function, which has no end; say batch_size and steps of the run"
        )
    if options.mode == "distill":
        raise OptionError("data is a function; mode='distill' goes through rows that have an end")
    if options.popularity:
        raise OptionError(
            "popularity counts the captions of all data, and a function has no end; leave it out"
        )
    return options.batch_size, options.steps


@dataclass(frozen=True)
class InOrder:
    """Batches of rows as they come, as `bridge.training.order.Shuffled` is called."""

    batch_size: int

    def batch(self, step: int) -> Sequence[int]:
        """The rows of a step."""
        return range(step * self.batch_size, (step + 1) * self.batch_size)
