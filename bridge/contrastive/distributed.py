"""Vectors and gradients between processes that train one model together.

Every process has its own rows, as many as any other, and computes a loss whose mean over the
processes is that of all rows; so gradients, too, are averaged. In a program of one process, each of
these functions gives back what it was given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


def place() -> tuple[int, int]:
    """This process' rank, and how many processes there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather_rows(rows: Tensor) -> Tensor:
    """The rows ``(b, ...)`` of all processes in the order of their ranks, ``(processes * b, ...)``.

    A gradient that any process has for these rows flows back to them.
    """
    if place()[1] == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


def ring(*rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The rows of each other process in turn, handed from neighbour to neighbour.

    A process holds its own rows and those of one other at a time, where `gather_rows` would hold
    all (Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", section 3.3). Gradients
    travel back the same way; tensors of whole numbers have none.
    """
    for _ in range(place()[1] - 1):
        rows = tuple(
            _Shift.apply(each, 1) if each.is_floating_point() else _shift(each, 1) for each in rows
        )
        yield rows


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of a tensor over the processes; no gradient."""
    total = value.detach().clone()
    if place()[1] > 1:
        dist.all_reduce(total)
    return total


@torch.no_grad()
def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Give every process the mean of the gradients of all; one message a dtype.

    A parameter without a gradient in some process counts as zero; one without in all stays so.
    """
    _, processes = place()
    every = [each for each in parameters if each.requires_grad] if processes > 1 else []
    if not every:
        return
    found = [int(p.grad is not None) for p in every]
    has = torch.tensor(found, device=every[0].device, dtype=torch.int64)
    reached = sum_over_processes(has).tolist()
    wanted = [each for each, count in zip(every, reached, strict=True) if count]
    for dtype in dict.fromkeys(each.dtype for each in wanted):
        alike = [each for each in wanted if each.dtype == dtype]
        slopes = [torch.zeros_like(p) if p.grad is None else p.grad for p in alike]
        flat = torch.cat([slope.flatten() for slope in slopes])
        dist.all_reduce(flat)
        flat /= processes
        parts = flat.split([each.numel() for each in alike])
        for parameter, slope, part in zip(alike, slopes, parts, strict=True):
            parameter.grad = slope.copy_(part.view_as(slope))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rank, processes = place()
        ctx.mine = slice(rank * len(rows), (rank + 1) * len(rows))
        found = [torch.empty_like(rows) for _ in range(processes)]
        dist.all_gather(found, rows.contiguous())
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        # gloo has no reduce-scatter; of the sum, each keeps its own part.
        total = slopes[0].contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.mine]


class _Shift(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, by: int) -> Tensor:
        ctx.by = by
        return _shift(rows, by)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        return _shift(slopes[0], -ctx.by), None


def _shift(rows: Tensor, by: int) -> Tensor:
    """The rows of the process ``by`` ranks before this one, which sends its own as far on."""
    rank, processes = place()
    found = torch.empty_like(rows)
    sent, got = (rank + by) % processes, (rank - by) % processes
    both = [dist.P2POp(dist.isend, rows.contiguous(), sent), dist.P2POp(dist.irecv, found, got)]
    for request in dist.batch_isend_irecv(both):
        request.wait()
    return found
