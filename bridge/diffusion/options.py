"""The options of `generate`, judged before any model loads. No torch here."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

from bridge.checks import is_finite, whole
from bridge.embedded import EMBEDDED
from bridge.errors import OptionError, PromptError
from bridge.prompt import check_paired, check_prompts

MAX_STEPS = 1000
MAX_IMAGES = 64
MAX_SIDE = 4096
_SEEDS = 1 << 63


@dataclass(frozen=True)
class Options:
    """Checked options; ``prompts``, ``negatives`` and ``seeds`` are spelt out."""

    prompts: tuple[str, ...]
    negatives: tuple[str, ...] | None
    seeds: tuple[int, ...]  # one a picture: all of the first prompt's, then the second's ...; or
    # none, where noise comes from elsewhere
    steps: int
    guidance_scale: float
    guidance_rescale: float
    num_images: int
    height: int | None
    width: int | None

    @property
    def pictures(self) -> int:
        """How many are drawn."""
        return len(self.prompts) * self.num_images


def checked_options(
    prompt: object,
    negative_prompt: object,
    *,
    seed: object,
    steps: object,
    guidance_scale: object,
    guidance_rescale: object = 0.0,
    num_images: object,
    size: tuple[object, object] = (None, None),
) -> Options:
    """Check the options of a drawing.

    Args:
        size: height and width in pixels; None for the model's own.
        prompt, negative_prompt, seed, steps, guidance_scale, guidance_rescale, num_images: as in
            ``bridge.generate``.

    Raises:
        PromptError, OptionError: every message names the option and its range.
    """
    height, width = size
    prompts = check_prompts(prompt)
    for index, text in enumerate(prompts):
        if not text.strip():
            which = "prompt" if isinstance(prompt, str) else f"prompt {index}"
            raise PromptError(
                f"{which} is empty; say what to draw, such as 'two red apples left of a cat'."
            )
    per_prompt = whole(num_images, "num_images", 1, MAX_IMAGES)
    total = per_prompt * len(prompts)
    if total > MAX_IMAGES:
        raise OptionError(
            f"{len(prompts)} prompts of {per_prompt} pictures are {total} pictures; at most "
            f"{MAX_IMAGES} a call"
        )
    return Options(
        prompts=prompts,
        negatives=check_paired(negative_prompt, len(prompts)),
        seeds=_seeds(seed, total),
        steps=whole(steps, "steps", 1, MAX_STEPS),
        guidance_scale=_guidance(guidance_scale),
        guidance_rescale=_share(guidance_rescale, "guidance_rescale"),
        num_images=per_prompt,
        height=None if height is None else whole(height, "height", 1, MAX_SIDE),
        width=None if width is None else whole(width, "width", 1, MAX_SIDE),
    )


def default_guidance(model: object) -> float:
    """The guidance scale for a model when none is asked for.

    Its own for a model that ships with bridge (the best by benchmarks/results), else 5, as
    diffusers' SDXL pipeline has it.
    """
    told = EMBEDDED.get(model, {}) if isinstance(model, str) else {}
    return float(told.get("guidance_scale", 5.0))


def check_size(height: int | None, width: int | None, factor: int) -> None:
    """Raise OptionError unless height and width are multiples of the model's ``factor``."""
    for name, value in (("height", height), ("width", width)):
        if value is not None and value % factor:
            near = max(factor, round(value / factor) * factor)
            raise OptionError(f"{name} {value} is no multiple of {factor}; {near} would do")


def _guidance(value: object) -> float:
    if not is_finite(value, 0):
        raise OptionError(
            f"guidance_scale is {value!r}; give a number of 0 or more (1 and below: no guidance)"
        )
    return float(value)


def _share(value: object, name: str) -> float:
    if not is_finite(value, 0, 1):
        raise OptionError(f"{name} is {value!r}; give a number from 0 to 1")
    return float(value)


def _seeds(seed: object, total: int) -> tuple[int, ...]:
    if seed is None:
        first = secrets.randbelow(1 << 32)
        return tuple(range(first, first + total))
    if isinstance(seed, Sequence) and not isinstance(seed, str | bytes):
        if len(seed) != total:
            raise OptionError(f"{len(seed)} seeds for {total} pictures; give one a picture")
        return tuple(_seed(value) for value in seed)
    first = _seed(seed)
    return tuple((first + index) % _SEEDS for index in range(total))


def _seed(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or not 0 <= int(value) < _SEEDS:
        raise OptionError(f"seed is {value!r}; give a whole number from 0 to 2**63 - 1")
    return int(value)
