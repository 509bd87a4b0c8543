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
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from bridge.towers.lora import LowRank

# Stands for an added token until its vector is put there. The lowest id, so that a tower that
# looks for EOS as the highest (old configs) is not led astray, as transformers issue 24650 is.
_STAND_IN = 0

Change = Callable[[Tensor, Tensor], Tensor]
"""From a layer's input and output to another output."""


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

    @cached_property
    def sums(self) -> dict[str, _Sum]:
        """Layer's path -> all that the LoRAs add to it; made once, for all calls."""
        paths = dict.fromkeys(path for lora in self.loras for path in lora)
        return {
            path: _Sum([(i, lora[path]) for i, lora in enumerate(self.loras) if path in lora])
            for path in paths
        }


class _Sum:
    """All LoRAs of one layer as one, of the sum of their ranks R, each rank with its own factor.

    Args:
        parts: LoRA's number and what it adds.
    """

    def __init__(self, parts: Sequence[tuple[int, LowRank]]) -> None:
        self._parts = [part for _, part in parts]
        ranks = [(i, part.scale) for i, part in parts for _ in range(len(part.down))]
        self._loras, self._scales = zip(*ranks, strict=True)
        # Where and how precisely the layer runs, and the matrices there: a call copies none.
        self._placed: tuple[Any, Tensor, Tensor] | None = None

    def factors(self, strengths: Sequence[Sequence[float]]) -> Tensor:
        """``(N, R)`` of N rows with the strength of each LoRA."""
        ranks = list(zip(self._loras, self._scales, strict=True))
        rows = [[row[i] * scale for i, scale in ranks] for row in strengths]
        return torch.tensor(rows, dtype=torch.float32)

    def product(self, strengths: Sequence[Sequence[float]]) -> Change:
        """From the layer's input and output to the output with all LoRAs."""
        factors = self.factors(strengths)

        def add(x: Tensor, output: Tensor) -> Tensor:
            down, up = self._like(x)
            scaled = linear(x, down) * factors.to(x).view(len(factors), *[1] * (x.ndim - 2), -1)
            return output + linear(scaled, up).to(output)

        return add

    def _like(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """down ``(R, in)`` and up ``(out, R)`` on the device and in the dtype of ``x``."""
        kind = (x.device, x.dtype)
        placed = self._placed
        if placed is None or placed[0] != kind:
            down = torch.cat([part.down.float() for part in self._parts]).to(x)
            up = torch.cat([part.up.float() for part in self._parts], dim=1).to(x)
            self._placed = placed = (kind, down, up)
        return placed[1], placed[2]


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

    Yields:
        The module to call (the plain one, if torch.compile has wrapped it) and its ids.
    """
    plain = getattr(module, "_orig_mod", module)
    with ExitStack() as hooks:

        def hook(layer: Any, change: Change) -> None:
            here = threading.get_ident()

            def changed(_: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
                return change(args[0], output) if threading.get_ident() == here else None

            hooks.callback(layer.register_forward_hook(changed).remove)

        added = torch.isin(ids, ids.new_tensor(addons.ids)) if addons.ids else None
        if added is not None and bool(added.any()):
            known = dict(zip(addons.ids, addons.vectors, strict=True))
            rows = torch.stack([known[i] for i in ids[added].tolist()])

            def put(_: Tensor, output: Tensor) -> Tensor:
                return output.masked_scatter(added.to(output.device)[..., None], rows.to(output))

            hook(_embeddings(plain), put)
            ids = ids.masked_fill(added, _STAND_IN)
        layers = dict(plain.named_modules()) if addons.sums else {}
        for path, sum_ in addons.sums.items():
            # A tower with a projection wraps its transformer.
            layer = layers[path if path in layers else f"text_model.{path}"]
            hook(layer, sum_.product(strengths))
        yield plain, ids


def _embeddings(module: Any) -> Any:
    """The layer that looks ids up. T5's encoder has one of its own beside the model's."""
    own = getattr(getattr(module, "encoder", None), "embed_tokens", None)
    return module.get_input_embeddings() if own is None else own
