"""An adapter: what makes a foreign text tower feed a model that was trained with others."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from bridge.adapters.maps import TowerMap
from bridge.encoding.addons import AddOn
from bridge.errors import WeightsError
from bridge.towers import Layer, fingerprint

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class TowerCard:
    """How a tower is known again.

    Attributes:
        name: what it was called.
        width: of its token states.
        fingerprints: dtype -> its fingerprint in that dtype, so that a pipeline in half precision
            knows the tower that was loaded in full.
    """

    name: str
    width: int
    fingerprints: Mapping[str, str]

    @classmethod
    def of(cls, name: str, width: int, module: Any) -> TowerCard:
        own = {str(next(module.parameters()).dtype): fingerprint(module)}
        cast = {str(dtype): fingerprint(module, dtype) for dtype in _DTYPES}
        return cls(name, width, cast | own)

    def knows(self, module: Any) -> bool:
        """Whether the module is this tower."""
        return fingerprint(module) in self.fingerprints.values()

    @property
    def short(self) -> str:
        """Its name and fingerprint, for messages."""
        return f"{self.name} ({next(iter(self.fingerprints.values()))})"


@dataclass(frozen=True, eq=False, repr=False)
class Adapter:
    """Maps from one foreign tower to the native towers of one model.

    ``bridge.fit_adapter`` makes it, ``save`` writes it, ``bridge.load_adapter`` reads it, and
    ``bridge.condition(prompt, model=..., towers=..., adapter=...)`` uses it. It holds no module
    of the model's and changes none.

    Attributes:
        kind: ``ridge``, ``procrustes``, ``random-features`` or ``resampler``.
        recipe: the model's recipe.
        layers: the foreign layers whose states it takes, the main one first.
        foreign: the foreign tower.
        natives: the model's towers by component.
        maps: what stands for each of them.
        explained: for each of them and each kind of place, R² on the prompts held out of fitting.
        prompts: how many prompts it was fitted on.
        source: its file, if it has one.
    """

    kind: str
    recipe: str
    layers: tuple[Layer, ...]
    foreign: TowerCard
    natives: Mapping[str, TowerCard]
    maps: Mapping[str, TowerMap]
    explained: Mapping[str, Mapping[str, float]]
    prompts: int
    source: str = "fitted in this session"

    def __repr__(self) -> str:
        return (
            f"Adapter({self.kind}, {self.foreign.name} to {self.recipe}'s "
            f"{', '.join(self.natives)}, {self.prompts} prompts)"
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one safetensors file, whole or not at all, and return its path."""
        from bridge.adapters.storage import save_adapter

        return save_adapter(self, path)

    @cached_property
    def hash(self) -> str:
        """16 hex digits of its tensors."""
        from bridge.adapters.storage import tensors_of

        digest = hashlib.sha256(f"{self.kind}{self.recipe}{self.layers}".encode())
        for name, tensor in sorted(tensors_of(self).items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def account(self) -> AddOn:
        """What a conditioning's report says of it."""
        return AddOn(
            "adapter", f"{self.foreign.name} by {self.kind}", self.source, self.hash,
            (*self.natives,),
        )  # fmt: skip

    def to(self, device: torch.device) -> Adapter:
        """The same on another device."""
        return replace(self, maps={name: each.to(device) for name, each in self.maps.items()})

    def check_foreign(self, tower: Any) -> None:
        """Raise WeightsError unless ``tower`` is the one that it was fitted on."""
        if not self.foreign.knows(tower.module):
            raise WeightsError(
                f"The adapter ({self.source}) was fitted on the tower {self.foreign.short}, and "
                f"this is {tower.name} ({tower.fingerprint()}). Give that tower, or fit an "
                "adapter for this one with bridge.fit_adapter."
            )

    def check_natives(self, recipe: str, source: str, modules: Mapping[str, Any]) -> None:
        """Raise WeightsError unless the model has the towers that it was fitted for."""
        fault = None
        if recipe != self.recipe or {*modules} != {*self.natives}:
            fault = f"{source} is {recipe} with {', '.join(modules)}"
        else:
            strange = [name for name, m in modules.items() if not self.natives[name].knows(m)]
            if strange:
                now = ", ".join(f"{name} ({fingerprint(modules[name])})" for name in strange)
                fault = f"{source} has another {now}"
        if fault is not None:
            made_for = ", ".join(card.short for card in self.natives.values())
            raise WeightsError(
                f"The adapter from {self.foreign.short} ({self.source}) was fitted for "
                f"{self.recipe} with {made_for}, and {fault}. Fit one for this model with "
                "bridge.fit_adapter."
            )
