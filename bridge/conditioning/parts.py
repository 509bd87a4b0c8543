"""Prompts of several parts: compel's ``.blend()`` and ``.and()``.

Each part is encoded as a prompt of its own. A blend is the weighted sum of their states, by
weights that add up to 1 unless the prompt says ``no_normalize``. ``.and()`` sets their states end
to end, each as many windows as it fills; a part of weight w stands at ``e + w * (z - e)`` from the
empty prompt's states. Shorter prompts and negatives are filled up with the empty prompt. Pooled
states are the weighted mean of the parts', or that of the whole prompt as it is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bridge.conditioning.join import rows_at
from bridge.conditioning.uneven import fitted
from bridge.prompt import Prompt
from bridge.prompt.schedule import first_step
from bridge.prompt.tree import Branch


@dataclass(frozen=True)
class Group:
    """The parts of one prompt: how they go together, and the rows that hold them."""

    kind: str
    weights: tuple[float, ...]
    rows: tuple[int, ...]


def split_parts(prompts: Sequence[Prompt]) -> tuple[tuple[Prompt, ...], tuple[Group, ...]]:
    """All parts of all prompts, each as a prompt of one part, and how they make the prompts."""
    parts: list[Prompt] = []
    groups = []
    for prompt in prompts:
        if isinstance(prompt.tree, Branch):
            groups.append(Group("one", (1.0,), (len(parts),)))
            parts.append(prompt)
            continue
        flat = first_step(prompt)
        rows = tuple(range(len(parts), len(parts) + len(flat.parts)))
        groups.append(Group(flat.kind, tuple(part.weight for part in flat.parts), rows))
        parts += [replace(prompt, spans=part.spans) for part in flat.parts]
    return tuple(parts), tuple(groups)


def join_parts(
    states: Tensor,
    groups: Sequence[Group],
    own: Sequence[Sequence[int]],
    empty: Tensor | None,
    length: int,
) -> Tensor:
    """Token states of prompts out of those of their parts.

    Args:
        states: ``(P, T, D)``, one row a part.
        groups: B groups.
        own: for each group, how many states of each of its parts ``.and()`` sets end to end.
        empty: the empty prompt's states ``(T, D)``; needed where a group is of that kind.
        length: states that every prompt is brought to.

    Returns:
        ``(B, length, D)``.
    """
    return torch.stack(
        [
            fitted(_joined(states, group, counts, empty), length, empty)
            for group, counts in zip(groups, own, strict=True)
        ]
    )


def _joined(states: Tensor, group: Group, own: Sequence[int], empty: Tensor | None) -> Tensor:
    rows = rows_at(states, group.rows)
    if group.kind != "and":
        return _mixed(rows, group)
    assert empty is not None
    weights = rows.new_tensor(group.weights)[:, None, None]
    rows = torch.where(weights == 1, rows, empty + (rows - empty) * weights)
    return torch.cat([row[:count] for row, count in zip(rows, own, strict=True)])


def join_pooled_parts(pooled: Tensor, groups: Sequence[Group]) -> Tensor:
    """Pooled states ``(B, P)`` of prompts out of those of their parts."""
    return torch.stack([_mixed(rows_at(pooled, group.rows), group) for group in groups])


def _mixed(rows: Tensor, group: Group) -> Tensor:
    """The weighted sum of rows; the weights add up to 1, but for an unnormalised blend."""
    if group.kind == "one":
        return rows[0]
    weights = rows.new_tensor(group.weights)
    if group.kind != "sum":
        total = weights.sum()
        # Parts of an "and" may add up to nothing; there is no share then but an equal one.
        weights = weights / total if total else torch.full_like(weights, 1 / len(weights))
    return (rows * weights.view(-1, *[1] * (rows.ndim - 1))).sum(0)
