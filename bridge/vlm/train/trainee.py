"""What is trained, as one module: projector and language model, from a batch to its loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from bridge.vlm.model import BridgeVLM
from bridge.vlm.projectors import Grid
from bridge.vlm.splice import pad_rows, splice
from bridge.vlm.train.labels import IGNORE_LABEL, Encoded
from bridge.vlm.train.seen import Seen


@dataclass(frozen=True, eq=False)
class Batch:
    """Ragged conversations, padded on the right, and the states of their pictures."""

    ids: torch.Tensor  # (B, T) int64
    mask: torch.Tensor  # (B, T) int64, 0 on padding
    labels: torch.Tensor  # (B, T) int64, -100 where nothing is learnt
    states: torch.Tensor  # (V, N, D_vision), the views of all pictures in reading order
    counts: tuple[int, ...]  # views of each picture
    sizes: tuple[tuple[int, int], ...]  # height and width of each picture


def make_batch(rows: Sequence[Encoded], seen: Seen, pad_id: int, device: torch.device) -> Batch:
    """Rows as one batch on ``device``. Without any picture, ``states`` is empty: (0,)."""
    ids, mask = pad_rows([row.ids for row in rows], pad_id, "right")
    labels, _ = pad_rows([row.labels for row in rows], IGNORE_LABEL, "right")
    pictures = [picture for row in rows for picture in row.pictures]
    states = seen(pictures)
    return Batch(
        ids.to(device),
        mask.to(device),
        labels.to(device),
        torch.cat([each.to(device) for each in states])
        if states
        else torch.empty(0, dtype=torch.float32),
        tuple(len(each) for each in states),
        tuple(picture.size for picture in pictures),
    )


class Trainee(nn.Module):
    """`BridgeVLM` with its tower left out: the tower is frozen, its states are the input.

    ``layout`` is the grid that the states of a view lie in, as projectors take it.
    """

    def __init__(self, vlm: BridgeVLM, layout: Grid | None) -> None:
        super().__init__()
        self.projector: Any = vlm.projector
        self.llm = vlm.llm
        self._aspect, self._image_id, self._layout = vlm.aspect, vlm.image_token_id, layout
        self._known = frozenset(signature(self.llm.forward).parameters)

    def forward(self, batch: Batch) -> torch.Tensor:
        """The summed cross-entropy of every learnt token, fp32."""
        soft = self._soft(batch)
        table = self.llm.get_input_embeddings()
        rows = splice(table, batch.ids, batch.mask, self._image_id, soft)
        targets = F.pad(batch.labels[:, 1:], (0, 1), value=IGNORE_LABEL)
        options: dict[str, Any] = {"position_ids": rows.position_ids}
        # Logits of a large vocabulary are the largest tensor there is: only where one is learnt.
        wanted = (targets != IGNORE_LABEL).any(0).nonzero()[:, 0]
        if "logits_to_keep" in self._known:
            options["logits_to_keep"], targets = wanted, targets[:, wanted]
        logits = self.llm(
            inputs_embeds=rows.inputs_embeds,
            attention_mask=rows.attention_mask,
            use_cache=False,
            **{name: value for name, value in options.items() if name in self._known},
        ).logits
        loss = F.cross_entropy(
            logits.flatten(0, 1).float(),
            targets.flatten(),
            ignore_index=IGNORE_LABEL,
            reduction="sum",
        )
        if not len(batch.counts):
            # Processes that train together must each reach every parameter in every pass.
            loss = loss + 0.0 * sum(p.sum() for p in self.projector.parameters())
        return loss

    def _soft(self, batch: Batch) -> list[torch.Tensor]:
        """Soft tokens of each picture, as `BridgeVLM.picture_tokens` gives them."""
        if not len(batch.counts):
            return []
        weight = next(self.projector.parameters(), batch.states)
        parts = self.projector(batch.states.to(weight), self._layout).split(batch.counts)
        pairs = zip(parts, batch.sizes, strict=True)
        return [self._aspect.pack(part, size) for part, size in pairs]
