"""From states to the tensors of a conditioning: windows to sequences, towers to one width, parts to
prompts.

Towers that stand beside each other are joined along their width, as SDXL's two are. One that
``follows`` begins a new band; bands are set end to end, the narrower filled up with zeros, as
SD 3 sets T5's states after those of its CLIP towers.

Last, prompts and negatives of unequal length, brought to the one length that a pipeline takes.

==========  ===================================================================================
``repeat``  each prompt's whole sequence is repeated up to a common multiple. Cross-attention
            gives the same for states that stand there twice, so the prompt and its negative act
            as if each ran alone: what stable-diffusion-webui does by default (it runs them
            apart), and ComfyUI and Forge (which repeat)
``empty``   windows of the empty prompt fill up the shorter: compel, and the web UI with its
            option ``pad_cond_uncond``. They take part in cross-attention and move the picture
==========  ===================================================================================

``repeat`` is for UNets. Where tokens of prompt and picture attend to each other jointly (SD 3,
FLUX.1) repetition would count, so there ``empty`` holds. What one prompt says at different steps is
filled up with empty windows, and the parts of its ``AND`` repeat their last state, both as the web
UI does it. Where the common multiple is above four times the longest, states are hidden instead:
that acts inside the UNet, by an infinite bias, and so needs ``bridge.inject``.

How the windows of one prompt become its sequence is ``LongPrompt``'s choice and comes first. With
its joins ``average`` and ``no_bos_between`` empty windows are part of the sequence, so nothing is
repeated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import pad

from bridge.encoding.emphasis import log_weights
from bridge.encoding.model import TextModel
from bridge.encoding.options import TextRules
from bridge.encoding.planning import WINDOWED, Batch, Entry, Plans, common_states
from bridge.encoding.recipes import MaskKind, TowerUse
from bridge.errors import OptionError
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


# ---------------------------------------------------------------- alignment

_MOST = 4  # times the longest


Extent = tuple[int, int]
"""The first of an entry's states are its text's; from there to the second number its last state is
repeated."""


@dataclass(frozen=True)
class Alignment:
    """What every prompt and negative is brought to.

    Attributes:
        extents: of each entry.
        length: the common length.
        hides: whether what fills up an entry is hidden rather than repeated.
    """

    extents: tuple[Extent, ...]
    length: int
    hides: bool

    def bring(self, entries: Tensor) -> Tensor:
        """Entries ``(E, T, ...)`` as ``(E, length, ...)``."""
        found = []
        for states, (count, until) in zip(entries, self.extents, strict=True):
            own = states[:count]
            last = own[-1:].expand(until - count, *own.shape[1:])
            whole = torch.cat([own, last])
            times = -(-self.length // until)
            found.append(torch.cat([whole] * times)[: self.length])
        return torch.stack(found)

    def hidden(self, like: Tensor) -> Tensor:
        """What hides the states that fill up: ``(E, length)``, added to attention's logits."""
        places = torch.arange(self.length, dtype=torch.int64)
        past = torch.stack([places >= until for _, until in self.extents])
        return torch.zeros(past.shape, dtype=like.dtype).masked_fill(past, -math.inf)


def align(
    alignment: Alignment | None, states: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """States and biases of all entries brought to one length."""
    if alignment is None:
        return states, bias
    brought = None if bias is None else alignment.bring(bias)
    if alignment.hides:
        hidden = alignment.hidden(states)
        brought = hidden if brought is None else brought + hidden
    return alignment.bring(states), brought


def alignment_of(
    model: TextModel,
    rules: TextRules,
    plans: Plans,
    batch: Batch,
    counts: Sequence[int],
    full: int,
) -> Alignment | None:
    """The alignment of a call's prompts and negatives; None where all have one length.

    Args:
        model, rules: for which, and how.
        plans: of each tower and row.
        batch: the rows.
        counts: the parts of each prompt; entries come in blocks of these, one a stretch of steps.
        full: the states that a part has, windows that fill it up included.

    Raises:
        OptionError: repetition is asked of a model that attends jointly.
    """
    unet = model.is_unet
    if rules.align == "repeat" and not unet:
        raise OptionError(
            f"align='repeat' leaves a UNet's cross-attention as it was; {model.recipe.name} "
            "attends to prompt and picture together, where repetition counts. Use align='empty'."
        )
    repeats = (rules.align or rules.dialect.align) == "repeat"
    if not (unet and repeats and rules.long_prompt.join in WINDOWED):
        return None
    own = [_own_length(model, rules, plans, entry, full) for entry in batch.entries]
    extents = tuple(
        extent for lengths in batch.by_role(own) for extent in _extents(lengths, counts)
    )
    lengths = {until for _, until in extents}
    if len(lengths) == 1 and all(count == until for count, until in extents):
        return None
    common = math.lcm(*lengths)
    hides = common > _MOST * max(lengths)
    return Alignment(extents, max(lengths) if hides else common, hides)


def part_states(
    model: TextModel, rules: TextRules, plans: Plans, entry: Entry, full: int
) -> list[int]:
    """Of each part of an entry, how many of its ``full`` states are its own; those after them are
    of the empty prompts that made it as long as the others."""
    long = rules.long_prompt
    if not model.is_unet or long.join not in WINDOWED:
        return [full] * len(entry.rows)
    return [common_states([[tower[row]] for tower in plans], long) for row in entry.rows]


def _own_length(model: TextModel, rules: TextRules, plans: Plans, entry: Entry, full: int) -> int:
    """The states of an entry, before any that only fill it up."""
    if entry.kind == "and":
        return sum(part_states(model, rules, plans, entry, full))
    rows = [[tower[row] for row in entry.rows] for tower in plans]
    return common_states(rows, rules.long_prompt)


def _extents(own: Sequence[int], counts: Sequence[int]) -> tuple[Extent, ...]:
    block, starts = sum(counts), [0, *accumulate(counts)]
    # What a part says at other steps brings it to the longest of these.
    longest = [max(own[place::block]) for place in range(block)] if own else []
    until = [
        longest_of_prompt
        for start, count in zip(starts, counts, strict=False)
        for longest_of_prompt in [max(longest[start : start + count], default=0)] * count
    ]
    return tuple((longest[row % block], until[row % block]) for row in range(len(own)))


# ---------------------------------------------------------------- a UNet's biases


def key_bias(plans: Sequence[Sequence[TokenPlan]], windows: int, long: LongPrompt) -> Tensor:
    """What is added to the logits of each token of B prompts: ``(B, T')``.

    Args:
        plans: for each tower the plans of B prompts.
        windows: how many windows every plan is brought to.
        long: how windows become one sequence.
    """
    towers = [torch.stack([_joined_bias(plan, windows, long) for plan in tower]) for tower in plans]
    return torch.stack(towers).mean(0)


def _joined_bias(plan: TokenPlan, windows: int, long: LongPrompt) -> Tensor:
    filled = [*plan.windows, *[plan.empty] * (windows - len(plan.windows))]
    return join_windows(
        torch.tensor([log_weights(w) for w in filled], dtype=torch.float32)[..., None], plan, long
    )[:, 0]
