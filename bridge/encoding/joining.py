"""From states to the tensors of a conditioning: windows to sequences, towers to one width, parts to
prompts.

Towers that stand beside each other are joined along their width, as SDXL's two are. One that
``follows`` begins a new band; bands are set end to end, the narrower filled up with zeros, as
SD 3 sets T5's states after those of its CLIP towers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from bridge.encoding.batch import Batch, Entry
from bridge.encoding.recipes import MaskKind, TowerUse
from bridge.prompt import LongPrompt, TokenPlan

# ---------------------------------------------------------------- windows of a row


def rows_at(states: Tensor, places: Sequence[int]) -> Tensor:
    """The rows of ``states`` at ``places``; a view where they follow each other.

    As ``states[places]``, but that copies a list to the GPU, and waits for all that runs there.
    """
    first, count = (places[0], len(places)) if places else (0, 0)
    if [*places] == [*range(first, first + count)]:
        return states[first : first + count]
    return torch.stack([states[place] for place in places])


def join_windows(states: Tensor, plan: TokenPlan, long: LongPrompt) -> Tensor:
    """Token states ``(k, T, D)`` of ``k`` windows as one sequence ``(T', D)``.

    Windows beyond the plan's own are empty prompts that make it as long as its neighbours.
    """
    if len(states) == 1:
        return states[0]
    if long.join == "average":
        return states.mean(0)
    if long.join == "first_eos":
        states = states.clone()
        first = states[0, plan.windows[0].used - 1].clone()
        for window, row in zip(plan.windows[1:], states[1:], strict=False):
            row[window.used - 1] = first
    if long.join == "no_bos_between":
        return torch.cat([states[0, :1], states[:, 1:-1].flatten(0, 1), states[-1, -1:]])
    return states.flatten(0, 1)


def join_pooled(pooled: Tensor, long: LongPrompt) -> Tensor:
    """Pooled states ``(k, P)`` of a plan's own windows as one ``(P,)``."""
    if long.pooled == "mean":
        return pooled.mean(0)
    return pooled[0 if long.pooled == "first" else -1]


def fitted(states: Tensor, length: int, empty: Tensor | None) -> Tensor:
    """States ``(T', D)`` cut off or filled up to ``(length, D)``.

    Args:
        states: one tower's states of one row.
        length: the common length.
        empty: the tower's states of its empty window ``(T, D)``; None fills up with zeros.
    """
    missing = length - len(states)
    if missing <= 0:
        return states[:length]
    if empty is None:
        return torch.cat([states, states.new_zeros(missing, states.shape[1])])
    times = -(-missing // len(empty))
    return torch.cat([states, empty.repeat(times, 1)[:missing]])


# ---------------------------------------------------------------- towers of a recipe


def join_towers(
    parts: Sequence[tuple[TowerUse, Tensor]], zeros: tuple[int, int] | None = None
) -> Tensor:
    """Token states ``(N, T, D)`` of all towers as one tensor.

    Args:
        parts: the towers whose token states are used, in the recipe's order, with ``(N, T, D)``
            states each.
        zeros: ``(length, width)`` of the zeros that stand for a last tower that is left out.

    Returns:
        ``(N, T', D')``. States beside each other take the last one's dtype, as in diffusers'
        SDXL; bands of two dtypes take the wider, as in its SD 3.
    """
    bands: list[list[Tensor]] = []
    for use, states in parts:
        if use.follows or not bands:
            bands.append([])
        bands[-1].append(states)
    joined = [torch.cat([each.to(band[-1].dtype) for each in band], dim=-1) for band in bands]
    if zeros is not None:
        joined.append(joined[0].new_zeros(joined[0].shape[0], *zeros))
    if len(joined) == 1:
        return joined[0]
    width = max(band.shape[-1] for band in joined)
    return torch.cat([pad(band, (0, width - band.shape[-1])) for band in joined], dim=-2)


# ---------------------------------------------------------------- parts of an entry


def join_entries(
    states: Tensor, pooled: Tensor | None, batch: Batch, own: Sequence[Sequence[int]], whole: bool
) -> tuple[Tensor, Tensor | None]:
    """Token states and pooled states of prompts and negatives out of those of their parts.

    Args:
        states: ``(N, T, D)``, one a row.
        pooled: ``(N, P)``, or None.
        batch: E entries of N rows.
        own: for each entry, how many states of each of its parts ``.and()`` sets end to end.
        whole: whether a part's pooled state is that of the whole prompt.

    Returns:
        ``(E, T', D)`` and ``(E, P)``, where T' is the length of the longest.
    """
    if not batch.is_joined:
        return states, pooled
    length = max(
        sum(counts) if entry.kind == "and" else states.shape[1]
        for entry, counts in zip(batch.entries, own, strict=True)
    )
    joined = torch.stack(
        [
            _joined(states, entry, counts, length)
            for entry, counts in zip(batch.entries, own, strict=True)
        ]
    )
    if pooled is None:
        return joined, None
    if whole:
        return joined, rows_at(pooled, [entry.rows[0] for entry in batch.entries])
    return joined, torch.stack(
        [_mixed(rows_at(pooled, entry.rows), entry) for entry in batch.entries]
    )


def _joined(states: Tensor, entry: Entry, own: Sequence[int], length: int) -> Tensor:
    rows = rows_at(states, entry.rows)
    empty = None if entry.filling is None else states[entry.filling]
    if entry.kind != "and":
        return fitted(_mixed(rows, entry), length, empty)
    assert empty is not None
    weights = rows.new_tensor(entry.weights)[:, None, None]
    rows = torch.where(weights == 1, rows, empty + (rows - empty) * weights)
    parts = [row[:count] for row, count in zip(rows, own, strict=True)]
    return fitted(torch.cat(parts), length, empty)


def _mixed(rows: Tensor, entry: Entry) -> Tensor:
    """The weighted sum of rows; the weights add up to 1, but for an unnormalised blend."""
    if entry.kind == "one":
        return rows[0]
    weights = rows.new_tensor(entry.weights)
    if entry.kind != "sum":
        total = weights.sum()
        # Parts of an "and" may add up to nothing; there is no share then but an equal one.
        weights = weights / total if total else torch.full_like(weights, 1 / len(weights))
    return (rows * weights.view(-1, *[1] * (rows.ndim - 1))).sum(0)


# ---------------------------------------------------------------- attention masks


def prompt_masks(plans: Sequence[TokenPlan], batch: Batch, kind: MaskKind, like: Tensor) -> Tensor:
    """Which token states the model that draws may look at: ``prompt_attention_mask``.

    Args:
        plans: of the recipe's one tower, one a row.
        batch: E entries.
        kind: as ``Recipe.mask``.
        like: the entries' token states, for their length, device and dtype.

    Returns:
        ``(E, T')``; 1 or True for what may be seen. Of a blend, what any part has.
    """
    extra = 1 if kind == "one_pad" else 0
    seen = torch.tensor(
        [[at < plan.used + extra for at in range(len(plan.ids))] for plan in plans],
        dtype=torch.bool,
    )
    sequences = like.shape[1] // seen.shape[1]
    masks = torch.stack([_mask(seen, entry, sequences) for entry in batch.entries])
    dtype = {"int": torch.int64, "bool": torch.bool, "one_pad": like.dtype}[kind]
    return masks.to(like.device, dtype)


def _mask(seen: Tensor, entry: Entry, sequences: int) -> Tensor:
    own = seen[list(entry.rows)]
    if entry.kind in ("blend", "sum"):
        own = own.any(0, keepdim=True)
    if entry.filling is None:
        return own.flatten()
    return torch.cat([own, seen[entry.filling].expand(sequences - len(own), -1)]).flatten()
