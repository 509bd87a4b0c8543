"""What of a model draws: all of it, one tower, its pooled state, or another tower in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from bridge.adapters import Adapter, Swap
from bridge.adapters.swap import SAME_WIDTH, read_adapter
from bridge.encoding import Conditioning
from bridge.encoding.model import TextModel
from bridge.errors import OptionError
from bridge.lab.cache_keys import module_key
from bridge.towers import TextTower

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

    What a part stands for must be gone on both sides of classifier-free guidance, so the negative
    loses the same part.

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


# ---------------------------------------------------------------- other towers


@dataclass(frozen=True, eq=False)
class TowerSwap:
    """A tower choice that draws with another tower.

    Attributes:
        arguments: of ``bridge.condition``.
        key: a name for the tower and its adapter, for the cache.
    """

    arguments: Mapping[str, Any]
    key: str


def drawable(
    towers: Sequence[TextTower], swaps: Sequence[Swap], adapters: Mapping[str, Adapter]
) -> dict[str, TowerSwap]:
    """The foreign towers that the model can draw with: those of its widths in the place of the
    first that they fit, and those with an adapter."""
    found = {}
    for tower, swap in zip(towers, swaps, strict=True):
        if tower.name in adapters:
            adapter = adapters[tower.name]
            key = f"{module_key(tower.module)} {adapter.hash}"
            found[tower.name] = TowerSwap({"towers": tower, "adapter": adapter}, key)
        elif swap.label == SAME_WIDTH:
            place = {swap.components[0]: tower}
            key = f"{module_key(tower.module)} {swap.components}"
            found[tower.name] = TowerSwap({"towers": place}, key)
    return found


def read_adapters(adapters: object, towers: Sequence[str]) -> dict[str, Adapter]:
    """``{tower name: Adapter or its file}``, for some of ``towers``.

    Raises:
        OptionError: what is not such a mapping, or names another tower.

    It also raises what ``bridge.load_adapter`` raises.
    """
    if adapters is None:
        return {}
    if not isinstance(adapters, Mapping):
        raise OptionError("adapters takes {tower name: Adapter or its file}.")
    strange = [name for name in adapters if name not in towers]
    if strange:
        there = ", ".join(towers) if towers else "none but the model's own; name some in towers"
        raise OptionError(
            f"adapters has one for {', '.join(map(repr, strange))}, which is not among the study's "
            f"towers: {there}."
        )
    return {name: read_adapter(each) for name, each in adapters.items()}


def read_choices(
    choices: str | Sequence[str] | None, text_model: TextModel, swapped: Mapping[str, TowerSwap]
) -> tuple[str, ...]:
    """What draws: the names of ``study``'s argument, each once; "all" is all that there are.

    Raises:
        OptionError: a choice that the model does not have, or none at all.
    """
    if choices is None:
        return (WHOLE,)
    there = (*choices_of(text_model), *swapped)
    if choices == "all":
        return there
    wanted = (choices,) if isinstance(choices, str) else tuple(choices)
    for choice in wanted or ("",):
        if choice not in there:
            raise OptionError(
                f"{text_model.source} has no tower choice {choice!r}; it has {', '.join(there)}. "
                "(Foreign towers draw if they are among towers and of its widths, or have an "
                "adapter.)"
            )
    return tuple(dict.fromkeys(wanted))
