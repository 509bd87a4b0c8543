"""The anisotropy baseline: the cosine that unrelated texts have anyway.

Ethayarajh 2019, "How Contextual are Contextualized Word Representations?": the mean cosine of
states of randomly drawn texts. Zero for a tower that uses its space evenly; CLIP's are far from it.
"""

from __future__ import annotations

import torch
from torch import Tensor

UNRELATED = (
    "a red apple",
    "three dogs in a park",
    "the moon over a mountain",
    "an old wooden boat",
    "a green car",
    "two birds on a fence",
    "a slice of pizza",
    "a woman reading a newspaper",
    "a yellow banana on a blue plate",
    "a rocket in the sky",
    "snow on a roof",
    "a clock",
    "an elephant next to a small house",
    "a pair of purple shoes",
    "rain at night",
    "a guitar and a drum",
    "a bowl of rice",
    "a white cat asleep",
    "a tree with orange leaves",
    "a king with a golden crown",
    "five balloons",
    "a fish under water",
    "a bicycle against a brick wall",
    "a cup of coffee",
    "a black spider",
    "the sun over the sea",
    "a robot with a flower",
    "a loaf of bread",
    "a train in a tunnel",
    "a pink umbrella",
    "an airplane above the clouds",
    "a desk with a lamp",
)
"""Texts that have as little in common as prompts may."""


def mean_cosine(states: Tensor) -> float:
    """The mean cosine of all pairs of different rows of ``(N, D)``; NaN for less than two."""
    count = len(states)
    if count < 2:
        return float("nan")
    rows = torch.nn.functional.normalize(states.double(), dim=-1)
    total = rows.sum(0)
    # The sum over all pairs is |sum|^2; the diagonal is what each row has with itself.
    return float((total @ total - (rows * rows).sum()) / (count * (count - 1)))
