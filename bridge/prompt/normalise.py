"""Token normalisations: weights adjusted before any emphasis, as ComfyUI_ADV_CLIP_emb names them.

``length``: a word of n tokens gets weight ``1 + sign(d) * sqrt(d**2 / n)``, d its weight less 1,
so that long words do not count n times. ``mean``: all weights of a prompt move by one number, so
that their mean is 1 and a prompt is not louder for having an emphasis. ``length+mean``: the one,
then the other. BOS, EOS and padding keep their weight of 1.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

from bridge.prompt.plan import Token, TokenPlan

NORMALISATIONS = ("none", "length", "mean", "length+mean")


def normalised(plan: TokenPlan, name: str) -> TokenPlan:
    """The plan with its weights adjusted; ``name`` is one of ``NORMALISATIONS``."""
    if name == "none":
        return plan
    weights = {id(token): token.weight for token in plan.tokens if not token.special}
    if not weights:
        return plan
    if name.startswith("length"):
        sizes = Counter(token.word for token in plan.tokens if not token.special)
        for token in plan.tokens:
            if not token.special:
                weights[id(token)] = _spread(token.weight, sizes[token.word])
    if name.endswith("mean"):
        shift = 1 - sum(weights.values()) / len(weights)
        weights = {key: weight + shift for key, weight in weights.items()}

    def adjusted(token: Token) -> Token:
        return token if token.special else replace(token, weight=weights[id(token)])

    return replace(
        plan,
        windows=tuple(
            replace(window, tokens=tuple(adjusted(token) for token in window.tokens))
            for window in plan.windows
        ),
    )


def _spread(weight: float, count: int) -> float:
    return 1 + math.copysign(abs(weight - 1) / math.sqrt(count), weight - 1)
