"""Token normalisations: weights adjusted before any emphasis, as ComfyUI_ADV_CLIP_emb names them.

``length``: a stretch of one weight of n tokens gets weight ``1 + sign(d) * sqrt(d**2 / n)``, d its
weight less 1, so that long ones do not count n times. ``mean``: all weights of a prompt move by one
number, so that their mean is 1 and a prompt is not louder for having an emphasis. ``length+mean``:
the one, then the other. BOS, EOS and padding keep their weight of 1.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

from bridge.prompt.token_plan import Token, TokenPlan

NORMALISATIONS = ("none", "length", "mean", "length+mean")


def normalised(plan: TokenPlan, name: str) -> TokenPlan:
    """The plan with its weights adjusted; ``name`` is one of ``NORMALISATIONS``."""
    if name == "none":
        return plan
    content = [token for token in plan.tokens if not token.special]
    if not content:
        return plan
    sizes = Counter(token.fragment for token in content)

    def spread(token: Token) -> float:
        long = name.startswith("length")
        return _spread(token.weight, sizes[token.fragment]) if long else token.weight

    shift = 1 - sum(map(spread, content)) / len(content) if name.endswith("mean") else 0.0

    def adjusted(token: Token) -> Token:
        return token if token.special else replace(token, weight=spread(token) + shift)

    return replace(
        plan,
        windows=tuple(
            replace(window, tokens=tuple(adjusted(token) for token in window.tokens))
            for window in plan.windows
        ),
    )


def _spread(weight: float, count: int) -> float:
    return 1 + math.copysign(abs(weight - 1) / math.sqrt(count), weight - 1)
