"""LoRA (Hu et al. 2021): low-rank updates of a language model's linear layers.

Small enough to have here, so that it needs no further package: two matrices beside each layer.
They are added to its weight at the end, so that what is saved is a plain checkpoint, or saved by
themselves (`bridge.vlm.lora_files`), so that the model they stand on need not be. As in LLaVA,
every linear layer gets one but the output head, unless some are named; A is random, B zero, so
training starts from the model as it is.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from bridge.errors import UnsupportedModelError
from bridge.runtime import building


class LoraLinear(nn.Module):
    """``base(x) + alpha / rank * B A x``, ``base`` frozen, A (rank, in) and B (out, rank) fp32."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base
        start = torch.empty(rank, base.in_features, dtype=torch.float32)
        nn.init.kaiming_uniform_(start, a=math.sqrt(5))  # drawn on the CPU: alike on every device
        place = base.weight.device
        self.lora_A = nn.Parameter(start.to(place))
        self.lora_B = nn.Parameter(
            torch.zeros(base.out_features, rank, device=place, dtype=torch.float32)
        )
        self.scale = alpha / rank

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        out = self.base(states)
        low = F.linear(F.linear(states.to(self.lora_A.dtype), self.lora_A), self.lora_B)
        return out + (self.scale * low).to(out.dtype)

    def half_(self) -> None:
        """Round both matrices to fp16, in which they are to be saved."""
        for matrix in (self.lora_A, self.lora_B):
            matrix.data = matrix.data.half()

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The base layer itself, the update added to its weight in fp32."""
        weight = self.base.weight
        update = self.scale * (self.lora_B.float() @ self.lora_A.float())
        weight.copy_(weight.float() + update)
        return self.base


def add_lora(
    llm: Any, rank: int, alpha: float, seed: int, only: Collection[str] | None = None
) -> list[str]:
    """Put a `LoraLinear` in the place of every linear layer but the head, and freeze the rest.

    ``only`` keeps to layers of these names ("q_proj", "v_proj" ...). Gives the full names of the
    layers. Raises UnsupportedModelError when there is none (GPT-2's are of another class), and
    for a model that has a LoRA already.
    """
    if lora_layers(llm):
        raise UnsupportedModelError(
            f"{type(llm).__name__} has a LoRA already; take it off first: "
            "take_lora(llm, merge=True) keeps what it learnt"
        )
    llm.requires_grad_(False)
    head = llm.get_output_embeddings()
    found = [
        name
        for name, module in llm.named_modules()
        if isinstance(module, nn.Linear) and module is not head
        if only is None or name.rpartition(".")[2] in only
    ]
    if not found:
        named = f" named {', '.join(sorted(only))}" if only else ""
        raise UnsupportedModelError(
            f"{type(llm).__name__} has no linear layer{named} that LoRA could be put on; "
            "train it whole"
        )
    with building(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in found:
            llm.set_submodule(name, LoraLinear(llm.get_submodule(name), rank, alpha))
    return found


def take_lora(llm: Any, *, merge: bool) -> None:
    """The plain layers back in their places, with the updates added if ``merge``."""
    for name, layer in lora_layers(llm).items():
        llm.set_submodule(name, layer.merged() if merge else layer.base)


def lora_layers(llm: Any) -> dict[str, LoraLinear]:
    """The layers of a model that have a LoRA, by name."""
    return {name: m for name, m in llm.named_modules() if isinstance(m, LoraLinear)}


@contextmanager
def without_lora(llm: Any) -> Iterator[None]:
    """Within the block the model is the one that the LoRA was put on, bit for bit."""
    layers = lora_layers(llm)
    take_lora(llm, merge=False)
    try:
        yield
    finally:
        for name, layer in layers.items():
            llm.set_submodule(name, layer)
