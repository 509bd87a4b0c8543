"""Soft tokens into the chat: each `<image>` mark becomes as many positions as its picture has.

Expansion works on ids and needs no tensor, so the length of a prompt is known before any
model runs. Rows of different lengths are padded, on the left for generation, which goes on from
the right end of every row; positions count real tokens only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal

import torch
from torch import nn

from bridge.errors import OptionError, PromptError

Side = Literal["left", "right"]


@dataclass(frozen=True)
class LlmInputs:
    """A batch ready for the language model: T positions, D wide."""

    inputs_embeds: torch.Tensor  # (B, T, D)
    attention_mask: torch.Tensor  # (B, T) int64, 0 on padding
    position_ids: torch.Tensor  # (B, T) int64, 0 on padding at the left, the last at the right


def expand_placeholder(ids: Sequence[int], image_id: int, n_soft: int | Sequence[int]) -> list[int]:
    """Repeat every ``image_id`` as often as its picture has soft tokens; all other ids stay.

    ``n_soft`` is one number for each mark, or one for all. Raises PromptError, giving both
    counts, when there are not as many marks as numbers.
    """
    n_marks = sum(token == image_id for token in ids)
    counts = [n_soft] * n_marks if isinstance(n_soft, int) else list(n_soft)
    if n_marks != len(counts):
        raise PromptError(
            f"the chat has {n_marks} image marks, but {len(counts)} pictures were given; give one "
            "<image> mark a picture"
        )
    left = iter(counts)
    out: list[int] = []
    for token in ids:
        out.extend([image_id] * next(left) if token == image_id else [token])
    return out


def pad_rows(
    rows: Sequence[Sequence[int]], pad_id: int, side: Side = "left"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids to (B, T) ids and the (B, T) attention mask, padded on one side."""
    if side not in ("left", "right"):
        raise OptionError(f"padding is {side!r}; it is 'left' or 'right'")
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for index, row in enumerate(rows):
        start = longest - len(row) if side == "left" else 0
        ids[index, start : start + len(row)] = torch.tensor(row, dtype=torch.long)
        mask[index, start : start + len(row)] = 1
    return ids, mask


def merge_embeddings(
    embed: nn.Module,
    ids: torch.Tensor,
    mask: torch.Tensor,
    image_id: int,
    soft: torch.Tensor | Sequence[torch.Tensor],
    source: object = "",
) -> LlmInputs:
    """Word embeddings of ``ids`` (B, T), with soft tokens at the image positions.

    ``soft`` is (N, M, D) for N pictures, or a list of N tensors (M_i, D). Pictures are taken in
    reading order. ``source`` says in an error where the soft tokens come from. Raises
    PromptError, giving both counts, when they do not exactly fill the places of ``image_id``.
    """
    places = (ids == image_id) & (mask == 1)
    n_places, n_soft = int(places.sum()), sum(len(each) for each in soft)
    if n_places != n_soft:
        each = ", ".join(str(len(one)) for one in soft)
        raise PromptError(
            f"the chat has {n_places} image positions, but {len(soft)} picture(s) of "
            f"{each} soft tokens make {n_soft}; give one <image> mark a picture"
            + (f" (a picture: {source})" if source else "")
        )
    # Some checkpoints number <image> past the end of the embedding table, so look up 0 there.
    words = embed(ids.masked_fill(ids == image_id, 0))
    if n_soft:
        flat = torch.cat(list(soft)).to(words)
        words = words.masked_scatter(places.unsqueeze(-1), flat)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return LlmInputs(words, mask, positions)


def llm_logits(llm: Any, rows: LlmInputs, keep: int | torch.Tensor = 0) -> torch.Tensor:
    """A language model's logits (B, T, V) of a batch.

    ``keep`` takes the last so many positions, or those of a tensor of indices; 0 takes all. A model
    that can computes no others: of a large vocabulary, logits are the largest tensor there is.
    """
    known = signature(llm.forward).parameters
    # A model of relative places (ALiBi) takes no positions; older ones give logits everywhere.
    options = {"position_ids": rows.position_ids, "logits_to_keep": keep}
    logits: torch.Tensor = llm(
        inputs_embeds=rows.inputs_embeds,
        attention_mask=rows.attention_mask,
        use_cache=False,
        **{name: value for name, value in options.items() if name in known},
    ).logits
    if isinstance(keep, int):
        return logits[:, -keep:]
    return logits if "logits_to_keep" in known else logits[:, keep]
