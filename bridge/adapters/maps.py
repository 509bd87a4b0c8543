"""From a foreign tower's readings to the states that one native tower would have given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bridge.adapters.reading import (
    KINDS,
    ForeignStates,
    NativeWindow,
    Places,
    aligned_batch,
    inputs_of,
)
from bridge.adapters.regression import LinearMap, RandomFeatures
from bridge.adapters.resampler import Resampler, memory_of


@dataclass(frozen=True, eq=False)
class TowerMap:
    """What stands for one native tower.

    Attributes:
        linear: ``content``, ``eos``, ``padding`` and, if the recipe has it, ``pooled`` -> its map.
        empty: the native states of the empty prompt, ``(T, D)``.
        empty_pooled: its pooled state ``(P,)``, or None.
        features: what the inputs of these maps are widened by first; none for a linear map.
        resampler: what adds to the maps, or None.
    """

    linear: Mapping[str, LinearMap]
    empty: Tensor
    empty_pooled: Tensor | None = None
    features: Mapping[str, RandomFeatures] = field(default_factory=dict)
    resampler: Resampler | None = None

    @torch.no_grad()
    def __call__(
        self, windows: Sequence[NativeWindow], readings: Mapping[str, ForeignStates]
    ) -> tuple[Tensor, Tensor | None]:
        """Token states ``(N, T, D)`` and pooled states ``(N, P)`` of N windows, float32."""
        states = self.empty.repeat(len(windows), 1, 1)
        pooled = None if self.empty_pooled is None else self.empty_pooled.repeat(len(windows), 1)
        full = [at for at, each in enumerate(windows) if each.text.text]
        if not full:
            return states, pooled
        own = [readings[windows[at].text.text] for at in full]
        places = [Places.of(windows[at].window) for at in full]
        base = states[full]
        rows = [
            inputs_of(p, windows[at].text, r) for at, p, r in zip(full, places, own, strict=True)
        ]
        for kind in KINDS:
            counts = [len(p[kind]) for p in places]
            mapped = self.mapped(kind, torch.cat([row[kind] for row in rows])).split(counts)
            for at, (here, values) in enumerate(zip(places, mapped, strict=True)):
                base[at, here[kind].start : here[kind].stop] = values
        summaries = torch.stack([reading.summary for reading in own])
        base_pooled = None if pooled is None else self.mapped("pooled", summaries)
        if self.resampler is not None:
            aligned = aligned_batch([windows[at] for at in full], own)
            base, base_pooled = self.resampler(base, base_pooled, aligned, *memory_of(own))
            for at, here in enumerate(places):
                base[at, : here.content.start] = self.empty[: here.content.start]
        states[full] = base
        if pooled is not None and base_pooled is not None:
            pooled[full] = base_pooled
        return states, pooled

    def mapped(self, kind: str, inputs: Tensor) -> Tensor:
        """The closed form of one kind of place, ``(n, ...)`` to ``(n, D)``."""
        features = self.features.get(kind)
        return self.linear[kind](inputs if features is None else features(inputs))

    def to(self, device: torch.device) -> TowerMap:
        """The same on another device."""
        return replace(
            self,
            linear={
                kind: LinearMap(each.weight.to(device), each.bias.to(device))
                for kind, each in self.linear.items()
            },
            empty=self.empty.to(device),
            empty_pooled=None if self.empty_pooled is None else self.empty_pooled.to(device),
            features={kind: each.to(device) for kind, each in self.features.items()},
            resampler=None if self.resampler is None else self.resampler.on(device),
        )
