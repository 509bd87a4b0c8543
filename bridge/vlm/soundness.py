"""Numbers that no answer can be read from are an error: not finite soft tokens or logits."""

from __future__ import annotations

from typing import Any

import torch

from bridge.errors import NumbersError


def check_soft(soft: torch.Tensor, name: str) -> None:
    """Refuse soft tokens that are not finite. Raises NumbersError."""
    if not bool(soft.isfinite().all()):
        raise NumbersError(
            f"{name}: the vision tower or the projector gives soft tokens that are not finite (NaN "
            "or infinity). Their weights are damaged, or too large for their dtype: fetch them "
            "again, or load the model in float32."
        )


def check_logits(logits: torch.Tensor, mask: torch.Tensor, name: str) -> None:
    """Refuse logits ``(B, T, V)`` without a likeliest word where ``mask (B, T)`` is not 0.

    Minus infinity is legal beside others: some models rule words out by it. Raises NumbersError.
    """
    best = logits.amax(-1)
    if not bool((best.isfinite() | (mask == 0)).all()):
        raise NumbersError(
            f"{name}: the language model's logits are not finite (NaN or infinity). Its weights or "
            "a LoRA's are damaged, or too large for its dtype: fetch them again, or load the model "
            "in float32 or bfloat16."
        )


def finite_logits(name: str) -> Any:
    """`check_logits` at every token that a model of transformers generates."""
    from transformers import LogitsProcessor, LogitsProcessorList

    class FiniteLogits(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            row = scores[:, None]
            check_logits(row, row.new_ones(row.shape[:2]), name)
            return scores

    return LogitsProcessorList([FiniteLogits()])
