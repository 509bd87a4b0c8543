"""What an emphasis method is: inputs it wants encoded beside the prompt, and its formula."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bridge.prompt import LongPrompt, TokenPlan, Window


@dataclass(frozen=True)
class TowerInput:
    """One input of a tower.

    Attributes:
        ids: ``T`` ids, padding included.
        used: how many of them are no padding.
        hidden: places that no token may attend to.
        bias: what is added to the logits of each place in attention; none if empty.
    """

    ids: tuple[int, ...]
    used: int
    hidden: frozenset[int] = frozenset()
    bias: tuple[float, ...] = ()

    @classmethod
    def of(cls, window: Window, hidden: frozenset[int] = frozenset()) -> TowerInput:
        """A window's own input."""
        return cls(window.ids, window.used, hidden)

    def mask(self, hide_padding: bool) -> list[int]:
        """``T`` numbers, 0 where no token may attend to."""
        seen = self.used if hide_padding else len(self.ids)
        return [int(at < seen and at not in self.hidden) for at in range(len(self.ids))]

    def logits(self, hide_padding: bool) -> list[float]:
        """``T`` numbers to add to the logits of each place, minus infinity where mask has 0."""
        bias = self.bias or (0.0,) * len(self.ids)
        mask = self.mask(hide_padding)
        return [b if seen else -math.inf for b, seen in zip(bias, mask, strict=True)]


@dataclass(frozen=True)
class Emphasis:
    """One method.

    Attributes:
        rows: from a plan to the inputs it needs besides the plan's own windows. They are encoded
            in the same forward pass. Only asked of plans that are weighted.
        apply: from a plan, its states ``(k, T, D)`` for k windows, and the states ``(r, T, D)``
            of ``rows`` to the emphasised states ``(k, T, D)``.
        own: from a window of a weighted plan to the tower's input.
        check: refuses, before a tower loads, a plan whose weights it has no meaning for.
        key_bias: from the plans of each tower, the number of windows and how they are joined to
            what the UNet is to add to its cross-attentions' logits ``(B, T')``; None for nothing.
        biases: whether it acts in attention, of CLIP's towers or of a UNet.
    """

    rows: Callable[[TokenPlan], tuple[TowerInput, ...]]
    apply: Callable[[TokenPlan, Tensor, Tensor], Tensor]
    own: Callable[[Window], TowerInput] = TowerInput.of
    check: Callable[[TokenPlan], None] = lambda plan: None
    key_bias: Callable[[Sequence[Sequence[TokenPlan]], int, LongPrompt], Tensor | None] = (
        lambda plans, windows, long: None
    )
    biases: bool = False


def no_rows(plan: TokenPlan) -> tuple[TowerInput, ...]:
    """For methods that need no other input."""
    return ()


def empty_row(plan: TokenPlan) -> tuple[TowerInput, ...]:
    """The empty prompt."""
    return (TowerInput.of(plan.empty),)


def weights_of(plan: TokenPlan, like: Tensor) -> Tensor:
    """The weights of every place, ``(k, T, 1)``, on the device and in the dtype of ``like``."""
    rows = [window.weights for window in plan.windows]
    return torch.tensor(rows, device=like.device, dtype=like.dtype)[..., None]


NONE = Emphasis(no_rows, lambda plan, states, extra: states)
"""Weights are read and not used."""
