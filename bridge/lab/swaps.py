"""A study's towers beside its model: which of them can draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.adapters import Adapter, Swap
from bridge.adapters.swap import SAME_WIDTH, read_adapter
from bridge.errors import OptionError
from bridge.lab.cache_keys import module_key
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


def drawable(
    towers: Sequence[TextTower], swaps: Sequence[Swap], adapters: Mapping[str, Adapter]
) -> dict[str, Swapped]:
    """The foreign towers that the model can draw with: those of its widths in the place of the
    first that they fit, and those with an adapter."""
    found = {}
    for tower, swap in zip(towers, swaps, strict=True):
        if tower.name in adapters:
            adapter = adapters[tower.name]
            mark = f"{module_key(tower.module)} {adapter.hash}"
            found[tower.name] = Swapped({"towers": tower, "adapter": adapter}, mark)
        elif swap.label == SAME_WIDTH:
            place = {swap.components[0]: tower}
            mark = f"{module_key(tower.module)} {swap.components}"
            found[tower.name] = Swapped({"towers": place}, mark)
    return found


def read_adapters(adapters: object, towers: Sequence[str]) -> dict[str, Adapter]:
    """``{tower name: Adapter or its file}``, for some of ``towers``.

    Raises OptionError, and what ``load_adapter`` does.
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
