"""Conditioning by an adapter: the native token plan, the foreign tower's states, mapped.

The native tokenizer still deals a prompt to windows and says which place has which weight; only
the foreign tower is run. Emphasis acts on the mapped states, by the formulas that look at nothing
but the prompt's states and the empty prompt's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from bridge.adapters.adapter import Adapter
from bridge.adapters.reading import ForeignStates, NativeWindow, foreign_states
from bridge.encoding.emphasis import EMPHASES, Emphasis, EmphasisName, TowerInput
from bridge.encoding.joining import join_pooled
from bridge.encoding.planning import Joining
from bridge.encoding.tower_pass import Encoded, finish
from bridge.errors import OptionError, warn
from bridge.prompt import TokenPlan, TruncationWarning
from bridge.towers import TextTower

Plans = Sequence[Sequence[TokenPlan]]


@dataclass(frozen=True, eq=False)
class ForeignTower:
    """A foreign tower with its adapter, in the place of a model's own towers."""

    adapter: Adapter
    tower: TextTower

    def check(
        self, emphasis: EmphasisName, clip_skip: int | None, has_addons: bool, plans: Plans
    ) -> None:
        """Refuse, before a tower runs, what a mapped state has no meaning for.

        Raises OptionError.
        """
        if has_addons:
            raise OptionError(
                "Textual inversions and LoRAs act inside the model's own text towers, and with an "
                "adapter they are not run; leave them out."
            )
        if clip_skip:
            raise OptionError(
                "clip_skip takes another layer of the model's own towers, and an adapter stands "
                "for the recipe's; leave it out, or fit the adapter on another layer."
            )
        formula = EMPHASES[emphasis]
        for component, own in zip(self.adapter.natives, plans, strict=False):
            length = len(self.adapter.maps[component].empty)
            for plan in own:
                if plan.limit != length:
                    raise OptionError(
                        f"The adapter was fitted for {length} places in {component}, and the "
                        f"prompt is read into {plan.limit}; leave max_sequence_length out."
                    )
                if plan.is_weighted and not _is_linear(formula, plan):
                    raise OptionError(
                        f"The emphasis {emphasis!r} hides or changes words inside the model's own "
                        f"text towers for the weights of {plan.source!r}, and with an adapter "
                        "they are not run; take emphasis='comfy', 'a1111' or 'no_norm'."
                    )

    def read(self, plans: Plans, device: torch.device) -> dict[str, ForeignStates]:
        """The foreign tower's states of every window's text, on ``device``.

        Text that is too long for the foreign tower raises a ``TruncationWarning``.
        """
        texts = [
            text
            for own in plans
            for plan in own
            for window in plan.windows
            if (text := NativeWindow.of(plan, window).text.text)
        ]
        found = foreign_states(self.tower, texts, self.adapter.layers, device)
        for text, reading in found.items():
            if reading.cut:
                warn(
                    TruncationWarning,
                    f"{reading.cut} tokens do not fit the {self.tower.spec.context} of "
                    f"{self.tower.name}, so the end of this text is not seen: {text!r:.120}",
                )
        return found

    def encode(
        self,
        component: str,
        plans: Sequence[TokenPlan],
        how: Joining,
        readings: Mapping[str, ForeignStates],
        device: torch.device,
    ) -> Encoded:
        """As ``tower_pass.encode_plans``, for the native tower ``component``; float32."""
        own = self.adapter.maps[component].to(device)
        places: dict[NativeWindow, int] = {}
        for plan in plans:
            for window in plan.windows:
                places.setdefault(NativeWindow.of(plan, window), len(places))
        states, pooled = own(list(places), readings)
        before, found, found_pooled = [], [], []
        figures: list[torch.Tensor] = []
        for plan in plans:
            at = [places[NativeWindow.of(plan, window)] for window in plan.windows]
            mine = states[at]
            filling = own.empty.expand(how.windows - len(at), -1, -1)
            known = {TowerInput.of(plan.empty): own.empty} | {
                TowerInput.of(window): state
                for window, state in zip(plan.windows, mine, strict=True)
            }
            extra = how.emphasis.rows(plan) if plan.is_weighted else ()
            beside = torch.stack([known[row] for row in extra]) if extra else mine[:0]
            empty = own.empty if how.long.uneven == "fill" else None
            base = torch.cat([mine, filling])
            joined, moved = finish(plan, base, beside, empty, how)
            before.append(base)
            found.append(joined)
            figures += moved
            if pooled is not None:
                found_pooled.append(join_pooled(pooled[at], how.long))
        return Encoded.of(
            plans,
            torch.stack(found),
            torch.stack(found_pooled) if found_pooled else None,
            torch.stack(before) if figures else None,
            figures,
        )


def _is_linear(emphasis: Emphasis, plan: TokenPlan) -> bool:
    """Whether a formula needs no states but the prompt's own and the empty prompt's."""
    known = {TowerInput.of(plan.empty), *map(TowerInput.of, plan.windows)}
    own = all(emphasis.own(window) == TowerInput.of(window) for window in plan.windows)
    return own and set(emphasis.rows(plan)) <= known
