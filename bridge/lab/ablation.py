"""Image-level ablation of towers: parts of a ``Conditioning`` set to zero.

What a part stands for must be gone on both sides of classifier-free guidance, so the negative
loses the same part.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from bridge.encoding import Conditioning
from bridge.encoding.model import TextModel

WHOLE = "whole"
"""The choice that changes nothing."""
POOLED = "pooled"
"""The choice that keeps the pooled state alone."""


def choices_of(text_model: TextModel) -> tuple[str, ...]:
    """The choices that a model has: all of it, each tower's token states alone, the pooled state
    alone. One choice for a model of one tower without a pooled state."""
    towers = _columns(text_model)
    if towers is None or (len(towers) < 2 and not text_model.recipe.pooled):
        return (WHOLE,)
    return (WHOLE, *towers, *((POOLED,) if text_model.recipe.pooled else ()))


def ablated(cond: Conditioning, text_model: TextModel, choice: str) -> Conditioning:
    """``cond`` with only what ``choice`` names; the rest is zeros.

    Args:
        cond: of the model of ``text_model``.
        choice: one of ``choices_of(text_model)``. A tower's name keeps its token states and no
            pooled state, even where the pooled state is its own.
    """
    if choice == WHOLE:
        return cond
    columns = _columns(text_model)
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


def _columns(text_model: TextModel) -> dict[str, tuple[int, int]] | None:
    """Which columns of ``prompt_embeds`` are whose; None where towers stand end to end (SD 3)."""
    if any(use.follows for use in text_model.recipe.towers):
        return None
    found, at = {}, 0
    for use, spec in zip(text_model.recipe.towers, text_model.specs, strict=True):
        if use.layer is not None:
            found[use.component] = (at, at + spec.width)
            at += spec.width
    return found
