"""Soft tokens into the chat: each `<image>` mark becomes as many positions as its picture has.

Expansion works on ids and needs no tensor, so the length of a prompt is known before any
model runs. Rows of different lengths are padded on the left, where generation goes on from
the right end of every row; positions count real tokens only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from bridge.errors import PromptError


@dataclass(frozen=True)
class Spliced:
    """A batch ready for the language model: T positions, D wide."""

    inputs_embeds: torch.Tensor  # (B, T, D)
    attention_mask: torch.Tensor  # (B, T) int64, 0 on padding
    position_ids: torch.Tensor  # (B, T) int64, 0 on padding


def expand_placeholder(ids: Sequence[int], image_id: int, n_soft: int) -> list[int]:
    """Repeat every ``image_id`` ``n_soft`` times; all other ids stay."""
    out: list[int] = []
    for token in ids:
        out.extend([image_id] * n_soft if token == image_id else [token])
    return out


def left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids to (B, T) ids and the (B, T) attention mask, padded on the left."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for index, row in enumerate(rows):
        if row:
            ids[index, -len(row) :] = torch.tensor(row, dtype=torch.long)
            mask[index, -len(row) :] = 1
    return ids, mask


def splice(
    embed: nn.Module,
    ids: torch.Tensor,
    mask: torch.Tensor,
    image_id: int,
    soft: Sequence[torch.Tensor] | torch.Tensor,
) -> Spliced:
    """Word embeddings of ``ids`` (B, T), with ``soft`` at the image positions.

    ``soft`` is (N, M, D), or N tensors (M_i, D) where pictures differ in length; pictures are
    taken in reading order. Raises PromptError, giving both counts, when they do not exactly
    fill the places of ``image_id``.
    """
    places = (ids == image_id) & (mask == 1)
    lengths = [len(each) for each in soft]
    if int(places.sum()) != sum(lengths):
        shown = " and ".join(map(str, sorted(set(lengths))))
        raise PromptError(
            f"the chat has {int(places.sum())} image positions, but {len(lengths)} picture(s) of "
            f"{shown} soft tokens make {sum(lengths)}; give one <image> mark a picture"
        )
    # Some checkpoints number <image> past the end of the embedding table, so look up 0 there.
    words = embed(ids.masked_fill(ids == image_id, 0))
    flat = torch.cat(list(soft)).to(words.dtype)
    filled = words.masked_scatter(places.unsqueeze(-1), flat)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return Spliced(filled, mask, positions)
