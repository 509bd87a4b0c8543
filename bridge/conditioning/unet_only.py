"""What only a UNet can do, refused for models that draw with a transformer."""

from __future__ import annotations

import torch
from torch import Tensor

from bridge.conditioning.emphasis import EMPHASES
from bridge.conditioning.kit import Kit
from bridge.conditioning.parts import Group
from bridge.conditioning.planning import Plans, most_windows
from bridge.conditioning.recipes import RECIPES
from bridge.conditioning.wording import Wording
from bridge.errors import OptionError, PromptError, UnsupportedModelError

# DeepFloyd IF has a UNet too, but reads T5.
_UNETS = tuple(
    name
    for name, recipe in RECIPES.items()
    if recipe.backbone == "unet" and all(use.length is None for use in recipe.towers)
)


def is_unet(kit: Kit) -> bool:
    """Whether the kit's model draws with a UNet that reads CLIP."""
    return kit.recipe.name in _UNETS


def check_unet(kit: Kit, what: str) -> None:
    """Raises UnsupportedModelError unless the kit's model draws with a UNet."""
    if not is_unet(kit):
        raise UnsupportedModelError(
            f"{what} inside a UNet; {kit.source} ({kit.recipe.name}) has none. It works with "
            f"{', '.join(_UNETS)}."
        )


def unet_biases(
    kit: Kit,
    wording: Wording,
    plans: Plans,
    negative_plans: Plans,
    groups: tuple[Group, ...],
) -> dict[str, Tensor]:
    """What an emphasis adds inside the UNet. Refuses weights that it has no meaning for."""
    emphasis = EMPHASES[wording.emphasis]
    every = [plan for tower in (*plans, *negative_plans) for plan in tower]
    for plan in every:
        emphasis.check(plan)
    if not emphasis.biases or not any(plan.is_weighted for plan in every):
        return {}
    # T5 attends both ways, so that a bias would mean something else there.
    check_unet(kit, f"The emphasis {wording.emphasis} acts beside or")
    windows = most_windows(plans, negative_plans)
    if len({plan.limit for plan in every}) > 1:
        raise OptionError(
            f"{wording.emphasis} does not go with towers of unequal context; use another emphasis."
        )
    found = emphasis.key_bias(plans, windows, wording.long_prompt)
    opposed = emphasis.key_bias(negative_plans, windows, wording.long_prompt)
    if found is None and opposed is None:
        return {}
    if any(group.kind != "one" for group in groups):
        raise PromptError(f"{wording.emphasis} does not go with prompts of several parts.")
    one = found if found is not None else opposed
    assert one is not None
    none = torch.zeros_like(one)
    return {
        "attention_bias": none if found is None else found,
        "negative_attention_bias": none if opposed is None else opposed,
    }
