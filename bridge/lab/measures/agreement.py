"""Whether two towers agree, though their widths and tokenizers differ.

Kendall's tau-b (Kendall 1945) compares orders: which variants move a prompt most. Linear CKA
(Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited") compares shapes:
which texts lie near which.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def kendall_tau(x: Sequence[float], y: Sequence[float]) -> float:
    """Tau-b, which allows for ties, from -1 to 1. Pairs with a NaN do not count.

    NaN for less than two pairs, or where one side is all the same.
    """
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    known = ~(np.isnan(a) | np.isnan(b))
    a, b = a[known], b[known]
    above = np.triu_indices(len(a), 1)
    first = np.sign(a[:, None] - a)[above]
    second = np.sign(b[:, None] - b)[above]
    scale = np.sqrt(float((first != 0).sum()) * float((second != 0).sum()))
    return float((first * second).sum() / scale) if scale else float("nan")


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA of ``(N, D1)`` and ``(N, D2)``, row by row of the same texts: 0 to 1.

    By the Gram matrices, since N is small: ``<K, L> / (|K| |L|)`` of the centred ones. It is the
    biased estimate, which for few texts in many dimensions is high by itself; compare it at one N
    only. NaN where all texts have one state.
    """
    k, m = _gram(x), _gram(y)
    scale = torch.linalg.matrix_norm(k) * torch.linalg.matrix_norm(m)
    return float((k * m).sum() / scale) if scale > 0 else float("nan")


def _gram(states: Tensor) -> Tensor:
    centred = states.double() - states.double().mean(0)
    return centred @ centred.T
