"""A study's towers beside its model: what each would be to it, and which of them can draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bridge.conditioning import Adapter, Swap, label_swap, load_adapter
from bridge.conditioning.kit import Kit
from bridge.errors import OptionError
from bridge.towers import TextTower


@dataclass(frozen=True, eq=False)
class Swapped:
    """A tower choice that draws with another tower.

    Attributes:
        arguments: of ``bridge.condition``.
        mark: a name for the tower and its adapter, for the cache.
    """

    arguments: Mapping[str, Any]
    mark: str


def label(tower: TextTower, pipe: Any, kit: Kit) -> Swap:
    """``bridge.conditioning.label_swap``; also native is a tower of the same weights whose class
    says something else of projections (``emoji-1`` is SDXL's first tower with one)."""
    for use, module in zip(kit.recipe.towers, kit.load().modules, strict=True):
        if same_weights(tower.module, module):
            return Swap("native", (use.component,), f"the weights of {use.component}")
    return label_swap(tower, pipe)


def same_weights(a: Any, b: Any) -> bool:
    """Whether two text modules have the same encoder, projections aside."""
    left, right = _encoder(a), _encoder(b)
    return left.keys() == right.keys() and all(
        left[name].shape == right[name].shape
        and torch.equal(left[name].float().cpu(), right[name].float().cpu())
        for name in left
    )


def drawable(
    towers: Sequence[TextTower], swaps: Sequence[Swap], adapters: Mapping[str, Adapter]
) -> dict[str, Swapped]:
    """The foreign towers that the model can draw with: those of its widths in the place of the
    first that they fit, and those with an adapter."""
    found = {}
    for tower, swap in zip(towers, swaps, strict=True):
        if tower.name in adapters:
            adapter = adapters[tower.name]
            mark = f"{tower.fingerprint()} {adapter.hash}"
            found[tower.name] = Swapped({"towers": tower, "adapter": adapter}, mark)
        elif swap.label == "same-width":
            place = {swap.components[0]: tower}
            found[tower.name] = Swapped(
                {"towers": place}, f"{tower.fingerprint()} {swap.components}"
            )
    return found


def read_adapters(adapters: object) -> dict[str, Adapter]:
    """``{tower name: Adapter or its file}``. Raises OptionError, and what ``load_adapter`` does."""
    if adapters is None:
        return {}
    if not isinstance(adapters, Mapping):
        raise OptionError("adapters takes {tower name: Adapter or its file}.")
    return {
        str(name): each if isinstance(each, Adapter) else load_adapter(each)
        for name, each in adapters.items()
    }


def _encoder(module: Any) -> Mapping[str, torch.Tensor]:
    return {
        name.removeprefix("text_model."): tensor.detach()
        for name, tensor in module.named_parameters()
        if not name.startswith("text_projection")
    }
