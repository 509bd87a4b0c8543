"""``prompt_attention_mask``: which token states the model that draws may look at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bridge.conditioning.kit import Kit
from bridge.conditioning.parts import Group
from bridge.conditioning.planning import Plans
from bridge.conditioning.recipes import MaskKind
from bridge.prompt import TokenPlan


def masks_of(
    kit: Kit,
    plans: Plans,
    groups: tuple[Group, ...],
    negative_plans: Plans,
    negative_groups: tuple[Group, ...],
    length: int,
    embeds: Tensor,
) -> dict[str, Tensor]:
    """The attention masks of a recipe that has them; its one tower's padding is what is hidden."""
    kind = kit.recipe.mask
    if kind is None:
        return {}
    return {
        "prompt_attention_mask": prompt_masks(plans[0], groups, length, kind, embeds),
        "negative_prompt_attention_mask": prompt_masks(
            negative_plans[0], negative_groups, length, kind, embeds
        ),
    }


def prompt_masks(
    plans: Sequence[TokenPlan], groups: Sequence[Group], length: int, kind: MaskKind, like: Tensor
) -> Tensor:
    """The masks of prompts, from the plans of their parts.

    Args:
        plans: one a part; the empty prompt's comes last where ``length`` is above 1.
        groups: B groups of parts.
        length: sequences that every prompt is brought to.
        kind: as ``Recipe.mask``.
        like: the token states, for device and dtype.

    Returns:
        ``(B, length * T)``; 1 or True for what may be seen. Of a blend, what any part has.
    """
    seen = torch.tensor([_seen(plan, kind) for plan in plans], dtype=torch.bool)
    masks = torch.stack([_of_group(seen, group, length) for group in groups])
    dtype = {"int": torch.int64, "bool": torch.bool, "one_pad": like.dtype}[kind]
    return masks.to(like.device, dtype)


def _seen(plan: TokenPlan, kind: MaskKind) -> list[bool]:
    extra = 1 if kind == "one_pad" else 0
    return [at < plan.used + extra for at in range(len(plan.ids))]


def _of_group(seen: Tensor, group: Group, length: int) -> Tensor:
    own = seen[list(group.rows)]
    if group.kind in ("blend", "sum"):
        own = own.any(0, keepdim=True)
    return torch.cat([own, seen[-1:].expand(length - len(own), -1)]).flatten()
