"""What a model answers on the way, beside what its data says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bridge.vlm.model import BridgeVLM
from bridge.vlm.train.data import Row

_ANSWER_TOKENS = 48


@torch.inference_mode()
def ask_samples(vlm: BridgeVLM, rows: Sequence[Row], step: int) -> list[dict[str, Any]]:
    """What the model answers to each row's first question, beside what the row says."""
    told = []
    for row in rows:
        question, wanted = row.turns[0]
        pictures: Any = [picture.load() for picture in row.pictures]
        answer = vlm.answer(pictures, question, max_new_tokens=_ANSWER_TOKENS)
        told.append(
            {
                "step": step,
                "row": row.where,
                "question": question,
                "answer": answer,
                "wanted": wanted,
            }
        )
    return told


def askable(rows: Sequence[Row], count: int) -> list[Row]:
    """Up to ``count`` rows, spread over the data, all of whose pictures the first turn is about."""
    single = [row for row in rows if len(row.turns) == 1 or len(row.pictures) <= 1]
    return [single[at * len(single) // count] for at in range(min(count, len(single)))]
