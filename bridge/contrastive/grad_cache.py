"""The gradient of a large batch in the memory of a small one.

A contrastive loss needs the vectors of all rows at once, but not what the towers keep for their
backward pass. So the rows are encoded part by part without a graph; the loss of all vectors gives a
gradient for each vector; then each part is encoded once more, and its vectors' gradients go back
through the towers (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory
Limited Setup", GradCache). The second pass draws the random numbers of the first, so dropout is the
same, and the gradient is that of the plain form over the same parts.

As many parts as there is memory for keep their graph from the first pass, and cost nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from bridge.checks import keywords
from bridge.contrastive.losses import PooledPairs
from bridge.errors import OptionError

Part = TypeVar("Part")


@dataclass(frozen=True, eq=False)
class Encoded:
    """What the towers make of one part: its pairs, and a loss that is a sum over rows."""

    pairs: PooledPairs
    own_loss: Tensor | None = None


@dataclass(frozen=True, eq=False)
class _Pass(Generic[Part]):
    """One part after the first pass; ``graph`` is what was encoded where it is kept."""

    part: Part
    random: list[Tensor]
    pairs: PooledPairs
    graph: Encoded | None


@keywords
def cached_backward(
    encode: Callable[[Part], Encoded],
    parts: Sequence[Part],
    loss: Callable[[PooledPairs], Tensor],
    *,
    keep: int = 0,
    device: torch.device | None = None,
) -> tuple[Tensor, PooledPairs]:
    """Add the gradient of ``loss`` over all parts to the ``.grad`` of what they were made with.

    Args:
        encode: the towers' pass over one part. What it draws at random it draws from torch.
        parts: the rows of the batch, in parts small enough for one pass with its graph.
        loss: from the pairs of all parts to a scalar; what it has to learn itself (a temperature)
            gets its gradient too.
        keep: bytes of graphs that may be kept at a time; one part's is there in any case.
        device: where the towers draw random numbers, if not on the CPU.

    Returns:
        The loss, parts' own losses included, and all pairs; both without a graph.

    Raises:
        OptionError: no parts.
    """
    if not parts:
        raise OptionError("there are no parts of a batch to encode")
    passes: list[_Pass[Part]] = []
    room: float = keep
    size = 0.0
    for part in parts:
        random = _random_state(device)
        with_graph = room > 0 and room >= size
        counter = _Counter() if with_graph and not size else None
        with torch.set_grad_enabled(with_graph), counter or nullcontext():
            made = encode(part)
        if counter is not None:
            size = max(1.0, counter.bytes)
        if with_graph:
            room -= size
        fits = with_graph and room >= 0  # the first is too large where it alone is
        passes.append(_Pass(part, random, _detached(made.pairs), made if fits else None))
        del made
    after = _random_state(device)
    pairs = _joined([each.pairs for each in passes])
    leaves = replace(pairs, image=_leaf(pairs.image), text=_leaf(pairs.text))
    total = loss(leaves)
    total.backward()
    total = total.detach()
    sizes = [len(each.pairs.image) for each in passes]
    gradients = list(zip(_split(leaves.image, sizes), _split(leaves.text, sizes), strict=True))
    passes.reverse()
    for slopes in gradients:  # a graph is let go as soon as it is used, those that are kept first
        each = passes.pop()
        found = each.graph
        if found is None:
            _set_random_state(each.random, device)
            with torch.enable_grad():
                found = encode(each.part)
        own = _backward(found, slopes)
        total = total if own is None else total + own
        del each, found
    _set_random_state(after, device)
    return total, pairs


def check_rows_alone(module: nn.Module) -> None:
    """Refuse a module in which rows of a batch see each other, so that parts would change it.

    Raises:
        OptionError: a batch norm in training mode; the message names it.
    """
    for name, each in module.named_modules():
        if isinstance(each, nn.modules.batchnorm._BatchNorm) and each.training:
            raise OptionError(
                f"{name} is a batch norm, which sees the whole batch at once; a batch in parts "
                "would be another model. Train it with micro_batch equal to batch_size"
            )


def _backward(found: Encoded, slopes: tuple[Tensor | None, Tensor | None]) -> Tensor | None:
    outputs = [found.pairs.image, found.pairs.text]
    wanted = [
        (output, slope)
        for output, slope in zip(outputs, slopes, strict=True)
        if output.requires_grad and slope is not None
    ]
    own = found.own_loss
    if own is not None and own.requires_grad:
        wanted.append((own, torch.ones_like(own)))
    if wanted:
        torch.autograd.backward([output for output, _ in wanted], [slope for _, slope in wanted])
    return None if own is None else own.detach()


def _leaf(rows: Tensor) -> Tensor:
    return rows.detach().requires_grad_(True)


def _split(rows: Tensor, sizes: Sequence[int]) -> Sequence[Tensor | None]:
    return [None] * len(sizes) if rows.grad is None else rows.grad.split(list(sizes))


def _detached(pairs: PooledPairs) -> PooledPairs:
    return replace(pairs, image=pairs.image.detach(), text=pairs.text.detach())


def _joined(parts: Sequence[PooledPairs]) -> PooledPairs:
    def column(name: str) -> Any:
        found = [getattr(each, name) for each in parts]
        return None if any(each is None for each in found) else torch.cat(found)

    return PooledPairs(*(column(name) for name in ("image", "text", "groups", "log_q")))


def _random_state(device: torch.device | None) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device is not None and device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _set_random_state(states: Sequence[Tensor], device: torch.device | None) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1 and device is not None:
        torch.cuda.set_rng_state(states[1], device)


class _Counter:
    """Counts the bytes that autograd keeps for a backward pass; weights are not counted."""

    def __init__(self) -> None:
        self._storages: dict[int, int] = {}
        self._hooks = saved_tensors_hooks(self._seen, lambda kept: kept)

    @property
    def bytes(self) -> int:
        return sum(self._storages.values())

    def __enter__(self) -> _Counter:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def _seen(self, tensor: Tensor) -> Tensor:
        owner = tensor._base if tensor._base is not None else tensor
        if not (owner.is_leaf and owner.requires_grad):
            storage = tensor.untyped_storage()
            self._storages[storage.data_ptr()] = storage.nbytes()
        return tensor
