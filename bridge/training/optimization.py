"""How weights are changed: the learning rate over time, what decays, and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def rate_at(step: int, steps: int, warmup_ratio: float) -> float:
    """Part of the highest learning rate in a step: linear warm-up, then half a cosine.

    As transformers' `get_cosine_schedule_with_warmup`. The first step of a warm-up has the rate 0,
    so a step that is left after it there always is.
    """
    warm = min(math.ceil(warmup_ratio * steps), steps - 1)
    if step < warm:
        return step / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def decay_groups(
    parameters: Mapping[str, nn.Parameter], rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """AdamW's groups: matrices decay, gains, biases and temperatures do not (as in open_clip).

    ``rate`` is kept in each group as its highest learning rate. An empty group is left out.
    """
    wide = [p for p in parameters.values() if p.requires_grad and p.ndim > 1]
    narrow = [p for p in parameters.values() if p.requires_grad and p.ndim <= 1]
    made = ((wide, weight_decay), (narrow, 0.0))
    return [{"params": some, "rate": rate, "weight_decay": decay} for some, decay in made if some]


def set_rates(optimizer: Any, part: float) -> None:
    """Give each group ``part`` of its highest learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["rate"] * part


class Average:
    """Weights averaged over the steps (EMA), which often do better than the last ones.

    The first steps count for more, so that a random start does not linger: the decay of step s is
    (1 + s) / (10 + s) at most, as in TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self._own = dict(parameters)
        self._decay = decay
        self.weights: dict[str, Tensor] = {n: p.detach().clone() for n, p in self._own.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step ``step``, from 0."""
        decay = min(self._decay, (1 + step) / (10 + step))
        own = [self._own[name].detach() for name in self.weights]
        torch._foreach_lerp_(list(self.weights.values()), own, 1 - decay)

    @torch.no_grad()
    def exchange(self) -> None:
        """Put the averages in the weights' place, and these in theirs; twice changes nothing."""
        for name, kept in self.weights.items():
            own = self._own[name].detach().clone()
            self._own[name].copy_(kept)
            kept.copy_(own)


def norm_of(parameters: Iterable[nn.Parameter]) -> float:
    """The norm of all gradients together."""
    return float(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
