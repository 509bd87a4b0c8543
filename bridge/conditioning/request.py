"""A call of ``condition``, checked and parsed: its texts, and the place of its result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch

from bridge.conditioning.brought import Loras, TextualInversions
from bridge.conditioning.sizes import check_length, check_pair
from bridge.errors import OptionError
from bridge.prompt import LongPrompt, Prompt
from bridge.prompt.loras import Tagged
from bridge.prompt.schedule import Rule
from bridge.runtime import check_dtype, resolve_device

Texts = str | Sequence[str]
# What T5 was trained on, and what diffusers' SD 3 and FLUX.1 pipelines allow.
_LONGEST = 512


class WordingOptions(TypedDict, total=False):
    """How texts become states: options of ``bridge.schedule``; what is left out is as there."""

    towers: Any
    adapter: Any
    rule: Rule
    dialect: str
    emphasis: str | None
    token_normalization: str
    long_prompt: str | LongPrompt | None
    align: str | None
    clean: str | None
    textual_inversions: TextualInversions | None
    loras: Loras | None
    clip_skip: int | None
    negative_clip_skip: int | None
    max_sequence_length: int | None


@dataclass(frozen=True)
class ParsedTexts:
    """Parsed prompts, and what goes with each: negatives, texts of the later towers' own, and the
    prompts as they were written, LoRA tags included.

    ``counts``: how many rows each prompt has, those of its ``AND``; more rows than these are the
    same prompts at later steps. Without it each row is a prompt of its own.
    """

    prompts: tuple[Prompt, ...]
    negatives: tuple[Prompt, ...] | None = None
    seconds: tuple[Prompt, ...] | None = None
    negative_seconds: tuple[Prompt, ...] | None = None
    thirds: tuple[Prompt, ...] | None = None
    negative_thirds: tuple[Prompt, ...] | None = None
    tagged: tuple[Tagged, ...] = ()
    counts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Place:
    """Checked options that say for which picture, from which layer, and where to.

    ``negative_clip_skip`` is None where the negative goes by the dialect's own tool.
    """

    clip_skip: int | None
    height: int | None
    width: int | None
    original_size: tuple[int, int] | None
    crop: tuple[int, int] | None
    target_size: tuple[int, int] | None
    device: torch.device | None
    dtype: torch.dtype | None
    max_sequence_length: int | None = None
    negative_clip_skip: int | None = None

    def skip_of_negative(self, own: bool) -> int:
        """The layers that the negative skips; ``own``: whether the dialect skips them in both."""
        if self.negative_clip_skip is not None:
            return self.negative_clip_skip
        return (self.clip_skip or 0) if own else 0


def read_place(
    clip_skip: int | None,
    height: int | None,
    width: int | None,
    device: torch.device | str | None,
    dtype: torch.dtype | str | None,
    *,
    original_size: Sequence[int] | None = None,
    crops_coords_top_left: Sequence[int] | None = None,
    target_size: Sequence[int] | None = None,
    max_sequence_length: int | None = None,
    negative_clip_skip: int | None = None,
) -> Place:
    """Check the options of ``condition``. Raises OptionError."""
    _check_skip(clip_skip, "clip_skip")
    _check_skip(negative_clip_skip, "negative_clip_skip")
    _check_sequence(max_sequence_length)
    return Place(
        clip_skip,
        check_length(height, "height"),
        check_length(width, "width"),
        check_pair(original_size, "original_size", 1),
        check_pair(crops_coords_top_left, "crops_coords_top_left", 0),
        check_pair(target_size, "target_size", 1),
        None if device is None else resolve_device(device),
        check_dtype(dtype),
        max_sequence_length,
        negative_clip_skip,
    )


def _check_skip(skip: object, name: str) -> None:
    """Raise OptionError unless it is a whole number from 0 up, or None."""
    if skip is None:
        return
    if isinstance(skip, bool) or not isinstance(skip, int) or skip < 0:
        raise OptionError(f"{name} must be a whole number from 0 up, not {skip!r}.")


def _check_sequence(length: object) -> None:
    """Raise OptionError unless it is a length that T5 is made for, or None."""
    if length is None:
        return
    if isinstance(length, bool) or not isinstance(length, int) or not 1 <= length <= _LONGEST:
        raise OptionError(
            f"max_sequence_length must be a whole number from 1 to {_LONGEST}, not {length!r}."
        )
