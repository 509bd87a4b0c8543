"""What an emphasis method is: inputs it wants encoded beside the prompt, and its formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bridge.prompt import TokenPlan, Window


@dataclass(frozen=True)
class Row:
    """One input of a tower.

    Attributes:
        ids: ``T`` ids, padding included.
        used: how many of them are no padding.
        hidden: places that no token may attend to.
    """

    ids: tuple[int, ...]
    used: int
    hidden: frozenset[int] = frozenset()

    @classmethod
    def of(cls, window: Window, hidden: frozenset[int] = frozenset()) -> Row:
        """A window's own input."""
        return cls(window.ids, window.used, hidden)

    def mask(self, hide_padding: bool) -> list[int]:
        """``T`` numbers, 0 where no token may attend to."""
        seen = self.used if hide_padding else len(self.ids)
        return [int(at < seen and at not in self.hidden) for at in range(len(self.ids))]


@dataclass(frozen=True)
class Emphasis:
    """One method.

    Attributes:
        rows: from a plan to the inputs it needs besides the plan's own windows. They are encoded
            in the same forward pass. Only asked of plans that are weighted.
        apply: from a plan, its states ``(k, T, D)`` for k windows, and the states ``(r, T, D)``
            of ``rows`` to the emphasised states ``(k, T, D)``.
    """

    rows: Callable[[TokenPlan], tuple[Row, ...]]
    apply: Callable[[TokenPlan, Tensor, Tensor], Tensor]


def no_rows(plan: TokenPlan) -> tuple[Row, ...]:
    """For methods that need no other input."""
    return ()


def empty_row(plan: TokenPlan) -> tuple[Row, ...]:
    """The empty prompt."""
    return (Row.of(plan.empty),)


def weights_of(plan: TokenPlan, like: Tensor) -> Tensor:
    """The weights of every place, ``(k, T, 1)``, on the device and in the dtype of ``like``."""
    rows = [window.weights for window in plan.windows]
    return torch.tensor(rows, device=like.device, dtype=like.dtype)[..., None]


NONE = Emphasis(no_rows, lambda plan, states, extra: states)
"""Weights are read and not used."""
