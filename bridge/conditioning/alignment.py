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

from bridge.conditioning.kit import Kit
from bridge.conditioning.parts import Group
from bridge.conditioning.planning import Plans, common_states
from bridge.conditioning.unet_only import is_unet
from bridge.conditioning.uneven import WINDOWED
from bridge.conditioning.wording import Wording
from bridge.errors import OptionError

_MOST = 4  # times the longest


@dataclass(frozen=True)
class Extent:
    """The first ``own`` states of a row are its prompt's; from there to ``until`` its last state
    is repeated."""

    own: int
    until: int


@dataclass(frozen=True)
class Alignment:
    """What every row is brought to.

    Attributes:
        prompts, negatives: their rows' extents.
        length: the common length.
        hides: whether what fills up a row is hidden rather than repeated.
    """

    prompts: tuple[Extent, ...]
    negatives: tuple[Extent, ...]
    length: int
    hides: bool

    def bring(self, rows: Tensor, extents: Sequence[Extent]) -> Tensor:
        """Rows ``(N, T, ...)`` as ``(N, length, ...)``."""
        found = []
        for row, extent in zip(rows, extents, strict=True):
            own = row[: extent.own]
            last = own[-1:].expand(extent.until - extent.own, *own.shape[1:])
            whole = torch.cat([own, last])
            times = -(-self.length // extent.until)
            found.append(torch.cat([whole] * times)[: self.length])
        return torch.stack(found)

    def hidden(self, extents: Sequence[Extent], like: Tensor) -> Tensor:
        """What hides the states that fill up: ``(N, length)``, added to attention's logits."""
        places = torch.arange(self.length, dtype=torch.int64)
        past = torch.stack([places >= extent.until for extent in extents])
        return torch.zeros(past.shape, dtype=like.dtype).masked_fill(past, -math.inf)


def alignment_of(
    kit: Kit,
    wording: Wording,
    plans: tuple[Plans, Plans],
    groups: tuple[tuple[Group, ...], tuple[Group, ...]],
    counts: Sequence[int],
    full: int,
) -> Alignment | None:
    """The alignment of a call's prompts and negatives; None where all have one length.

    Args:
        plans, groups: of prompts and of negatives.
        counts: the parts of each prompt; rows come in blocks of these, one a stretch of steps.
        full: the states that a part has, windows that fill it up included.

    Raises:
        OptionError: repetition is asked of a model that attends jointly.
    """
    unet = is_unet(kit)
    if wording.align == "repeat" and not unet:
        raise OptionError(
            f"align='repeat' leaves a UNet's cross-attention as it was; {kit.recipe.name} attends "
            "to prompt and picture together, where repetition counts. Use align='empty'."
        )
    repeats = (wording.align or wording.own_align) == "repeat"
    if not (unet and repeats and wording.long_prompt.join in WINDOWED):
        return None
    own = [
        [_own_length(kit, tower_plans, group, wording, full) for group in some]
        for tower_plans, some in zip(plans, groups, strict=True)
    ]
    prompts, negatives = (_extents(lengths, counts) for lengths in own)
    lengths = {extent.until for extent in (*prompts, *negatives)}
    if len(lengths) == 1 and all(e.own == e.until for e in (*prompts, *negatives)):
        return None
    common = math.lcm(*lengths)
    hides = common > _MOST * max(lengths)
    return Alignment(prompts, negatives, max(lengths) if hides else common, hides)


def part_states(kit: Kit, plans: Plans, group: Group, wording: Wording, full: int) -> list[int]:
    """Of each part of a prompt, how many of its ``full`` states are its own; those after them are
    of the empty prompts that made it as long as the others."""
    follows = is_unet(kit) and wording.long_prompt.join in WINDOWED
    if not follows:
        return [full] * len(group.rows)
    return [common_states([[t[row]] for t in plans], wording.long_prompt) for row in group.rows]


def _own_length(kit: Kit, plans: Plans, group: Group, wording: Wording, full: int) -> int:
    """The states of a prompt, before any that only fill it up."""
    if group.kind == "and":
        return sum(part_states(kit, plans, group, wording, full))
    rows = [[tower[row] for row in group.rows] for tower in plans]
    return common_states(rows, wording.long_prompt)


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
