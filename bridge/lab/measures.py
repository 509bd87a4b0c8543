"""What is measured of a tower's states and of a judge's figures: pure functions, float64 inside.

=====================  ===========================================================================
chance                 Ethayarajh 2019, "How Contextual are Contextualized Word Representations?":
                       the mean cosine of unrelated texts. Zero for a tower that uses its space
                       evenly; CLIP's are far from it
centred cosine         after the mean of unrelated texts is taken off, so that chance is near 0
effective rank         Roy and Vetterli 2007, "The effective rank: a measure of effective
                       dimensionality"
Kendall's tau-b        Kendall 1945: do two towers agree on which variants move a prompt most
linear CKA             Kornblith et al. 2019, "Similarity of Neural Network Representations
                       Revisited": do they agree on which texts lie near which
Wilson's interval      Wilson 1927, of a share
=====================  ===========================================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from bridge.checks import needed
from bridge.lab.variants.words import split_words

_UNRELATED = (
    "a red apple; three dogs in a park; the moon over a mountain; an old wooden boat; "
    "a green car; two birds on a fence; a slice of pizza; a woman reading a newspaper; "
    "a yellow banana on a blue plate; a rocket in the sky; snow on a roof; a clock; "
    "an elephant next to a small house; a pair of purple shoes; rain at night; "
    "a guitar and a drum; a bowl of rice; a white cat asleep; a tree with orange leaves; "
    "a king with a golden crown; five balloons; a fish under water; "
    "a bicycle against a brick wall; a cup of coffee; a black spider; the sun over the sea; "
    "a robot with a flower; a loaf of bread; a train in a tunnel; a pink umbrella; "
    "an airplane above the clouds; a desk with a lamp"
)
UNRELATED = tuple(_UNRELATED.split("; "))
"""Texts that have as little in common as prompts may."""

Offsets = Sequence[tuple[int, int] | None]
"""Where each token stands in the text; None for special ones and padding."""


def scipy_stats() -> Any:
    """``scipy.stats``.

    Raises:
        MissingDependencyError: without scipy.
    """
    return needed("scipy.stats", "lab", "bridge.study")


# ---------------------------------------------------------------- tokens of words


def content(offsets: Offsets) -> list[int]:
    """The places of the tokens that stand for text."""
    return [at for at, span in enumerate(offsets) if span]


def tokens_of_words(text: str, offsets: Offsets) -> list[list[int]]:
    """For each word of ``text`` (``split_words``) the places of the tokens that touch it.

    A word that was cut off has none.
    """
    return [
        [at for at, span in enumerate(offsets) if span and span[0] < end and span[1] > start]
        for start, end in split_words(text).spans()
    ]


def pieces_per_word(text: str, offsets: Offsets) -> float:
    """Tokens per word, over the words that were not cut off; the "fertility" of a tokenizer.

    NaN for a text without words.
    """
    counts = [len(places) for places in tokens_of_words(text, offsets) if places]
    return sum(counts) / len(counts) if counts else math.nan


def word_shares(row: Tensor, words: Sequence[Sequence[int]]) -> list[float]:
    """What each word has of a rollout's row (``bridge.towers.rollout``): the row of the EOS token
    says what the pooled state is made of.

    Args:
        row: ``(T,)``.
        words: the places of each word's tokens.

    Returns:
        The shares of the words among themselves: BOS, on which rollout always puts much, and the
        token itself are left out. NaN throughout if the words have nothing.
    """
    shares = [float(row[list(places)].sum()) if places else 0.0 for places in words]
    total = sum(shares)
    return [share / total if total else math.nan for share in shares]


# ---------------------------------------------------------------- cosines


def cosine(a: Tensor, b: Tensor, mean: Tensor | None = None) -> float:
    """The cosine of two states ``(D,)``, after ``mean (D,)`` is taken off."""
    return float(cosines(a[None], b[None], mean))


def cosines(a: Tensor, b: Tensor, mean: Tensor | None = None) -> Tensor:
    """The cosine of each row of ``a (N, D)`` with that of ``b``: ``(N,)`` float64.

    1 for equal rows, zeros among them; 0 where only one of the two is zero.
    """
    x, y = a.double(), b.double()
    if mean is not None:
        x, y = x - mean.double(), y - mean.double()
    same = (x == y).all(-1)
    return torch.where(same, torch.ones_like(x[:, 0]), cosine_similarity(x, y, dim=-1, eps=1e-12))


def mean_cosine(states: Tensor) -> float:
    """The mean cosine of all pairs of different rows of ``(N, D)``; NaN for less than two."""
    count = len(states)
    if count < 2:
        return math.nan
    rows = normalize(states.double(), dim=-1)
    total = rows.sum(0)
    # The sum over all pairs is |sum|^2; the diagonal is what each row has with itself.
    return float((total @ total - (rows * rows).sum()) / (count * (count - 1)))


def above_chance(value: float, chance: float) -> float:
    """A cosine on a scale where unrelated texts are at 0 and equal ones at 1."""
    return (value - chance) / (1 - chance) if chance < 1 else math.nan


def matched(a: Sequence[int], b: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of places whose ids are the same, in order: what two token lists have in common
    (Ratcliff and Obershelp's matching, as ``difflib`` has it)."""
    blocks = SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
    return [(i + k, j + k) for i, j, size in blocks for k in range(size)]


