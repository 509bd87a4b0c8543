"""Cross-entropy through a frozen output head, over the whole vocabulary, without its logits.

Of 262 thousand words, the logits of a few hundred answer tokens and their gradient would take a
gigabyte. The head is frozen, so what is wanted of it is only the gradient for the states, and that
is known as soon as the logits are: a stretch of states at a time, both are made and forgotten
(the idea of Hsu et al., "Liger Kernel", 2024, in plain torch).
"""

from __future__ import annotations

from typing import Any

import torch

_AT_ONCE = 128


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, head: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = states.new_zeros((), dtype=torch.float32)
        right = states.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(states)
        for start in range(0, len(states), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            logits = (states[part] @ head.T).float()
            told = target[part, None]
            norm = logits.logsumexp(-1, keepdim=True)
            total += (norm - logits.gather(1, told)).sum()
            right += (logits.argmax(-1, keepdim=True) == told).sum()
            # Of each logit: its share, less one where it is the right one.
            slope = logits.sub_(norm).exp_()
            slope.scatter_add_(1, told, slope.new_full(told.shape, -1.0))
            gradient[part] = slope.to(head.dtype) @ head
        ctx.save_for_backward(gradient)
        right /= len(states)
        ctx.mark_non_differentiable(right)
        return total / len(states), right

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor, _: torch.Tensor) -> tuple[Any, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * (slope / len(gradient)).to(gradient.dtype), None, None)


def head_loss(
    states: torch.Tensor, head: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean cross-entropy of ``target`` (N,) and the share of right first choices, both fp32.

    ``states`` (N, D) and the frozen ``head`` (V, D) are of one dtype, in which the products are
    taken; the softmax is fp32. A gradient flows to ``states`` alone.
    """
    loss, right = _HeadLoss.apply(states, head, target)
    return loss, right
