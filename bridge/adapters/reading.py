"""What a foreign tower gives for a text, and the inputs that a map makes native states of.

Two tokenizers cut one text differently, so tokens are matched by the characters that they cover: a
token takes the mean of the other tower's states, weighted by how many of its characters each
covers. Where several tokens share one span (a pictograph is often four byte tokens), each takes an
equal part of it in turn; where a token begins inside a character that the one before it has begun
(byte-level vocabularies merge a pictograph's last byte with a comma), it counts for the rest. So a
text cut alike by both is matched one to one.

The places of a native window fall into kinds, each with a map of its own:

=========  =====================================================================================
before     BOS: in a causal tower it has seen nothing but itself, so it is the native tower's own
           state of the empty prompt, exact and stored in the adapter
content    a token: the foreign states of the characters that it covers, of several layers, and
           its place
eos        the first state that has seen the whole prompt, so from a summary of it: the foreign
           tower's last token, the mean of its tokens, and its pooled state where it has one
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
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from bridge.encoding.tower_pass import check_finite
from bridge.prompt import Token, TokenPlan, Window
from bridge.towers import TEXT_FAMILIES, Layer

Span = tuple[float, float]
PLACE_WIDTH = 16
KINDS = ("content", "eos", "padding")
_BATCH = 32


# ---------------------------------------------------------------- alignment by characters


@dataclass(frozen=True)
class WindowText:
    """The text that a window's content tokens stand for, and each one's span in it.

    Attributes:
        text: without the dialect's syntax, words parted by one space; "" for an empty window.
        spans: one for each content token, in order; parts of a character where several share one.
    """

    text: str
    spans: tuple[Span, ...]


def window_text(source: str, window: Window) -> WindowText:
    """What a window reads of a prompt, put together from its tokens' places in ``source``."""
    content = [token for token in window.tokens if not token.special]
    text, spans = "", []
    last: Token | None = None
    covered = 0
    for (start, end), same in groupby(content, key=lambda token: (token.start, token.end)):
        tokens = list(same)
        start, covered = max(start, covered), max(end, covered)
        piece = source[start:end].strip()
        if piece and last is not None and _parted(source, last, tokens[0]):
            text += " "
        spans += parted((len(text), len(text) + len(piece)), len(tokens))
        text += piece
        last = tokens[-1] if piece else last
    return WindowText(text, tuple(spans))


def parted(span: Span, count: int) -> list[Span]:
    """A span in ``count`` equal parts."""
    start, end = span
    step = (end - start) / count
    return [(start + k * step, start + (k + 1) * step) for k in range(count)]


def unshared(spans: Sequence[Span]) -> list[Span]:
    """Spans of tokens in order as spans that do not overlap: a run of equal ones as equal parts,
    one that begins inside the one before as what comes after that."""
    found: list[Span] = []
    covered = 0.0
    for (start, end), same in groupby(spans):
        start = max(start, covered) if end > covered else start
        covered = max(end, covered)
        found += parted((start, end), len(list(same)))
    return found


def overlap_weights(spans: Sequence[Span], others: Sequence[Span]) -> Tensor:
    """How much each of the other tokens counts for each token.

    Args:
        spans: N spans of characters.
        others: M spans in the same text, at least one.

    Returns:
        ``(N, M)`` float32, rows that sum to 1: in proportion to the length of the overlap. A
        span that overlaps none takes the nearest, and shares alike between those equally near.
    """
    own = torch.tensor(spans, dtype=torch.float64).reshape(-1, 2)
    other = torch.tensor(others, dtype=torch.float64).reshape(-1, 2)
    low = torch.maximum(own[:, None, 0], other[None, :, 0])
    high = torch.minimum(own[:, None, 1], other[None, :, 1])
    # Above 0 a length in common, below 0 the gap between; rounding must not pass for an overlap.
    common = high - low
    overlap = torch.where(common > 1e-9, common, 0.0)
    nearest = (common >= common.amax(1, keepdim=True) - 1e-9).double()
    weights = torch.where((overlap > 0).any(1, keepdim=True), overlap, nearest)
    return (weights / weights.sum(1, keepdim=True)).float()


def _parted(source: str, before: Token, after: Token) -> bool:
    """Whether white space goes between two tokens' texts.

    Text of two weights that touches (``cat(dog:1.2)``) is cut there by the model's own tokenizer
    as by a space; a comma after a bracket is not moved away from its word.
    """
    if before.word == after.word:
        return False
    gap = source[before.end : after.start]
    return any(map(str.isspace, gap)) or (
        source[before.end - 1].isalnum() and source[after.start].isalnum()
    )


# ---------------------------------------------------------------- what the foreign tower gives


@dataclass(frozen=True)
class NativeWindow:
    """A native window whose states are wanted, and its text."""

    window: Window
    text: WindowText

    @classmethod
    def of(cls, plan: TokenPlan, window: Window) -> NativeWindow:
        return cls(window, window_text(plan.source, window))


@dataclass(frozen=True, eq=False)
class ForeignStates:
    """A foreign tower's states of one text.

    Attributes:
        states: ``(T, F)`` float32: several layers side by side, the main one first.
        width: W, that of one layer.
        content: places of the tokens that stand for text; the last token's if there are none.
        spans: their spans in the text, no two alike.
        last: the place of the last token, padding left out.
        end: the last place whose state the tower gives alike in any batch.
        pooled: ``(P,)``; P is 0 where the tower has none.
        cut: how many tokens did not fit the tower.
    """

    states: Tensor
    width: int
    content: tuple[int, ...]
    spans: tuple[Span, ...]
    last: int
    end: int
    pooled: Tensor
    cut: int

    @property
    def summary(self) -> Tensor:
        """``(S,)``: of the whole text the main layer's last state, which has seen all of it, and
        the pooled state; then the last state of other layers and the mean of each layer's, which
        has an equal part of every token."""
        last, mean = self.states[self.last], self.states[list(self.content)].mean(0)
        return torch.cat([last[: self.width], self.pooled, last[self.width :], mean])

    @property
    def main(self) -> int:
        """How many entries of the summary are of the main layer's last state and pooled."""
        return self.width + len(self.pooled)


