"""Emphasis as a bias of attention: the logarithm of a token's weight is added to its logits.

After the softmax a token of weight w then has w times its attention before the rest is made up to
1 again: Prompt-to-Prompt's re-weighting (Hertz et al. 2022, section 3.2, "Attention
re-weighting"), with the sum restored. Weight 0 hides a token. Negative weights have no logarithm.

- ``text_attention_bias`` acts in the text tower: all tokens after a weighted one, the EOS state
  and so the pooled state included, look at it more or less. Token states come as they are.
- ``unet_attention_bias`` acts in the UNet's cross-attentions and leaves the tower's states alone.
  Where two towers' states stand side by side, the mean of their tokens' biases counts, which
  differs from either only if ``prompt_2`` is weighted otherwise. It is drawn inside
  ``bridge.inject``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bridge.encoding.emphasis.method import NONE, Emphasis, TowerInput
from bridge.encoding.joining import join_windows
from bridge.prompt import LongPrompt, TokenPlan, Window
from bridge.prompt.syntax import prompt_error


def check_weights(plan: TokenPlan) -> None:
    """Refuse weights without a logarithm. Raises PromptError."""
    for token in plan.tokens:
        if token.weight < 0:
            raise prompt_error(
                f"A weight of {token.weight:g} cannot bias attention; give 0 or more.",
                plan.source,
                token.start,
                token.end,
            )


def log_weights(window: Window) -> tuple[float, ...]:
    """The logarithm of the weight of each place; 0 for padding."""
    return tuple(-math.inf if weight == 0 else math.log(weight) for weight in window.weights)


def key_bias(plans: Sequence[Sequence[TokenPlan]], windows: int, long: LongPrompt) -> Tensor | None:
    """What is added to the logits of each token of B prompts: ``(B, T')``.

    Args:
        plans: for each tower the plans of B prompts.
        windows: how many windows every plan is brought to.
        long: how windows become one sequence.

    Returns:
        None where nothing is weighted.
    """
    if not any(plan.is_weighted for tower in plans for plan in tower):
        return None
    towers = [torch.stack([_joined(plan, windows, long) for plan in tower]) for tower in plans]
    return torch.stack(towers).mean(0)


def _joined(plan: TokenPlan, windows: int, long: LongPrompt) -> Tensor:
    filled = [*plan.windows, *[plan.empty] * (windows - len(plan.windows))]
    return join_windows(
        torch.tensor([log_weights(w) for w in filled], dtype=torch.float32)[..., None], plan, long
    )[:, 0]


TEXT_ATTENTION_BIAS = replace(
    NONE,
    check=check_weights,
    own=lambda window: replace(TowerInput.of(window), bias=log_weights(window)),
    biases=True,
)
"""In the text tower."""

UNET_ATTENTION_BIAS: Emphasis = replace(NONE, check=check_weights, key_bias=key_bias, biases=True)
"""In the UNet."""
