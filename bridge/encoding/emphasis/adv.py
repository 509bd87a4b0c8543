"""``comfy++`` and ``down_weight`` of ComfyUI_ADV_CLIP_emb (``adv_encode.py`` at 63984de).

Words are taken out of a prompt by putting another token ("+") in the place of theirs. A "word" is
what ComfyUI tokenizes at once: since its commit b55c224 a whole stretch of one weight.

``down_weight``: weights are divided by the largest, so none is above 1. Let ``w_1 < w_2 < ... <=
1`` be the distinct weights, and M_i the prompt without the words of weight ``w_i`` and below:
the result is ``w_1 * z + sum((w_{i+1} - w_i) * M_i)``, with 1 after the last weight below 1.

``comfy++``: weights below 1 as in down_weight, undivided; to that, for each word of weight w
above 1, ``(w - 1) * (z - z without the word)`` is added at the word's own tokens.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from bridge.encoding.emphasis.method import Emphasis, TowerInput
from bridge.prompt import Token, TokenPlan, Window


def _divided(plan: TokenPlan) -> float:
    """The largest weight of all places; BOS and EOS, of weight 1, count."""
    return max(max(window.weights) for window in plan.windows)


def _levels(plan: TokenPlan, top: float) -> list[float]:
    """Distinct weights below 1, ascending, after division by ``top``."""
    content = (token.weight / top for token in plan.tokens if not token.special)
    return sorted({weight for weight in content if weight < 1})


def _heavy(plan: TokenPlan) -> dict[int, float]:
    """Stretches of a weight above 1, by number."""
    return {t.fragment: t.weight for t in plan.tokens if not t.special and t.weight > 1}


def _without(plan: TokenPlan, window: Window, taken: frozenset[Token]) -> TowerInput:
    """A window with the mask token in the place of the tokens ``taken``."""
    kept = [plan.mask_id if token in taken else token.id for token in window.tokens]
    return TowerInput((*kept, *window.ids[window.used :]), window.used)


def _lighter_rows(plan: TokenPlan, top: float) -> list[TowerInput]:
    """For each level, the windows without the words at that level and below."""
    rows = []
    for level in _levels(plan, top):
        taken = frozenset(t for t in plan.tokens if not t.special and t.weight / top <= level)
        rows += [_without(plan, window, taken) for window in plan.windows]
    return rows


def _lightened(plan: TokenPlan, states: Tensor, masked: Tensor, top: float) -> Tensor:
    levels = _levels(plan, top)
    if not levels:
        return states
    shares = [levels[0], *(b - a for a, b in pairwise([*levels, 1.0]))]
    versions = torch.cat([states[None], masked.reshape(len(levels), *states.shape)])
    mix = torch.tensor(shares, device=states.device, dtype=states.dtype)
    return (versions * mix.view(-1, 1, 1, 1)).sum(0)


def _down_rows(plan: TokenPlan) -> tuple[TowerInput, ...]:
    return tuple(_lighter_rows(plan, _divided(plan)))


def _down(plan: TokenPlan, states: Tensor, extra: Tensor) -> Tensor:
    return _lightened(plan, states, extra, _divided(plan))


def _plus_rows(plan: TokenPlan) -> tuple[TowerInput, ...]:
    heavy = [
        _without(plan, window, frozenset(t for t in window.tokens if t.fragment == fragment))
        for fragment in _heavy(plan)
        for window in plan.windows
    ]
    return (*_lighter_rows(plan, 1.0), *heavy)


def _plus(plan: TokenPlan, states: Tensor, extra: Tensor) -> Tensor:
    heavy = _heavy(plan)
    lighter = len(extra) - len(heavy) * len(states)
    result = _lightened(plan, states, extra[:lighter], 1.0)
    without = extra[lighter:].reshape(len(heavy), *states.shape)
    for (fragment, weight), absent in zip(heavy.items(), without, strict=True):
        places = [[token.fragment == fragment for token in w.tokens] for w in plan.windows]
        padded = [row + [False] * (states.shape[1] - len(row)) for row in places]
        here = torch.tensor(padded, device=states.device, dtype=torch.bool)[..., None]
        result = result + torch.where(here, (weight - 1) * (states - absent), 0)
    return result


DOWN_WEIGHT = Emphasis(_down_rows, _down)
"""Weights only ever take away."""

COMFY_PLUS_PLUS = Emphasis(_plus_rows, _plus)
"""Weights scale what a word contributes."""