@torch.no_grad()
def foreign_states(
    tower: Any, texts: Sequence[str], layers: Sequence[Layer], device: torch.device
) -> dict[str, ForeignStates]:
    """What ``tower`` gives for each different text, in batches; the result is on ``device``.

    Args:
        tower: a ``TextTower``.
        texts: B texts.
        layers: those whose token states are taken, side by side; the main one first.
    """
    found: dict[str, ForeignStates] = {}
    different = list(dict.fromkeys(texts))
    for start in range(0, len(different), _BATCH):
        part = different[start : start + _BATCH]
        batch, out = tower.tokenize(part), tower.encode(part, layers=tuple(layers))
        hidden = torch.cat([state.to(device, torch.float32) for state in out.hidden], dim=-1)
        pooled = None if out.pooled is None else out.pooled.to(device, torch.float32)
        check_finite(
            [hidden] if pooled is None else [hidden, pooled],
            f"{tower.name} gives numbers that are not finite (NaN or infinity) for {part[0]!r:.80} "
            "or a text beside it. Its weights are damaged, or too large for its dtype: fetch them "
            "again, or open it in float32.",
        )
        # A family that is always filled up has states of its padding, alike in any batch.
        padded = TEXT_FAMILIES[tower.family].rule.fill
        for row, text in enumerate(part):
            last = int(batch.mask[row].sum()) - 1
            places = [at for at, span in enumerate(batch.offsets[row]) if span is not None]
            spans = [span for span in batch.offsets[row] if span is not None]
            content = tuple(places) or (last,)
            found[text] = ForeignStates(
                states=hidden[row],
                width=out.hidden[0].shape[-1],
                content=content,
                spans=tuple(unshared(spans)) or ((0.0, float(len(text))),),
                last=last,
                end=hidden.shape[1] - 1 if padded else last,
                pooled=hidden.new_zeros(0) if pooled is None else pooled[row],
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


def aligned_states(places: Places, text: WindowText, reading: ForeignStates) -> Tensor:
    """The foreign states that stand at each place of a window with content.

    Returns:
        ``(T, F)``: zeros for what is before the content, the states of the same characters for
        content, and for place d after it the state d places after the foreign last token, if any.
    """
    weights = overlap_weights(text.spans, reading.spans).to(reading.states)
    content = weights @ reading.states[list(reading.content)]
    after = range(places.padding.stop - places.content.stop)
    rest = reading.states[[min(reading.last + d, reading.end) for d in after]]
    return torch.cat([content.new_zeros(places.content.start, content.shape[1]), content, rest])


def aligned_batch(windows: Sequence[NativeWindow], readings: Sequence[ForeignStates]) -> Tensor:
    """``(N, T, F)``: ``aligned_states`` of N windows with content."""
    return torch.stack(
        [
            aligned_states(Places.of(each.window), each.text, reading)
            for each, reading in zip(windows, readings, strict=True)
        ]
    )


def inputs_of(places: Places, text: WindowText, reading: ForeignStates) -> dict[str, Tensor]:
    """The inputs of each kind's map for one window with content.

    Returns:
        ``content (n, F + 16)``, and ``eos``, ``padding``: ``(m, W + S + 32)``; what is of the main
        layer comes first.
    """
    own, width = aligned_states(places, text, reading), reading.width
    here = own[places.content.start : places.content.stop]
    code = place_code(places.content).to(own)
    found = {"content": torch.cat([here[:, :width], code, here[:, width:]], dim=1)}
    summary, more = reading.summary.split([reading.main, len(reading.summary) - reading.main])
    for kind in ("eos", "padding"):
        at = places[kind]
        after = range(at.start - places.content.stop, at.stop - places.content.stop)
        found[kind] = torch.cat(
            [
                own[at.start : at.stop, :width],
                summary.expand(len(at), -1),
                place_code(at).to(own),
                place_code(after).to(own),
                more.expand(len(at), -1),
            ],
            dim=1,
        )
    return found


def groups_of(reading: ForeignStates) -> dict[str, tuple[tuple[int, ...], ...]]:
    """The widths of the blocks of one unit that each kind's inputs are made of, in two groups:
    what is of the main layer, which comes first, and what is of the others."""
    width, pooled = reading.width, len(reading.pooled)
    layers = (width,) * (reading.states.shape[1] // width)
    summary = (width, pooled) if pooled else (width,)
    tail = ((width, *summary, PLACE_WIDTH, PLACE_WIDTH), (*layers[1:], *layers))
    return {
        "content": ((width, PLACE_WIDTH), layers[1:]),
        "eos": tail,
        "padding": tail,
        "pooled": (summary, (*layers[1:], *layers)),
    }


def place_code(places: Sequence[int]) -> Tensor:
    """Sines and cosines of places ``(N, 16)`` (Vaswani et al. 2017, section 3.5)."""
    at = torch.tensor(list(places), dtype=torch.float32)[:, None]
    half = PLACE_WIDTH // 2
    angles = at / 10_000 ** (torch.arange(half, dtype=torch.float32) / half)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
