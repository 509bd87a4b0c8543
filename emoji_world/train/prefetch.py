"""Where a stage trains: on which device, with how large batches, and who makes these.

What a CPU trains on it makes between two steps. A GPU would wait for that most of the time, so
there processes of their own make the batches of the next steps while it computes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

Made = TypeVar("Made")


@dataclass(frozen=True)
class Setup:
    """``device`` trains; batches have ``times`` their usual size and are made by ``workers``
    processes, or where there are none by the training process itself."""

    device: torch.device
    times: int = 1
    workers: int = 0


ON_CPU = Setup(torch.device("cpu"))


class _Steps(Dataset[Made], Generic[Made]):
    def __init__(self, make: Callable[[int], Made]) -> None:
        self.make = make

    def __getitem__(self, step: int) -> Made:
        return self.make(step)


def prefetch(make: Callable[[int], Made], workers: int) -> Callable[[int], Made]:
    """``make``, whose results ``workers`` processes prepare ahead of need; 0 gives ``make``.

    What it makes of a step must follow from the step's number alone. Steps must be asked for one
    after the other, from any one on; another order raises RuntimeError.
    """
    if workers == 0:
        return make
    coming: Iterator[tuple[int, Made]] | None = None

    def numbered(step: int) -> tuple[int, Made]:
        return step, make(step)

    def get(step: int) -> Made:
        nonlocal coming
        if coming is None:
            loader: DataLoader[tuple[int, Made]] = DataLoader(
                _Steps(numbered),
                batch_size=None,
                sampler=itertools.count(step),
                num_workers=workers,
                prefetch_factor=4,
                collate_fn=_as_it_is,
                generator=torch.Generator(),  # or it draws from the one that draws the noise
            )
            coming = iter(loader)
        number, made = next(coming)
        if number != step:
            raise RuntimeError(f"step {step} was asked for, {number} was prepared")
        return made

    return get


def _as_it_is(made: Made) -> Made:
    return made
