"""What each word has of a rollout's row (``bridge.towers.rollout``): the row of the EOS token says
what the pooled state is made of."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def word_shares(row: Tensor, words: Sequence[Sequence[int]]) -> list[float]:
    """What each word has of a rollout's row ``(T,)``; ``words`` are the places of their tokens.

    The shares are of the words among themselves: BOS, on which rollout always puts much, and the
    token itself are left out. NaN throughout if the words have nothing.
    """
    shares = [float(row[list(places)].sum()) if places else 0.0 for places in words]
    total = sum(shares)
    return [share / total if total else float("nan") for share in shares]
