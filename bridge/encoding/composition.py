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

from dataclasses import dataclass, replace
from itertools import accumulate

from bridge.checks import keywords
from bridge.encoding.conditioning import Conditioning, ConditioningReport
from bridge.encoding.options import Call, Request, is_apart, repeated
from bridge.prompt import Flat, Prompt
from bridge.prompt.prompt import first_step
from bridge.prompt.syntax import Branch, parts_of

Weights = tuple[tuple[float, ...], ...]
"""For each prompt the weights of its parts."""


@keywords
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


@dataclass(frozen=True)
class ComposeCall:
    """A call of ``compose``, parsed: a request with a prompt for each part, and their weights."""

    call: Call
    request: Request
    weights: Weights
    is_apart: bool


def read_composition(call: Call) -> ComposeCall:
    """Parse the prompts and take their parts apart. Raises PromptError."""
    rules = call.rules

    def parse(text: str, negative: bool) -> Prompt:
        return rules.parse(text, negative=negative, apart=not negative)

    (first, *later), negatives = call.parsed(parse)
    assert first is not None
    parts = [part_prompts(each, first_step(each)) for each in first]
    counts = tuple(len(some) for some in parts)

    def spread(texts: tuple[Prompt, ...] | None) -> tuple[Prompt, ...] | None:
        return None if texts is None else repeated(texts, counts)

    request = Request(
        (tuple(part for some in parts for part in some), *map(spread, later)),
        tuple(map(spread, negatives)),
        repeated(call.tagged, counts),
        counts,
        call.sizes,
    )
    weights = tuple(weights_of(each) for each in first)
    return ComposeCall(call, request, weights, any(map(is_apart, first)))


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


def starts_of(weights: Weights) -> tuple[int, ...]:
    """The row of each prompt's first part, and in the end the number of rows."""
    return tuple(accumulate((len(some) for some in weights), initial=0))
