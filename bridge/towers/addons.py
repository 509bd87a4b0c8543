"""A tower's forward pass with added words and LoRA, the tower itself left as it is.

Forward hooks do both while one pass runs, and only in the thread that runs it, so a live pipeline
can go on drawing in another. Nothing is fused and no weight is copied: a word's vectors are put
in the place of an existing token's embedding, and each linear layer gets its low-rank products
added, each row of the batch at strengths of its own. So one batched pass serves prompts with
different LoRAs, and offloaded or quantized towers work too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from bridge.towers.lora import LowRank

# Stands for an added token until its vector is put there. The lowest id, so that a tower that
# looks for EOS as the highest (old configs) is not led astray, as transformers issue 24650 is.
_STAND_IN = 0


@dataclass(frozen=True, eq=False)
class TowerAddOns:
    """What is added to one tower.

    Attributes:
        ids: the ids of added tokens.
        vectors: their embeddings, one ``(D,)`` each.
        loras: for each LoRA of the call, layer's path -> what is added; empty if it has none for
            this tower.
    """

    ids: tuple[int, ...] = ()
    vectors: tuple[Tensor, ...] = ()
    loras: tuple[Mapping[str, LowRank], ...] = ()


@contextmanager
def adapted(
    module: Any, ids: Tensor, addons: TowerAddOns, strengths: Sequence[Sequence[float]]
) -> Iterator[tuple[Any, Tensor]]:
    """Within the block, ``module(ids)`` with the ids given here has the add-ons.

    Args:
        module: a text tower.
        ids: ``(N, T)`` ids, added ones among them.
        addons: what is added.
        strengths: for each of N rows, the strength of each LoRA.

    Gives the module to call (the plain one, if torch.compile has wrapped it) and its ids.
    """
    plain = getattr(module, "_orig_mod", module)
    with ExitStack() as hooks:

        def hook(layer: Any, change: Callable[[Tensor, Tensor], Tensor]) -> None:
            here = threading.get_ident()

            def changed(_: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
                return change(args[0], output) if threading.get_ident() == here else None

            hooks.callback(layer.register_forward_hook(changed).remove)

        added = torch.isin(ids, ids.new_tensor(addons.ids))
        if addons.ids and bool(added.any()):
            known = dict(zip(addons.ids, addons.vectors, strict=True))
            rows = torch.stack([known[i] for i in ids[added].tolist()])

            def put(_: Tensor, output: Tensor) -> Tensor:
                output = output.clone()
                output[added.to(output.device)] = rows.to(output)
                return output

            hook(_embeddings(plain), put)
            ids = ids.masked_fill(added, _STAND_IN)
        layers = dict(plain.named_modules())
        for path, product in _products(addons, strengths).items():
            # A tower with a projection, and any before transformers 5, wraps its transformer.
            hook(layers[path if path in layers else f"text_model.{path}"], product)
        yield plain, ids


def _embeddings(module: Any) -> Any:
    """The layer that looks ids up. T5's encoder has one of its own beside the model's."""
    own = getattr(getattr(module, "encoder", None), "embed_tokens", None)
    return module.get_input_embeddings() if own is None else own


def _products(
    addons: TowerAddOns, strengths: Sequence[Sequence[float]]
) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """For each layer, the function from its input and output to the output with all LoRAs."""
    found: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
    for path in dict.fromkeys(path for lora in addons.loras for path in lora):
        parts = [(i, lora[path]) for i, lora in enumerate(addons.loras) if path in lora]
        # All LoRAs of a layer are one of the sum of their ranks, each rank with its own factor.
        down = torch.cat([part.down.float() for _, part in parts])
        up = torch.cat([part.up.float() for _, part in parts], dim=1)
        factors = torch.tensor(
            [
                [row[i] * part.scale for i, part in parts for _ in range(part.down.shape[0])]
                for row in strengths
            ],
            dtype=torch.float32,
        )
        found[path] = _product(down, up, factors)
    return found


def _product(down: Tensor, up: Tensor, factors: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    def add(x: Tensor, output: Tensor) -> Tensor:
        inner = linear(x, down.to(x))
        scaled = inner * factors.to(x).view(len(factors), *[1] * (x.ndim - 2), -1)
        return output + linear(scaled, up.to(x)).to(output)

    return add
