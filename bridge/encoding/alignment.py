"""Prompts and negatives of unequal length, brought to the one length that a pipeline takes.

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

from bridge.encoding.batch import Batch, Entry
from bridge.encoding.model import TextModel
from bridge.encoding.model_checks import is_unet
from bridge.encoding.options import TextRules
from bridge.encoding.planning import WINDOWED, Plans, common_states
from bridge.errors import OptionError

_MOST = 4  # times the longest


@dataclass(frozen=True)
class Extent:
    """The first ``own`` states of an entry are its text's; from there to ``until`` its last state
    is repeated."""

    own: int
    until: int


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
        for states, extent in zip(entries, self.extents, strict=True):
            own = states[: extent.own]
            last = own[-1:].expand(extent.until - extent.own, *own.shape[1:])
            whole = torch.cat([own, last])
            times = -(-self.length // extent.until)
            found.append(torch.cat([whole] * times)[: self.length])
        return torch.stack(found)

    def hidden(self, like: Tensor) -> Tensor:
        """What hides the states that fill up: ``(E, length)``, added to attention's logits."""
        places = torch.arange(self.length, dtype=torch.int64)
        past = torch.stack([places >= extent.until for extent in self.extents])
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
    unet = is_unet(model)
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
    lengths = {extent.until for extent in extents}
    if len(lengths) == 1 and all(each.own == each.until for each in extents):
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
    if not is_unet(model) or long.join not in WINDOWED:
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
    return tuple(Extent(longest[row % block], until[row % block]) for row in range(len(own)))
