"""``AND`` at the UNet: parts as further rows of one call, and their predictions summed.

The pipeline calls the UNet with rows for its negatives and its prompts. Here each prompt's row is
run once for every part, in the same call, and comes back as
``negative + sum(w_i * (part_i - negative))``. The pipeline's own arithmetic, ``negative + scale *
(prompt - negative)``, then gives ``negative + scale * sum(w_i * (part_i - negative))``. A prompt
of one part of weight 1 comes back untouched. Without guidance the scale is 1, and negatives are
run for prompts of several parts only. A ControlNet's residuals, made for a prompt's first part,
hold for all its parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bridge.diffusion.hooks import Kwargs, by_name, by_place, picked, rows_of
from bridge.encoding.composition import Composition, Weights, starts_of
from bridge.encoding.pipeline_state import is_guided
from bridge.errors import OptionError


@dataclass(frozen=True)
class Layout:
    """The rows of one widened UNet call: first the negatives, then the parts of each picture.

    Attributes:
        sources: for each row, the pipeline's row whose latents it takes.
        negatives: for each of the first rows, the row of the conditioning whose negative it has.
        parts: for each of the rest, the row of the conditioning that it has.
        weights: for each picture the weights of its parts.
        guided: whether the pipeline wants its negatives back.
    """

    sources: tuple[int, ...]
    negatives: tuple[int, ...]
    parts: tuple[int, ...]
    weights: Weights
    guided: bool


def layout(weights: Weights, rows: int, guided: bool) -> Layout:
    """How a call of ``rows`` rows is widened. Raises OptionError if the rows do not fit."""
    pictures, odd = divmod(rows, 2 if guided else 1)
    each, rest = divmod(pictures, len(weights))
    if odd or rest or not each:
        raise OptionError(
            f"The pipeline runs {rows} rows, {'with' if guided else 'without'} guidance, which "
            f"do not fit {len(weights)} prompts: draw with the prompts that were injected, in a "
            "pipeline that runs negatives and prompts in one call."
        )
    starts = starts_of(weights)
    prompts = [i // each for i in range(pictures)]
    first = pictures if guided else 0
    plain = all(some == (1.0,) for some in weights)
    opposed = range(pictures) if guided or not plain else range(0)
    return Layout(
        sources=(
            *opposed,
            *(first + i for i, prompt in enumerate(prompts) for _ in weights[prompt]),
        ),
        negatives=tuple(starts[prompts[i]] for i in opposed),
        parts=tuple(row for p in prompts for row in range(starts[p], starts[p + 1])),
        weights=tuple(weights[prompt] for prompt in prompts),
        guided=guided,
    )


def summed(prediction: Tensor, rows: Layout) -> Tensor:
    """The pipeline's rows out of the widened ones ``(E, C, h, w)``; sums are made in float32."""
    count = len(rows.negatives)
    negatives, rest = prediction[:count], prediction[count:]
    results = []
    for i, weights in enumerate(rows.weights):
        own, rest = rest[: len(weights)], rest[len(weights) :]
        if weights == (1.0,):
            results.append(own[0])
            continue
        base = negatives[i].float()
        mix = torch.tensor(weights, device=base.device, dtype=torch.float32).view(
            -1, *[1] * base.ndim
        )
        results.append((base + (mix * (own.float() - base)).sum(0)).to(prediction.dtype))
    composed = torch.stack(results)
    return torch.cat([negatives, composed]) if rows.guided else composed


class ComposedNoise:
    """``before`` and ``after`` of a UNet call; ``key_bias`` is that of the call under way.

    Args:
        pipe: the pipeline that draws.
        now: gives what holds at the present step.
    """

    def __init__(self, pipe: Any, now: Callable[[], Composition]) -> None:
        self._pipe = pipe
        self._now = now
        self._layout: Layout | None = None
        self.key_bias: Tensor | None = None

    def before(self, args: tuple[Any, ...], kwargs: Kwargs) -> tuple[tuple[Any, ...], Kwargs]:
        """Widen the call."""
        call, composition = by_name(args, kwargs), self._now()
        running, parts = call["encoder_hidden_states"], composition.parts
        count = len(call["sample"])
        rows = layout(composition.weights, count, is_guided(self._pipe))

        def stacked(negative: Tensor | None, positive: Tensor) -> Tensor:
            assert negative is not None  # a UNet's recipes always have one
            whole = torch.cat([negative[list(rows.negatives)], positive[list(rows.parts)]])
            return whole.to(running.device, running.dtype)

        wide = picked(call, rows_of(rows.sources), count)
        wide["encoder_hidden_states"] = stacked(parts.negative_prompt_embeds, parts.prompt_embeds)
        added = wide.get("added_cond_kwargs") or {}
        if "text_embeds" in added and parts.pooled_prompt_embeds is not None:
            added["text_embeds"] = stacked(
                parts.negative_pooled_prompt_embeds, parts.pooled_prompt_embeds
            )
        self._layout = rows
        self.key_bias = None
        if parts.attention_bias is not None:
            assert parts.negative_attention_bias is not None
            self.key_bias = stacked(parts.negative_attention_bias, parts.attention_bias)[:, None]
        return by_place(wide, len(args))

    def after(self, output: Any) -> Any:
        """Fold its output: a tuple whose first is the prediction, or diffusers' output class."""
        assert self._layout is not None
        whole = summed(output[0], self._layout)
        return (whole, *output[1:]) if isinstance(output, tuple) else type(output)(whole)
