"""Emphasis of compel (``EmbeddingsProvider``), with its down-weighting by masking (``MASK``).

All weights act as in ComfyUI. A fragment of weight w < 1 is also mixed with the prompt in which
its tokens are hidden from the tower's attention, by ``t = tan((1 - w) * pi / 2)``: at 0.5 the two
are halves, towards 0 the prompt without the fragment is all. With E the weighted prompt and E_i
the same without fragment i: ``(E + sum(t_i * E_i)) / (1 + sum(t_i))``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bridge.encoding.emphasis.comfy import from_empty
from bridge.encoding.emphasis.method import Emphasis, TowerInput, empty_row, weights_of
from bridge.prompt import TokenPlan

_LEAST = 1e-5  # of a weight; the tangent is infinite at 0


def _light(plan: TokenPlan) -> dict[int, float]:
    """Fragments of weight below 1, by number."""
    return {t.fragment: t.weight for t in plan.tokens if not t.special and t.weight < 1}


def _rows(plan: TokenPlan) -> tuple[TowerInput, ...]:
    hidden = [
        TowerInput.of(window, places)
        for fragment in _light(plan)
        for window, places in zip(plan.windows, _hidden(plan, fragment), strict=True)
    ]
    return (*empty_row(plan), *hidden)


def _hidden(plan: TokenPlan, fragment: int) -> list[frozenset[int]]:
    """The places of a fragment in each window, from its first to its last.

    Of the windows between which it goes on, compel leaves only the first and the last place to see.
    """
    inside = [
        [at for at, token in enumerate(window.tokens) if token.fragment == fragment]
        for window in plan.windows
    ]
    own = [number for number, places in enumerate(inside) if places]
    found = []
    for number, places in enumerate(inside):
        if not places:
            found.append(frozenset[int]())
            continue
        first = places[0] if number == own[0] else 1
        last = places[-1] if number == own[-1] else len(plan.windows[number].ids) - 2
        found.append(frozenset(range(first, last + 1)))
    return found


def _apply(plan: TokenPlan, states: Tensor, extra: Tensor) -> Tensor:
    weights, light = weights_of(plan, states), _light(plan)
    without = extra[1:].reshape(len(light), *states.shape)
    mix = [1.0, *(math.tan((1 - max(w, _LEAST)) * math.pi / 2) for w in light.values())]
    shares = torch.tensor(mix, device=states.device, dtype=states.dtype)
    shares = shares / shares.sum()
    versions = from_empty(torch.cat([states[None], without]), extra[0], weights)
    return (versions * shares.view(-1, 1, 1, 1)).sum(0)


COMPEL = Emphasis(_rows, _apply)
"""compel's default."""
