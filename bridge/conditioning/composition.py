"""Prompts drawn together: stable-diffusion-webui's ``AND``, as composable diffusion.

``a cat AND a dog :0.7`` is two prompts. Each gives a noise prediction of its own, and the picture
follows their weighted sum, seen from the negative prompt's prediction:
``negative + sum(w_i * (prompt_i - negative))``, which guidance then scales (Liu et al. 2022,
"Compositional Visual Generation with Composable Diffusion Models", equation 11; the web UI's
``CFGDenoiser.combine_denoised``). Weights stay as written: two parts of weight 1 guide twice as
strongly as one, as in the web UI, and a negative weight drives away from its part.

The sum is made at the UNet, so a pipeline draws it inside ``bridge.inject``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TypeVar

import torch

from bridge.conditioning.addons import fitted
from bridge.conditioning.brought import Loras, TextualInversions, bring
from bridge.conditioning.encode import encode_texts
from bridge.conditioning.kit import open_kit
from bridge.conditioning.request import ParsedTexts, Texts, read_place
from bridge.conditioning.result import Conditioning, ConditioningReport
from bridge.conditioning.unet_only import check_unet
from bridge.conditioning.wording import read_wording
from bridge.embedded import DRAWING
from bridge.prompt import Flat, LongPrompt, Prompt, check_paired, check_prompts
from bridge.prompt.schedule import first_step
from bridge.prompt.tree import Branch, Conjunction, parts_of

Each = TypeVar("Each")
Weights = tuple[tuple[float, ...], ...]
"""For each prompt the weights of its parts."""


@dataclass(frozen=True, eq=False)
class Composition:
    """B prompts of one or several parts each.

    Attributes:
        parts: their conditioning, one row a part: the first prompt's parts, then the second's.
            The negatives of one prompt's rows are all its own negative.
        weights: for each prompt the weights of its parts.
    """

    parts: Conditioning
    weights: Weights

    def __len__(self) -> int:
        """B, the number of prompts."""
        return len(self.weights)

    @property
    def starts(self) -> tuple[int, ...]:
        """The row of each prompt's first part."""
        return starts_of(self.weights)[:-1]

    @property
    def first(self) -> Conditioning:
        """The first part of each prompt alone: B rows. It is what the pipeline itself is given."""
        return self.parts.take(self.starts)

    @property
    def is_plain(self) -> bool:
        """Whether every prompt is a single one of weight 1."""
        return all(weights == (1.0,) for weights in self.weights)

    def report(self) -> ConditioningReport:
        """What each tower read of each part, one entry a row of ``parts``."""
        return self.parts.report()


def compose(
    prompt: Texts,
    negative_prompt: Texts | None = None,
    *,
    model: object = DRAWING,
    dialect: str = "a1111",
    emphasis: str | None = None,
    token_normalization: str = "none",
    long_prompt: str | LongPrompt | None = None,
    align: str | None = None,
    clean: str | None = None,
    textual_inversions: TextualInversions | None = None,
    loras: Loras | None = None,
    clip_skip: int | None = None,
    negative_clip_skip: int | None = None,
    height: int | None = None,
    width: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
) -> Composition:
    """Encode prompts of several parts, ``a cat AND a dog :0.7``, in one pass a tower.

    A prompt without ``AND`` is one part of weight 1. Negatives have no parts, as in
    stable-diffusion-webui. Prompts that change from step to step go to ``bridge.schedule``, which
    reads ``AND`` too.

    ::

        both = bridge.compose("a cat AND a dog :0.7", model=pipe)
        with bridge.inject(pipe, both) as kwargs:
            image = pipe(**kwargs).images[0]

    Args: as ``bridge.condition``.

    Raises:
        As ``bridge.condition``.
    """
    texts = check_prompts(prompt)
    negatives = check_paired(negative_prompt, len(texts))
    wording = read_wording(dialect, emphasis, token_normalization, long_prompt, align, clean)
    place = read_place(
        clip_skip, height, width, device, dtype, negative_clip_skip=negative_clip_skip
    )
    tagged = tuple(wording.tagged(text) for text in texts)
    brought = bring(textual_inversions, loras, tagged)
    prompts = tuple(wording.parse(each.text, apart=True) for each in tagged)
    opposed = (
        None if negatives is None else [wording.parse(text, negative=True) for text in negatives]
    )
    kit = open_kit(model, device=place.device, dtype=place.dtype, revision=revision)
    if any(map(is_apart, prompts)):
        check_unet(kit, "The parts of an AND are summed")
    parts = [part_prompts(each, first_step(each)) for each in prompts]
    counts = [len(some) for some in parts]
    found = encode_texts(
        fitted(kit, brought, dialect),
        wording,
        place,
        ParsedTexts(
            tuple(part for some in parts for part in some),
            None if opposed is None else repeated(opposed, counts),
            tagged=repeated(tagged, counts),
            counts=tuple(counts),
        ),
    )
    return Composition(found, tuple(weights_of(each) for each in prompts))


def part_prompts(prompt: Prompt, flat: Flat) -> tuple[Prompt, ...]:
    """The parts that ``AND`` makes of a prompt, each as a prompt; ``flat`` is it at one step."""
    if not (is_apart(prompt) or isinstance(prompt.tree, Branch)):
        return (prompt,)
    branches = parts_of(prompt.tree)
    return tuple(
        replace(prompt, spans=part.spans, tree=branch)
        for part, branch in zip(flat.parts, branches, strict=True)
    )


def weights_of(prompt: Prompt) -> tuple[float, ...]:
    """The weights of the parts that ``AND`` makes; (1.0,) without it."""
    return tuple(b.weight for b in parts_of(prompt.tree)) if is_apart(prompt) else (1.0,)


def is_apart(prompt: Prompt) -> bool:
    """Whether the noise predictions of its parts are to be summed. compel's ``.and()``, the other
    conjunction, sets their states end to end instead."""
    return prompt.dialect == "a1111" and isinstance(prompt.tree, Conjunction)


def starts_of(weights: Weights) -> tuple[int, ...]:
    """The row of each prompt's first part, and in the end the number of rows."""
    return tuple(accumulate((len(some) for some in weights), initial=0))


def repeated(prompts: Sequence[Each], counts: Sequence[int]) -> tuple[Each, ...]:
    """Each prompt as often as its count says."""
    return tuple(p for p, n in zip(prompts, counts, strict=True) for _ in range(n))
