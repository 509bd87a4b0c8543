"""Image-level ablation of towers: parts of a ``Conditioning`` set to zero.

What a part stands for must be gone on both sides of classifier-free guidance, so the negative
loses the same part.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from bridge.conditioning import Conditioning
from bridge.conditioning.kit import Kit

WHOLE = "whole"
"""The choice that changes nothing."""
POOLED = "pooled"
"""The choice that keeps the pooled state alone."""


def choices_of(kit: Kit) -> tuple[str, ...]:
    """The choices that a model has: all of it, each tower's token states alone, the pooled state
    alone. One choice for a model of one tower without a pooled state."""
    towers = _columns(kit)
    if towers is None or (len(towers) < 2 and not kit.recipe.pooled):
        return (WHOLE,)
    return (WHOLE, *towers, *((POOLED,) if kit.recipe.pooled else ()))


def ablated(cond: Conditioning, kit: Kit, choice: str) -> Conditioning:
    """``cond`` with only what ``choice`` names; the rest is zeros.

    Args:
        cond: of the model of ``kit``.
        choice: one of ``choices_of(kit)``. A tower's name keeps its token states and no pooled
            state, even where the pooled state is its own.
    """
    if choice == WHOLE:
        return cond
    columns = _columns(kit)
    assert columns is not None
    start, stop = columns.get(choice, (0, 0))

    def kept(states: torch.Tensor | None) -> torch.Tensor | None:
        if states is None:
            return None
        found = torch.zeros_like(states)
        found[..., start:stop] = states[..., start:stop]
        return found

    def pooled(states: torch.Tensor | None) -> torch.Tensor | None:
        return states if states is None or choice == POOLED else torch.zeros_like(states)

    prompt_embeds = kept(cond.prompt_embeds)
    assert prompt_embeds is not None
    return replace(
        cond,
        prompt_embeds=prompt_embeds,
        negative_prompt_embeds=kept(cond.negative_prompt_embeds),
        pooled_prompt_embeds=pooled(cond.pooled_prompt_embeds),
        negative_pooled_prompt_embeds=pooled(cond.negative_pooled_prompt_embeds),
    )


def _columns(kit: Kit) -> dict[str, tuple[int, int]] | None:
    """Which columns of ``prompt_embeds`` are whose; None where towers stand end to end (SD 3)."""
    if any(use.follows for use in kit.recipe.towers):
        return None
    found, at = {}, 0
    for use, spec in zip(kit.recipe.towers, kit.specs, strict=True):
        if use.layer is not None:
            found[use.component] = (at, at + spec.width)
            at += spec.width
    return found