def token_cosine(
    a: Tensor,
    b: Tensor,
    ids_a: Sequence[int],
    ids_b: Sequence[int],
    mean: Tensor | None = None,
) -> float:
    """The mean cosine of the states of tokens that both texts have; NaN if they share none.

    Args:
        a, b: ``(Ta, D)`` and ``(Tb, D)`` states of the content tokens.
        ids_a, ids_b: their ids.
        mean: ``(D,)``, taken off first.
    """
    pairs = matched(ids_a, ids_b)
    if not pairs:
        return math.nan
    left, right = (list(side) for side in zip(*pairs, strict=True))
    return float(cosines(a[left], b[right], mean).mean())


def texts_without(prompt: str) -> list[str]:
    """The prompt without its first word, without its second, and so on."""
    words = split_words(prompt)
    return [words.without(at) for at in range(len(words.words))]


def effects(whole: Tensor, without: Tensor, mean: Tensor | None = None) -> Sequence[float]:
    """The leave-one-out effect of each word: ``1 - cosine`` of the text that lacks it.

    Args:
        whole: ``(D,)`` pooled state of the prompt.
        without: ``(N, D)`` those of the texts.
        mean: ``(D,)``, taken off first.
    """
    return (1 - cosines(whole.expand_as(without), without, mean)).tolist()


# ---------------------------------------------------------------- sets of texts


def effective_rank(states: Tensor) -> float:
    """In how many directions a set of states ``(N, D)`` differs: the exponential of the entropy of
    the singular values about its mean, scaled to sum 1.

    From 1 to min(N - 1, D); 0 for rows that are all the same.
    """
    x = states.double()
    values = torch.linalg.svdvals(x - x.mean(0))
    # States come in float32: what its rounding leaves in another batch is not a direction.
    values = values[values > 1e-6 * float(torch.linalg.matrix_norm(x))]
    if not len(values):
        return 0.0
    return math.exp(scipy_stats().entropy(values.numpy()))


def kendall_tau(x: Sequence[float], y: Sequence[float]) -> float:
    """Tau-b, which allows for ties, from -1 to 1. Pairs with a NaN do not count.

    NaN for less than two pairs, or where one side is all the same.
    """
    pairs = np.array([x, y], dtype=float)
    pairs = pairs[:, ~np.isnan(pairs).any(0)]
    if pairs.shape[1] < 2:
        return math.nan
    return float(scipy_stats().kendalltau(*pairs, variant="b").statistic)


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA of ``(N, D1)`` and ``(N, D2)``, row by row of the same texts: 0 to 1.

    By the Gram matrices, since N is small: ``<K, L> / (|K| |L|)`` of the centred ones. It is the
    biased estimate, which for few texts in many dimensions is high by itself; compare it at one N
    only. NaN where all texts have one state, and for two texts, of which it is always 1.
    """
    if len(x) < 3:
        return math.nan
    k, m = _gram(x), _gram(y)
    scale = torch.linalg.matrix_norm(k) * torch.linalg.matrix_norm(m)
    return float((k * m).sum() / scale) if scale > 0 else math.nan


def _gram(states: Tensor) -> Tensor:
    centred = states.double() - states.double().mean(0)
    return centred @ centred.T


# ---------------------------------------------------------------- a judge's figures


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, low and high of 95 %: Wilson's interval for shares of 0 and 1, else mean ± z s/√n.

    NaNs for no values, and for the ends where one value that is not 0 or 1 has no spread.
    """
    stats = scipy_stats()
    known = np.array([value for value in values if not math.isnan(value)])
    if not len(known):
        return math.nan, math.nan, math.nan
    mean = float(known.mean())
    if np.isin(known, (0, 1)).all():
        share = stats.binomtest(int(known.sum()), len(known)).proportion_ci(method="wilson")
        return mean, float(share.low), float(share.high)
    if len(known) < 2:
        return mean, math.nan, math.nan
    half = float(stats.norm.ppf(0.975) * stats.sem(known))
    return mean, mean - half, mean + half
