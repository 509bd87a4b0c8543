"""What a tower would be to a model that never saw it: native, same-width, adapter, incompatible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from bridge.conditioning.kit import Kit
from bridge.towers import TextTower

Label = Literal["native", "same-width", "adapter", "incompatible"]


@dataclass(frozen=True)
class Swap:
    """A tower's label beside a model, and why, in words.

    Attributes:
        label: ``native``: one of the model's own towers. ``same-width``: fits the place of one as
            it is. ``adapter``: its token states need a map into the model's width.
            ``incompatible``: it has no token states to map.
        component: whose place it takes; "" where it fits none.
    """

    label: Label
    component: str
    reason: str


def label_swap(tower: TextTower, kit: Kit, modules: Sequence[Any]) -> Swap:
    """The label of ``tower`` for the model of ``kit``, whose own towers are ``modules``."""
    uses = [use for use in kit.recipe.towers if use.layer is not None]
    own = [
        (use, spec, module)
        for use, spec, module in zip(kit.recipe.towers, kit.specs, modules, strict=True)
        if use in uses
    ]
    for use, _, module in own:
        if same_weights(tower.module, module):
            return Swap("native", use.component, f"the weights of {use.component}")
    if not tower.feeds_cross_attention:
        return Swap(
            "incompatible",
            "",
            f"{tower.name} was trained for its pooled state alone, so it cannot feed "
            "cross-attention without a trained adapter",
        )
    for use, spec, _ in own:
        fits_pooled = not use.pooled or spec.pooled_width == tower.spec.pooled_width
        if spec.width == tower.spec.width and fits_pooled:
            return Swap("same-width", use.component, f"as wide as {use.component} ({spec.width})")
    widths = ", ".join(f"{use.component} {spec.width}" for use, spec, _ in own)
    return Swap("adapter", "", f"{tower.spec.width} wide, where the model has {widths}")


def same_weights(a: Any, b: Any) -> bool:
    """Whether two text modules have the same encoder, whatever their class says of projections.

    Values are compared, not fingerprints: those also name the class's config.
    """
    left, right = _encoder(a), _encoder(b)
    return left.keys() == right.keys() and all(
        left[name].shape == right[name].shape
        and torch.equal(left[name].float().cpu(), right[name].float().cpu())
        for name in left
    )


def _encoder(module: Any) -> Mapping[str, torch.Tensor]:
    return {
        name.removeprefix("text_model."): tensor.detach()
        for name, tensor in module.named_parameters()
        if not name.startswith("text_projection")
    }
