"""Which parts of a bridge are trained, in which precision, and how they are left afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bridge.errors import OptionError
from bridge.vlm.model import BridgeVLM
from bridge.vlm.train.lora import add_lora, take_lora
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
    """AdamW's two groups; ``rate`` is the highest learning rate of each."""
    projector: Any = vlm.projector
    parts = zip((projector, vlm.llm), options.rates, strict=True)
    found = [
        {"params": [p for p in part.parameters() if p.requires_grad], "rate": rate}
        for part, rate in parts
    ]
    return [group for group in found if group["params"]]


def set_mode(vlm: BridgeVLM, options: TrainOptions, *, training: bool) -> None:
    """Dropout, where a model has any, only in what is trained."""
    projector: Any = vlm.projector
    projector.train(training)
    vlm.llm.train(training and options.stage == 2)
