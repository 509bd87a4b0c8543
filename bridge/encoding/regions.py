"""Regional prompts: which prompt the picture's cross-attention follows where.

Each region has a prompt and a box or a mask. At every cross-attention each prompt's output is
worked out for the whole picture, and each place takes a mix of them. The rule is that of the
known "attention couple" (laksjdjf's attention-couple-ComfyUI, Haoming02's sd-forge-couple: outputs
mixed by masks that add up to 1 at each place), with a base prompt as in hako-mikan's regional
prompter. With ``m_r`` the part of a place that region r covers, 0 to 1:

- where regions overlap, all have a say, in proportion to ``m_r``;
- what no region covers follows the base prompt;
- inside the regions the base prompt has the share ``base_weight``.

So the share of region r is ``(1 - base_weight) * m_r / max(1, sum(m))``, and the base has the
rest. A region that is smaller than a place of a coarse layer counts by the area that it covers
there. The negative prompt holds for the whole picture. Self-attention is left alone: it is what
makes one picture of the regions, so an object may still grow over a border.

SDXL's pooled state goes to the UNet once for the whole picture: it is the mean of the prompts',
weighted by the area of their shares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from bridge.checks import is_finite, keywords
from bridge.encoding.conditioning import Conditioning, ConditioningReport
from bridge.encoding.options import Call, Request, read_call
from bridge.errors import OptionError, PromptError
from bridge.prompt import Prompt, TokenPlan

# Where shares are averaged over the area; boxes count by the exact area at any grid.
_GRID = 64


@keywords
@dataclass(frozen=True, eq=False)
class Region:
    """A prompt and its place: exactly one of ``box``, ``pixels`` and ``mask``.

    Attributes:
        prompt: what is to be there.
        box: ``(left, top, right, bottom)`` as fractions of the picture, 0 to 1.
        pixels: the same in pixels of the picture that is to be drawn.
        mask: ``(H, W)`` numbers from 0 to 1 (or uint8 up to 255), laid over the whole picture,
            whatever their H and W: a tensor, an array or a greyscale PIL image.

    Raises:
        OptionError: none or several of them are given, or the box or mask is none.
    """

    prompt: str
    box: Sequence[float] | None = None
    pixels: Sequence[int] | None = None
    mask: Any = None

    def __post_init__(self) -> None:
        given = [n for n in ("box", "pixels", "mask") if getattr(self, n) is not None]
        if len(given) != 1:
            raise OptionError(
                f"The region {self.prompt!r} has {' and '.join(given) or 'no place'}; give one of "
                "box (fractions), pixels and mask."
            )
        if self.box is not None:
            object.__setattr__(self, "box", _box(self, self.box, (1.0, 1.0), "fractions"))
        if self.mask is not None:
            object.__setattr__(self, "mask", _mask(self))

    def within(self, size: tuple[int, int] | None) -> Region:
        """The region with its pixels as fractions of a picture of ``(height, width)``.

        Raises:
            OptionError: pixels outside the picture, or its size is not known.
        """
        if self.pixels is None:
            return self
        if size is None:
            raise OptionError(
                f"The region {self.prompt!r} is in pixels, and the model does not say what size "
                "it draws; give height and width, or the box as fractions."
            )
        height, width = size
        a, b, c, d = _box(self, self.pixels, (width, height), f"the {width}x{height} pixels")
        return Region(self.prompt, box=(a / width, b / height, c / width, d / height))

    def cover(self, height: int, width: int) -> Tensor:
        """How much of each cell of a grid it covers: ``(height, width)`` float64, 0 to 1."""
        if self.mask is not None:
            return adaptive_avg_pool2d(self.mask[None], (height, width))[0]
        assert self.box is not None
        left, top, right, bottom = self.box
        return _overlap(top, bottom, height)[:, None] * _overlap(left, right, width)[None]


@keywords
@dataclass(frozen=True, eq=False)
class RegionalConditioning:
    """One picture's regional prompts, encoded.

    Attributes:
        joined: the conditioning of all K prompts, their tokens end to end: one row,
            ``prompt_embeds (1, K * T, D)``, in the order of ``shares``. The negative is repeated
            to the same length.
        regions: the regions, in fractions.
        base_weight: the base prompt's share inside them.
        has_base: whether the base prompt comes first; without, the regions leave it no place.
    """

    joined: Conditioning
    regions: tuple[Region, ...]
    base_weight: float
    has_base: bool

    def __len__(self) -> int:
        """K, the number of prompts that have a share."""
        return len(self.regions) + self.has_base

    def shares(self, height: int, width: int) -> Tensor:
        """The share of each prompt at each cell: ``(K, height, width)`` float64, sums of 1."""
        found = _shares(self.regions, self.base_weight, height, width)
        return found if self.has_base else found[1:]

    def report(self) -> ConditioningReport:
        """What each tower read of each prompt."""
        return self.joined.report()


@dataclass(frozen=True)
class RegionalCall:
    """A call of ``regional``, parsed: the base prompt and those of the regions."""

    call: Call
    regions: tuple[Region, ...]
    base_weight: float
    prompts: tuple[Prompt, ...]
    negative: Prompt | None

    def placed(self, default: tuple[int, int] | None) -> tuple[Region, ...]:
        """The regions in fractions; ``default``: the size that the model draws, if it says."""
        height, width = default or (None, None)
        height, width = self.call.sizes.height or height, self.call.sizes.width or width
        size = None if height is None or width is None else (height, width)
        return tuple(region.within(size) for region in self.regions)

    def request(self, has_base: bool) -> Request:
        """What is encoded."""
        skip = 0 if has_base else 1
        used = self.prompts[skip:]
        negatives = None if self.negative is None else (self.negative,) * len(used)
        nothing = (None, None)
        return Request(
            (used, *nothing), (negatives, *nothing), self.call.tagged[skip:], sizes=self.call.sizes
        )


def read_regional(
    prompt: str,
    regions: Sequence[Region],
    negative_prompt: str | None,
    base_weight: float,
    options: Mapping[str, Any],
) -> RegionalCall:
    """Check and parse what ``bridge.regional`` is asked for; ``options``:
    ``RegionCallOptions``.

    Raises:
        PromptError, OptionError: as ``bridge.regional``, but those that need a model.
    """
    if not isinstance(prompt, str):
        raise PromptError("Regional prompts are those of one picture; give one base prompt.")
    if not isinstance(regions, Sequence) or not regions:
        raise OptionError("regions must be a list of at least one bridge.Region.")
    if not all(isinstance(each, Region) for each in regions):
        raise OptionError("regions must be a list of at least one bridge.Region.")
    if not is_finite(base_weight, 0, 1):
        raise OptionError(f"base_weight is {base_weight!r}; give a number from 0 to 1.")
    texts = [prompt, *(each.prompt for each in regions)]
    call = read_call(texts, negative_prompt, options)
    rules, negatives = call.rules, call.negatives[0]
    return RegionalCall(
        call,
        tuple(regions),
        base_weight,
        tuple(rules.parse(each.text) for each in call.tagged),
        None if negatives is None else rules.parse(negatives[0], negative=True),
    )


def mean_shares(regions: Sequence[Region], base_weight: float) -> Tensor:
    """The share of the base prompt and of each region in the whole picture: ``(1 + R,)``."""
    return _shares(regions, base_weight, _GRID, _GRID).mean((1, 2))


def _shares(regions: Sequence[Region], base_weight: float, height: int, width: int) -> Tensor:
    """As ``RegionalConditioning.shares``; the base comes first."""
    cover = torch.stack([region.cover(height, width) for region in regions])
    own = (1 - base_weight) * cover / cover.sum(0).clamp(min=1)
    return torch.cat([(1 - own.sum(0, keepdim=True)).clamp(min=0), own])


def join_regions(found: Conditioning, area: Tensor) -> Conditioning:
    """K rows as one: tokens end to end, pooled states by area."""

    def mean(pooled: Tensor | None) -> Tensor | None:
        return None if pooled is None else (pooled * area.to(pooled)[:, None]).sum(0)[None]

    def end_to_end(plans: tuple[tuple[TokenPlan, ...], ...]) -> tuple[tuple[TokenPlan, ...], ...]:
        named = (
            replace(plan, tower=f"{plan.tower}, prompt {number}")
            for number, row in enumerate(plans, 1)
            for plan in row
        )
        return (tuple(named),)

    def biases(of: Tensor | None) -> Tensor | None:
        return None if of is None else of.reshape(1, -1)

    one = found.take([0])
    assert one.negative_prompt_embeds is not None  # a UNet's recipes always have one
    return replace(
        one,
        attention_bias=biases(found.attention_bias),
        negative_attention_bias=biases(found.negative_attention_bias),
        prompt_embeds=found.prompt_embeds.flatten(0, 1)[None],
        pooled_prompt_embeds=mean(found.pooled_prompt_embeds),
        negative_prompt_embeds=one.negative_prompt_embeds.repeat(1, len(found), 1),
        plans=end_to_end(found.plans),
    )


# ---------------------------------------------------------------- places


def _overlap(low: float, high: float, cells: int) -> Tensor:
    """How much of each of ``cells`` equal cells of 0 to 1 lies in ``low`` to ``high``."""
    edges = torch.arange(cells, dtype=torch.float64)
    return ((edges + 1).clamp(max=high * cells) - edges.clamp(min=low * cells)).clamp(0, 1)


def _box(
    region: Region, box: object, most: tuple[float, float], what: str
) -> tuple[float, float, float, float]:
    try:
        left, top, right, bottom = (float(value) for value in box)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise OptionError(
            f"The region {region.prompt!r} has {box!r} for a box; give (left, top, right, bottom)."
        ) from None
    found = (left, top, right, bottom)
    inside = 0 <= left <= right <= most[0] and 0 <= top <= bottom <= most[1]
    if not inside or not all(map(math.isfinite, found)):
        raise OptionError(
            f"The region {region.prompt!r} is outside the picture: its box {found} must be (left, "
            f"top, right, bottom) within {what}, {most[0]:g} wide and {most[1]:g} high."
        )
    if left == right or top == bottom:
        raise OptionError(f"The region {region.prompt!r} is empty: its box is {found}.")
    return found


def _mask(region: Region) -> Tensor:
    import numpy as np
    from PIL.Image import Image

    raw = region.mask.convert("L") if isinstance(region.mask, Image) else region.mask
    try:
        # By way of numpy, whose default for numbers is no setting of the process.
        found = raw if isinstance(raw, Tensor) else torch.from_numpy(np.array(raw))
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"The mask of the region {region.prompt!r}: {error}.") from error
    scale = 255 if found.dtype == torch.uint8 and found.numel() and found.max() > 1 else 1
    mask = found.detach().cpu().to(torch.float64) / scale
    if mask.ndim != 2 or not mask.numel() or not bool(((mask >= 0) & (mask <= 1)).all()):
        raise OptionError(
            f"The mask of the region {region.prompt!r} must be (height, width) numbers from 0 to "
            f"1; it is {tuple(found.shape)} of {found.dtype}."
        )
    if not bool(mask.any()):
        raise OptionError(f"The mask of the region {region.prompt!r} covers nothing.")
    return mask
