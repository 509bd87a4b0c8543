"""Emphasis of stable-diffusion-webui (``modules/sd_emphasis.py``): scale, then restore the mean.

The mean is one number a window: over all its places and all channels. The webui takes it over the
whole batch of prompts that it encodes at once; here each prompt is weighed by itself, as the
webui does with one prompt, so that a prompt's neighbours cannot change it. A mean near zero makes
the rescaling explode (webui issues 14874, 13791); ``no_norm`` leaves it out. A mean that is nothing
but rounding, as that of a tower whose norm was never trained, has no ratio: it gives NaN, which
``soundness`` makes an error of.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bridge.encoding.emphasis.method import Emphasis, no_rows, weights_of
from bridge.prompt import TokenPlan


def _scale(plan: TokenPlan, states: Tensor, extra: Tensor) -> Tensor:
    return states * weights_of(plan, states)


def _scale_and_restore(plan: TokenPlan, states: Tensor, extra: Tensor) -> Tensor:
    scaled = _scale(plan, states, extra)
    return scaled * (_mean(states) / _mean(scaled))


def _mean(states: Tensor) -> Tensor:
    mean = states.mean((1, 2), keepdim=True)
    rounding = torch.finfo(torch.float32).eps * states.abs().mean((1, 2), keepdim=True)
    return mean.masked_fill(mean.abs() <= rounding, torch.nan)


A1111 = Emphasis(no_rows, _scale_and_restore)
"""The webui's default, "Original"."""

NO_NORM = Emphasis(no_rows, _scale)
"""The webui's "No norm"; what sd_embed does."""
