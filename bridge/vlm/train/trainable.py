"""What is trained: which parameters, in which precision, and the loss of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from bridge.errors import OptionError
from bridge.training.lora import take_lora
from bridge.training.optimization import decay_groups
from bridge.vlm.lora import add_lora
from bridge.vlm.merge_embeddings import llm_logits, merge_embeddings
from bridge.vlm.model import BridgeVLM
from bridge.vlm.projectors import Grid
from bridge.vlm.train.batches import IGNORE_LABEL, Batch
from bridge.vlm.train.options import TrainOptions


@contextmanager
def trained_parts(vlm: BridgeVLM, options: TrainOptions) -> Iterator[None]:
    """Within the block, what is trained is in fp32, wants gradients, and has its LoRA.

    Half precision would round the small steps of training away. Afterwards dtypes and flags are
    as they were, and the LoRA is in the weights; it is dropped if the block failed. Raises
    OptionError for a projector with nothing to learn in stage 1.
    """
    projector: Any = vlm.projector
    if options.stage == 1 and not any(True for _ in projector.parameters()):
        raise OptionError(
            f"the projector {projector.kind!r} has nothing to learn; stage 1 needs another"
        )
    parameters = [*vlm.llm.parameters(), *projector.parameters()]
    before = [(p, p.dtype, p.requires_grad) for p in parameters]
    modes = {module: module.training for module in (projector, vlm.llm)}
    merge = False
    try:
        vlm.llm.requires_grad_(False)
        if options.lora is not None:
            alpha = options.lora_alpha or 2.0 * options.lora
            add_lora(vlm.llm, options.lora, alpha, options.seed)
        elif options.stage == 2:
            _in_fp32(vlm.llm)
        _in_fp32(projector)
        yield
        merge = True
    finally:
        take_lora(vlm.llm, merge=merge)
        for parameter, dtype, wanted in before:
            parameter.data = parameter.data.to(dtype)
            parameter.grad = None
            parameter.requires_grad_(wanted)
        for module, mode in modes.items():
            module.train(mode)


def _in_fp32(module: nn.Module) -> None:
    """Parameters only: buffers, such as rotary frequencies, keep the precision they need."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(torch.float32)
        parameter.requires_grad_(True)


def groups(vlm: BridgeVLM, options: TrainOptions) -> list[dict[str, Any]]:
    """AdamW's groups of both parts; biases and norms do not decay, as in LLaVA's trainer."""
    projector: Any = vlm.projector
    parts = zip((projector, vlm.llm), options.rates, strict=True)
    return [
        group
        for part, rate in parts
        for group in decay_groups(dict(part.named_parameters()), rate, options.weight_decay)
    ]


def set_mode(vlm: BridgeVLM, options: TrainOptions, *, training: bool) -> None:
    """Dropout, where a model has any, only in what is trained."""
    projector: Any = vlm.projector
    projector.train(training)
    vlm.llm.train(training and options.stage == 2)


class Trainee(nn.Module):
    """`BridgeVLM` with its tower left out: the tower is frozen, its states are the input.

    ``layout`` is the grid that the states of a view lie in, as projectors take it.
    """

    def __init__(self, vlm: BridgeVLM, layout: Grid | None) -> None:
        super().__init__()
        self.projector: Any = vlm.projector
        self.llm = vlm.llm
        self._aspect, self._image_id, self._layout = vlm.aspect, vlm.image_token_id, layout

    def forward(self, batch: Batch) -> torch.Tensor:
        """The summed cross-entropy of every learnt token, fp32."""
        soft = self._soft(batch)
        table = self.llm.get_input_embeddings()
        rows = merge_embeddings(table, batch.ids, batch.mask, self._image_id, soft)
        targets = F.pad(batch.labels[:, 1:], (0, 1), value=IGNORE_LABEL)
        learnt = (targets != IGNORE_LABEL).any(0).nonzero()[:, 0]
        loss = F.cross_entropy(
            llm_logits(self.llm, rows, learnt).flatten(0, 1).float(),
            targets[:, learnt].flatten(),
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
