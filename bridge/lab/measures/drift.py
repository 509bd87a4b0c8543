"""How far states move: cosines, plain and centred, of pooled states and of matched tokens.

A tower's states share a large mean, so that unrelated texts have a high cosine already
(``anisotropy``). Taking off the mean of unrelated texts first gives the centred cosine, whose
chance value is near 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity


def cosine(a: Tensor, b: Tensor, mean: Tensor | None = None) -> float:
    """The cosine of two states ``(D,)``, after ``mean (D,)`` is taken off; in float64."""
    return float(cosines(a[None], b[None], mean))


def cosines(a: Tensor, b: Tensor, mean: Tensor | None = None) -> Tensor:
    """The cosine of each row of ``a (N, D)`` with that of ``b``: ``(N,)`` float64.

    1 for equal rows, zeros among them; 0 where only one of the two is zero.
    """
    x, y = a.double(), b.double()
    if mean is not None:
        x, y = x - mean.double(), y - mean.double()
    same = (x == y).all(-1)
    return torch.where(same, torch.ones_like(x[:, 0]), cosine_similarity(x, y, dim=-1, eps=1e-12))


def matched(a: Sequence[int], b: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of places whose ids are the same, in order: what two token lists have in common
    (Ratcliff and Obershelp's matching, as ``difflib`` has it)."""
    blocks = SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
    return [(i + k, j + k) for i, j, size in blocks for k in range(size)]


def token_cosine(
    a: Tensor,
    b: Tensor,
    ids_a: Sequence[int],
    ids_b: Sequence[int],
    mean: Tensor | None = None,
) -> float:
    """The mean cosine of the states of tokens that both texts have; NaN if they share none.

    Args:
        a, b: ``(Ta, D)`` and ``(Tb, D)`` states of the content tokens.
        ids_a, ids_b: their ids.
        mean: ``(D,)``, taken off first.
    """
    pairs = matched(ids_a, ids_b)
    if not pairs:
        return float("nan")
    left, right = (list(side) for side in zip(*pairs, strict=True))
    return float(cosines(a[left], b[right], mean).mean())


def above_chance(value: float, chance: float) -> float:
    """A cosine on a scale where unrelated texts are at 0 and equal ones at 1."""
    return (value - chance) / (1 - chance) if chance < 1 else float("nan")
