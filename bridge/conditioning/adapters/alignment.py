"""Which states of one tower stand for a token of another: alignment by characters.

Two tokenizers cut one text differently, so tokens are matched by the characters that they cover: a
token takes the mean of the other tower's states, weighted by how many of its characters each
covers. Where several tokens share one span (a pictograph is often four byte tokens), each takes an
equal part of it in turn; where a token begins inside a character that the one before it has begun
(byte-level vocabularies merge a pictograph's last byte with a comma), it counts for the rest. So a
text cut alike by both is matched one to one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from bridge.prompt import Token, Window

Span = tuple[float, float]


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
