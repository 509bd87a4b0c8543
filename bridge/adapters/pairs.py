"""Pairs to fit on: what the native towers give for a prompt, and what a map is to make it of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bridge.adapters.reading import ForeignStates, NativeWindow, foreign_states
from bridge.encoding.emphasis import EMPHASES
from bridge.encoding.model import TextModel, Towers
from bridge.encoding.options import read_rules
from bridge.encoding.planning import Joining
from bridge.encoding.tower_pass import check_rows, encode_plans, tower_of
from bridge.prompt import parse, plan_many
from bridge.towers import LAST, Layer, TextTower

BATCH = 32
_PLAIN = read_rules({"dialect": "plain"})


@dataclass(frozen=True, eq=False)
class Native:
    """One native tower's windows of B prompts, and what it gives for them, float32.

    Attributes:
        windows: B of them.
        states: ``(B, T, D)``.
        pooled: ``(B, P)``, or None where the recipe takes none of it.
    """

    windows: tuple[NativeWindow, ...]
    states: Tensor
    pooled: Tensor | None


def native_states(model: TextModel, towers: Towers, prompts: Sequence[str]) -> dict[str, Native]:
    """What each native tower gives for plain prompts, cut off at its context."""
    parsed = tuple(parse(prompt, "plain") for prompt in prompts)
    found = {}
    uses = zip(model.recipe.towers, model.readers(), strict=True)
    for at, (use, reader) in enumerate(uses):
        own = plan_many(parsed, reader, use.component, _PLAIN.long_prompt.split)
        with torch.no_grad():
            encoded = encode_plans(
                tower_of(model, towers, at),
                own,
                [use.layer or LAST] * len(own),
                Joining(EMPHASES["none"], _PLAIN.long_prompt, 1, own[0].limit),
            )
        check_rows([own], [encoded.limits], "none")
        found[use.component] = Native(
            tuple(NativeWindow.of(plan, plan.windows[0]) for plan in own),
            encoded.states.float(),
            encoded.pooled.float() if use.pooled and encoded.pooled is not None else None,
        )
    return found


def foreign_readings(
    tower: Any, natives: dict[str, Native], layers: Sequence[Layer], device: torch.device
) -> dict[str, ForeignStates]:
    """What the foreign tower gives for the texts of native windows."""
    texts = [each.text.text for native in natives.values() for each in native.windows]
    return foreign_states(tower, [text for text in texts if text], layers, device)


@dataclass(frozen=True, eq=False)
class Batch:
    """The number of a batch's first prompt, and what both sides give for its prompts."""

    start: int
    natives: dict[str, Native]
    readings: dict[str, ForeignStates]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Where pairs to fit on come from: a model with its towers, and layers of a foreign one."""

    model: TextModel
    towers: Towers
    foreign: TextTower
    layers: tuple[Layer, ...]

    def batches(self, texts: Sequence[str]) -> Iterator[Batch]:
        for start in range(0, len(texts), BATCH):
            natives = native_states(self.model, self.towers, texts[start : start + BATCH])
            readings = foreign_readings(self.foreign, natives, self.layers, self.towers.device)
            yield Batch(start, natives, readings)
