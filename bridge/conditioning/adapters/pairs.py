"""Pairs to fit on: what the native towers give for a prompt, and what a map is to make it of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bridge.conditioning.adapters.maps import Sought
from bridge.conditioning.adapters.reading import Reading, read_texts
from bridge.conditioning.emphasis import EMPHASES
from bridge.conditioning.kit import Kit, Towers
from bridge.conditioning.passes import Wanted, encode_plans
from bridge.conditioning.planning import plans_of
from bridge.conditioning.soundness import check_rows
from bridge.conditioning.wording import read_wording
from bridge.prompt import parse
from bridge.towers import Layer

_PLAIN = read_wording("plain", "none", "none", "truncate")


@dataclass(frozen=True, eq=False)
class Native:
    """One native tower's windows of B prompts, and what it gives for them, float32.

    Attributes:
        sought: B windows.
        states: ``(B, T, D)``.
        pooled: ``(B, P)``, or None where the recipe takes none of it.
    """

    sought: tuple[Sought, ...]
    states: Tensor
    pooled: Tensor | None


def native_states(kit: Kit, towers: Towers, prompts: Sequence[str]) -> dict[str, Native]:
    """What each native tower gives for plain prompts, cut off at its context."""
    parsed = tuple(parse(prompt, "plain") for prompt in prompts)
    plans = plans_of(kit, _PLAIN, parsed, (None, None), None)
    found = {}
    for i, (use, own) in enumerate(zip(kit.recipe.towers, plans, strict=True)):
        with torch.no_grad():
            encoded = encode_plans(
                use.architecture,
                towers.modules[i],
                [Wanted(plan, use.layer or Layer()) for plan in own],
                1,
                EMPHASES["none"],
                _PLAIN.long_prompt,
                length=own[0].limit,
                masked=use.masked or (kit.recipe.obeys_mask and kit.specs[i].attention_mask),
                device=towers.device,
            )
        check_rows([own], [encoded.faults], "none", "")
        found[use.component] = Native(
            tuple(Sought.of(plan, plan.windows[0]) for plan in own),
            encoded.states.float(),
            encoded.pooled.float() if use.pooled and encoded.pooled is not None else None,
        )
    return found


def foreign_readings(
    tower: Any, natives: dict[str, Native], layers: Sequence[Layer], device: torch.device
) -> dict[str, Reading]:
    """What the foreign tower gives for the texts of native windows."""
    texts = [each.text.text for native in natives.values() for each in native.sought]
    return read_texts(tower, [text for text in texts if text], layers, device)
