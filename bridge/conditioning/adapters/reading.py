"""What a foreign tower gives for a text, and the inputs that a map makes native states of.

The places of a native window fall into kinds, each with a map of its own:

=========  =====================================================================================
before     BOS: in a causal tower it has seen nothing but itself, so it is the native tower's own
           state of the empty prompt, exact and stored in the adapter
content    a token: the foreign states of the characters that it covers, and its place
eos        the first state that has seen the whole prompt, so from the foreign one that has: its
           last token, and its pooled state (the mean of its tokens where there is none)
padding    d places after EOS: the foreign state d places after its last token where the foreign
           tower sees its padding as CLIP does, else the last token's; the prompt's summary as for
           EOS; the place and d, since a padding state drifts with both
=========  =====================================================================================

A window without content is the native tower's own, stored: the negative prompt is empty as a rule,
and guidance multiplies its error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bridge.conditioning.adapters.alignment import (
    Span,
    WindowText,
    overlap_weights,
    unshared,
)
from bridge.prompt import Window
from bridge.towers import TEXT_FAMILIES, Layer

PLACE_WIDTH = 16
KINDS = ("content", "eos", "padding")
_BATCH = 32


@dataclass(frozen=True, eq=False)
class Reading:
    """A foreign tower's states of one text.

    Attributes:
        states: ``(T, F)`` float32.
        content: places of the tokens that stand for text; the last token's if there are none.
        spans: their spans in the text, no two alike.
        last: the place of the last token, padding left out.
        end: the last place whose state the tower gives alike in any batch.
        pooled: ``(P,)``, or the mean of the content's states where the tower has none.
        cut: how many tokens did not fit the tower.
    """

    states: Tensor
    content: tuple[int, ...]
    spans: tuple[Span, ...]
    last: int
    end: int
    pooled: Tensor
    cut: int

    @property
    def summary(self) -> Tensor:
        """``(F + P,)``: what has seen the whole text."""
        return torch.cat([self.states[self.last], self.pooled])


@torch.no_grad()
def read_texts(
    tower: Any, texts: Sequence[str], layer: Layer, device: torch.device
) -> dict[str, Reading]:
    """What ``tower`` gives for each different text, in batches; the result is on ``device``.

    Args:
        tower: a ``TextTower``.
        texts: B texts.
        layer: the layer whose token states are taken.
    """
    found: dict[str, Reading] = {}
    different = list(dict.fromkeys(texts))
    for start in range(0, len(different), _BATCH):
        part = different[start : start + _BATCH]
        batch, out = tower.tokenize(part), tower.encode(part, layers=(layer,))
        hidden = out.hidden[0].to(device, torch.float32)
        pooled = None if out.pooled is None else out.pooled.to(device, torch.float32)
        # A family that is always filled up has states of its padding, alike in any batch.
        padded = TEXT_FAMILIES[tower.family].rule.fill
        for row, text in enumerate(part):
            last = int(batch.mask[row].sum()) - 1
            places = [at for at, span in enumerate(batch.offsets[row]) if span is not None]
            spans = [span for span in batch.offsets[row] if span is not None]
            content = tuple(places) or (last,)
            found[text] = Reading(
                states=hidden[row],
                content=content,
                spans=tuple(unshared(spans)) or ((0.0, float(len(text))),),
                last=last,
                end=hidden.shape[1] - 1 if padded else last,
                pooled=hidden[row][list(content)].mean(0) if pooled is None else pooled[row],
                cut=batch.cut[row],
            )
    return found


@dataclass(frozen=True)
class Places:
    """How the T places of a native window fall into kinds."""

    content: range
    eos: range
    padding: range

    @classmethod
    def of(cls, window: Window) -> Places:
        content = [at for at, token in enumerate(window.tokens) if not token.special]
        start, stop = (content[0], content[-1] + 1) if content else (0, 0)
        return cls(
            range(start, stop), range(stop, window.used), range(window.used, len(window.ids))
        )

    def __getitem__(self, kind: str) -> range:
        return {"content": self.content, "eos": self.eos, "padding": self.padding}[kind]


def inputs_of(places: Places, text: WindowText, reading: Reading) -> dict[str, Tensor]:
    """The inputs of each kind's map for one window with content.

    Returns:
        ``content (n, F + 16)``, and ``eos``, ``padding``: ``(m, 2 F + P + 32)``.
    """
    weights = overlap_weights(text.spans, reading.spans).to(reading.states)
    states = weights @ reading.states[list(reading.content)]
    found = {"content": torch.cat([states, place_code(places.content).to(states)], dim=1)}
    for kind in ("eos", "padding"):
        own = places[kind]
        after = range(own.start - places.content.stop, own.stop - places.content.stop)
        at = [min(reading.last + d, reading.end) for d in after]
        found[kind] = torch.cat(
            [
                reading.states[at],
                reading.summary.expand(len(own), -1),
                place_code(own).to(states),
                place_code(after).to(states),
            ],
            dim=1,
        )
    return found


def blocks_of(width: int, pooled: int) -> dict[str, tuple[int, ...]]:
    """The widths of the blocks that each kind's inputs are made of; states come first."""
    tail = (width, width, pooled, PLACE_WIDTH, PLACE_WIDTH)
    return {
        "content": (width, PLACE_WIDTH),
        "eos": tail,
        "padding": tail,
        "pooled": (width, pooled),
    }


def place_code(places: Sequence[int]) -> Tensor:
    """Sines and cosines of places ``(N, 16)`` (Vaswani et al. 2017, section 3.5)."""
    at = torch.tensor(list(places), dtype=torch.float32)[:, None]
    half = PLACE_WIDTH // 2
    angles = at / 10_000 ** (torch.arange(half) / half)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
