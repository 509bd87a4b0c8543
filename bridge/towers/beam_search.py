"""Beam search over any model of the next token: pure bookkeeping, no model here."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

NextTokens = Callable[[Tensor], Tensor]
"""Ids ``(N, T)`` to log-probabilities ``(N, V)`` of what comes next."""


def beam_search(
    next_tokens: NextTokens, start: int, end: int, *, beams: int, least: int, most: int,
    device: torch.device,
) -> list[int]:  # fmt: skip
    """The ids of the best text found, without ``start`` and ``end``.

    A text's score is its log-probability by its length (``end`` counted). The search goes on with
    the ``beams`` best texts, until as many have ended, and with one beam it is greedy. A text ends
    after ``least`` tokens at the earliest; after ``most`` it is cut.
    """
    ids = torch.full((1, 1), start, dtype=torch.long, device=device)
    scores = torch.zeros(1, device=device, dtype=torch.float32)
    ended: list[tuple[float, list[int]]] = []
    for length in range(1, most + 1):
        likely = next_tokens(ids).float()
        if length <= least:  # on a copy: the table may be the model's own
            likely = likely.index_fill(
                1, torch.tensor([end], device=device, dtype=torch.long), -torch.inf
            )
        total = (scores[:, None] + likely).flatten()
        best = total.topk(min(2 * beams, len(total)))
        going: list[tuple[float, int, int]] = []
        for rank, (score, place) in enumerate(zip(*map(Tensor.tolist, best), strict=True)):
            row, token = divmod(place, likely.shape[1])
            if score == -torch.inf or len(going) == beams:
                break
            if token != end:
                going.append((score, row, token))
            elif rank < beams:
                ended.append((score / length, ids[row, 1:].tolist()))
        if len(ended) >= beams or not going:
            break
        rows = torch.tensor([row for _, row, _ in going], device=device, dtype=torch.long)
        tokens = torch.tensor([[token] for _, _, token in going], device=device, dtype=torch.long)
        ids = torch.cat([ids[rows], tokens], 1)
        scores = torch.tensor([score for score, _, _ in going], device=device, dtype=torch.float32)
    else:
        ended += [(s / most, row[1:]) for s, row in zip(scores.tolist(), ids.tolist(), strict=True)]
    return max(ended)[1]
