"""What a CLIP is worth, by the field's figures: pure functions of embeddings and labels.

Definitions are those of CLIP_benchmark (LAION-AI/CLIP_benchmark, ``clip_benchmark/metrics``), whose
own code gives the same figures on the same embeddings (tests/parity). Calibration is that of Guo et
al. 2017, "On Calibration of Modern Neural Networks", section 2. Where two scores are equal, the one
that comes first counts as the better, so that a figure does not depend on how a library sorts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bridge.errors import OptionError
from bridge.towers.family import Scoring, cosines

BINS = 15
"""Bins of equal width in a calibration, as Guo et al. have it."""

_Z = 1.959963984540054  # the normal distribution's 97.5 % point
_RESAMPLES = 2000
_DRAWN = 1 << 20  # places of resamples that are in memory at once
_BLOCK = 1024  # rows of a similarity matrix that are in memory at once


# ---------------------------------------------------------------- shares


@dataclass(frozen=True)
class Share:
    """A figure from 0 to 1 with its 95 % interval.

    Attributes:
        value, low, high: the figure and the ends of its interval.
        n: how many trials are behind it.
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        value, low, high = (f"{100 * each:.1f}" for each in (self.value, self.low, self.high))
        return f"{value} % [{low}, {high}]"


def wilson(successes: int, n: int) -> Share:
    """A share with Wilson's score interval (Wilson, JASA 1927).

    Raises:
        OptionError: unless 0 <= successes <= n and n > 0.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise OptionError(f"{successes} of {n} is not a share")
    share, z2 = successes / n, _Z * _Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At 0 and n the ends are exact; the sum may miss them by a rounding.
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    high = 1.0 if successes == n else min(1.0, middle + half)
    return Share(share, low, high, n)


def _grouped(parts: Tensor, wholes: Tensor) -> Share:
    """sum(parts) / sum(wholes), where each pair is a group of trials that are alike.

    The interval is the bootstrap's over groups (2,000 resamples, fixed seed); groups that are all
    right or all wrong have no spread to draw from, and Wilson's at their number instead.
    """
    parts, wholes = parts.double(), wholes.double()
    n, share = int(wholes.sum()), float(parts.sum() / wholes.sum())
    if share in (0.0, 1.0) or len(wholes) == 1:
        ends = wilson(round(share * len(wholes)), len(wholes))
        return Share(share, min(share, ends.low), max(share, ends.high), n)
    found = torch.cat(
        [parts[drawn].sum(1) / wholes[drawn].sum(1) for drawn in _resamples(len(wholes))]
    )
    low, high = torch.quantile(found, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Share(share, min(share, low), max(share, high), n)


def _resamples(n: int) -> Iterator[Tensor]:
    """Places of the bootstrap's resamples, ``(some, n)`` at a time; a fixed seed."""
    rng = torch.Generator().manual_seed(0)
    for some in torch.arange(_RESAMPLES, dtype=torch.long).split(max(1, _DRAWN // n)):
        yield torch.randint(n, (len(some), n), generator=rng)


# ---------------------------------------------------------------- calibration


@dataclass(frozen=True)
class Bin:
    """Predictions of like confidence: those in ``(low, high]``.

    Attributes:
        low, high: the bin's ends.
        n: how many predictions are in it.
        confidence: their mean confidence; None for an empty bin, as is ``right``.
        right: the share of them that is right.
    """

    low: float
    high: float
    n: int
    confidence: float | None
    right: Share | None


@dataclass(frozen=True)
class Calibration:
    """How far confidence is from being right.

    Attributes:
        bins: from the least confident to the most.
        error: the expected calibration error: the mean gap of a bin between its confidence and its
            share of right predictions, weighted by how many are in it. Its interval is 1.96 times
            the bootstrap's standard error over predictions either way.
        confidence: the mean confidence; above the share of right ones a model is overconfident.
    """

    bins: tuple[Bin, ...]
    error: Share
    confidence: float


def calibration(confidences: Tensor, right: Tensor, bins: int = BINS) -> Calibration:
    """The expected calibration error (Guo et al. 2017, equation 3) and its bins.

    Args:
        confidences: ``(N,)`` from 0 to 1, the probability of each prediction.
        right: ``(N,)`` bool, whether it came true.
        bins: bins of equal width.

    Raises:
        OptionError: no predictions.
    """
    if not len(confidences):
        raise OptionError("there are no predictions to calibrate")
    sure, true = confidences.double().cpu(), right.double().cpu()
    ends = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    places = torch.bucketize(sure, ends[1:-1])
    found = []
    for at in range(bins):
        inside = places == at
        n = int(inside.sum())
        found.append(
            Bin(
                float(ends[at]),
                float(ends[at + 1]),
                n,
                float(sure[inside].mean()) if n else None,
                wilson(int(true[inside].sum()), n) if n else None,
            )
        )
    gaps = sure - true
    error = float(
        _calibration_errors(torch.arange(len(gaps), dtype=torch.long)[None], places, gaps, bins)
    )
    again = torch.cat(
        [_calibration_errors(drawn, places, gaps, bins) for drawn in _resamples(len(gaps))]
    )
    half = _Z * float(again.std())
    share = Share(error, max(0.0, error - half), min(1.0, error + half), len(gaps))
    return Calibration(tuple(found), share, float(sure.mean()))


def _calibration_errors(drawn: Tensor, places: Tensor, gaps: Tensor, bins: int) -> Tensor:
    """Of each row of drawn predictions: the gaps of a bin, added up with their signs, are its own
    gap times the number of predictions in it."""
    sums = torch.zeros(len(drawn), bins, dtype=torch.float64)
    return sums.scatter_add_(1, places[drawn], gaps[drawn]).abs().sum(1) / drawn.shape[1]


# ---------------------------------------------------------------- classification


@dataclass(frozen=True)
class ClassFigures:
    """One label's row of the table.

    Attributes:
        label: its name.
        recall: the share of its pictures that is called so; None if it has none.
        precision: the share of what is called so that it is; None if nothing is.
        average_precision: of all pictures, ranked by its score.
    """

    label: str
    recall: Share | None
    precision: Share | None
    average_precision: float


@dataclass(frozen=True)
class Confusion:
    """Pictures of one label that another is given to.

    Attributes:
        label, taken_for: the two labels.
        places: those pictures, the most confident first.
        share: of all pictures of ``label``.
    """

    label: str
    taken_for: str
    places: tuple[int, ...]
    share: Share


@dataclass(frozen=True, eq=False)
class Classification:
    """Predictions of one label a picture, and what can be said of them.

    Attributes:
        labels: the L labels.
        targets: ``(N,)`` int64, the right label of each picture.
        predicted: ``(N,)`` int64, the label of the highest score.
        ranks: ``(N,)`` int64, the place of the right label by score; 0 is the first.
        confidences: ``(N,)`` float32, the probability of ``predicted``; None for towers that were
            not trained to score.
        average_precision: ``(L,)`` float32, as `average_precision`.
    """

    labels: tuple[str, ...]
    targets: Tensor
    predicted: Tensor
    ranks: Tensor
    confidences: Tensor | None
    average_precision: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def top(self, k: int) -> Share | None:
        """Top-k accuracy: the share of pictures whose label is among the k best. None for fewer
        labels than k, where CLIP_benchmark gives NaN."""
        if k > len(self.labels):
            return None
        return wilson(int((self.ranks < k).sum()), len(self))

    @cached_property
    def confusion(self) -> Tensor:
        """``(L, L)`` int64: how many pictures of each label (row) are given each label (column)."""
        count = len(self.labels)
        pairs = torch.bincount(self.targets * count + self.predicted, minlength=count * count)
        return pairs.view(count, count)

    @cached_property
    def mean_per_class_recall(self) -> Share:
        """The mean over labels with pictures of the share of theirs that is right, scikit-learn's
        ``balanced_accuracy_score``. The interval is the bootstrap's over labels."""
        sizes = self.confusion.sum(1)
        there = sizes > 0
        recalls = self.confusion.diagonal()[there].double() / sizes[there]
        found = _grouped(recalls, torch.ones_like(recalls))
        return Share(found.value, found.low, found.high, len(self))

    @cached_property
    def calibration(self) -> Calibration | None:
        """None where there are no probabilities."""
        if self.confidences is None:
            return None
        return calibration(self.confidences, self.predicted == self.targets)

    @cached_property
    def per_class(self) -> tuple[ClassFigures, ...]:
        """A row for each label."""
        right = self.confusion.diagonal().tolist()
        theirs, given = self.confusion.sum(1).tolist(), self.confusion.sum(0).tolist()
        return tuple(
            ClassFigures(
                label,
                wilson(right[at], theirs[at]) if theirs[at] else None,
                wilson(right[at], given[at]) if given[at] else None,
                float(self.average_precision[at]),
            )
            for at, label in enumerate(self.labels)
        )

    def worst_confusions(self, most: int = 12) -> tuple[Confusion, ...]:
        """The pairs of labels with the most mistaken pictures, the worst first."""
        wrong = self.confusion.clone().fill_diagonal_(0).flatten()
        order = torch.sort(wrong, descending=True, stable=True).indices[:most]
        found = []
        for pair in order.tolist():
            if not wrong[pair]:
                break
            own, other = divmod(pair, len(self.labels))
            places = ((self.targets == own) & (self.predicted == other)).nonzero()[:, 0]
            if self.confidences is not None:
                sure = self.confidences[places]
                places = places[torch.sort(sure, descending=True, stable=True).indices]
            share = wilson(len(places), int((self.targets == own).sum()))
            pictures = tuple(places.tolist())
            found.append(Confusion(self.labels[own], self.labels[other], pictures, share))
        return tuple(found)


def zero_shot(
    images: Tensor,
    weights: Tensor,
    targets: Tensor,
    labels: Sequence[str],
    scoring: Scoring | None,
) -> Classification:
    """Zero-shot classification (Radford et al. 2021, section 3.1.2) of pictures in vectors.

    Args:
        images: ``(N, P)`` of ``CLIP.encode_image``, or ``(N, Q, P)``, of which the best query
            counts.
        weights: ``(L, P)``, a text's or an ensemble's vector for each label.
        targets: ``(N,)`` whole numbers, the right label of each picture.
        labels: the L names.
        scoring: the model's scale and bias; None for none, and there is no calibration then.

    Raises:
        OptionError: no pictures; labels, weights and targets that do not fit each other.
    """
    if scoring is None:
        return classification(cosines(weights, images).T, targets, labels)
    scores = scoring.scores(weights, images).T
    return classification(scores, targets, labels, scoring.sigmoid)


def classification(
    scores: Tensor, targets: Tensor, labels: Sequence[str], sigmoid: bool | None = None
) -> Classification:
    """What scores say of pictures.

    Args:
        scores: ``(N, L)`` logits, or anything that ranks the labels.
        targets, labels: as `zero_shot`.
        sigmoid: how logits become probabilities: each by itself (True) or by a softmax over the
            labels (False); None for scores that are not logits.

    Raises:
        OptionError: as `zero_shot`.
    """
    scores, targets = scores.float().cpu(), targets.long().cpu()
    _check(scores, targets, labels)
    own = scores.gather(1, targets[:, None])
    places = torch.arange(len(labels), dtype=torch.long)
    ranks = torch.empty(len(scores), dtype=torch.long)
    for start in range(0, len(scores), _BLOCK):
        some = slice(start, start + _BLOCK)
        ranks[some] = _rank(scores[some], own[some], targets[some, None], places)
    predicted = _first_best(scores)
    confidences = None
    if sigmoid is not None:
        odds = scores.sigmoid() if sigmoid else scores.softmax(1)
        confidences = odds.gather(1, predicted[:, None])[:, 0]
    truth = targets[:, None] == places
    return Classification(
        tuple(labels), targets, predicted, ranks, confidences, average_precision(scores, truth)
    )


def _check(scores: Tensor, targets: Tensor, labels: Sequence[str]) -> None:
    if not len(scores):
        raise OptionError("there are no pictures to classify")
    if scores.shape != (len(targets), len(labels)):
        raise OptionError(
            f"scores of shape {tuple(scores.shape)} do not fit {len(targets)} pictures and "
            f"{len(labels)} labels"
        )
    if targets.min() < 0 or targets.max() >= len(labels):
        raise OptionError(
            f"targets run from {int(targets.min())} to {int(targets.max())}; with {len(labels)} "
            f"labels they are whole numbers from 0 to {len(labels) - 1}"
        )
    if not scores.isfinite().all():
        raise OptionError("scores hold NaN or infinity; nothing can be ranked by them")


def average_precision(scores: Tensor, truth: Tensor) -> Tensor:
    """The average precision of each label: all pictures ranked by its score, the mean precision at
    each picture that has it. CLIP_benchmark's figure for several labels a picture.

    Args:
        scores: ``(N, L)`` logits.
        truth: ``(N, L)`` bool, which labels each picture has.

    Returns:
        ``(L,)`` float32; 0 for a label without pictures. Their mean is the mAP.
    """
    ranks = torch.arange(1, len(scores) + 1, dtype=torch.long)
    found = torch.zeros(scores.shape[1], dtype=torch.float32)
    for label in range(scores.shape[1]):
        order = torch.sort(scores[:, label], descending=True, stable=True).indices
        hits = truth[order, label]
        precision = hits.cumsum(0, dtype=torch.float32) / ranks
        found[label] = precision[hits].sum() / max(1, int(hits.sum()))
    return found


# ---------------------------------------------------------------- retrieval


@dataclass(frozen=True, eq=False)
class Retrieval:
    """Captions looked up by pictures, and pictures by captions.

    Attributes:
        owners: ``(T,)`` int64, the picture of each caption.
        image_ranks: ``(T,)`` int64, for each caption the place of its picture among the pictures.
        text_ranks: ``(I,)`` int64, for each picture the place of its best caption among all.
    """

    owners: Tensor
    image_ranks: Tensor
    text_ranks: Tensor

    def image_recall(self, k: int) -> Share | None:
        """Image retrieval: the share of captions that find their picture among the k best. None
        for k pictures or fewer, where it says nothing. With several captions a picture the
        interval is the bootstrap's over pictures."""
        if k >= len(self.text_ranks):
            return None
        hits = self.image_ranks < k
        if len(self.owners) == len(self.text_ranks):
            return wilson(int(hits.sum()), len(hits))
        captions = torch.bincount(self.owners, minlength=len(self.text_ranks))
        return _grouped(
            torch.zeros(len(captions), dtype=torch.float32).index_add_(0, self.owners, hits + 0.0),
            captions,
        )

    def text_recall(self, k: int) -> Share | None:
        """Text retrieval: the share of pictures that find one of their captions at least among the
        k best. None for k captions or fewer."""
        if k >= len(self.image_ranks):
            return None
        return wilson(int((self.text_ranks < k).sum()), len(self.text_ranks))


def retrieval(images: Tensor, texts: Tensor, owners: Tensor) -> Retrieval:
    """Retrieval both ways, with one caption a picture or several.

    Args:
        images: ``(I, P)`` of ``CLIP.encode_image``, or ``(I, Q, P)``.
        texts: ``(T, P)`` of ``CLIP.encode_text``.
        owners: ``(T,)`` whole numbers, the picture of each caption.

    Raises:
        OptionError: a picture without a caption; captions of pictures that are not there.
    """
    owners = owners.long().cpu()
    images, texts = images.float().cpu(), texts.float().cpu()
    captions = torch.bincount(owners.clamp(min=0), minlength=len(images))
    if not len(images) or len(owners) != len(texts) or len(captions) != len(images):
        raise OptionError(
            f"{len(texts)} captions with {len(owners)} owners do not fit {len(images)} pictures"
        )
    if owners.min() < 0 or not captions.all():
        raise OptionError("each picture needs one caption at least, and each caption a picture")
    places = torch.arange(len(images), dtype=torch.long)
    image_ranks = torch.empty(len(texts), dtype=torch.long)
    for start in range(0, len(texts), _BLOCK):
        some = slice(start, start + _BLOCK)
        scores, own = cosines(texts[some], images), owners[some, None]
        image_ranks[some] = _rank(scores, scores.gather(1, own), own, places)
    text_ranks = torch.empty(len(images), dtype=torch.long)
    places = torch.arange(len(texts), dtype=torch.long)
    for start in range(0, len(images), _BLOCK):
        some = slice(start, start + _BLOCK)
        scores = cosines(texts, images[some]).T
        mine = owners == torch.arange(len(images), dtype=torch.long)[some, None]
        own = _first_best(scores.masked_fill(~mine, -math.inf))[:, None]
        text_ranks[some] = _rank(scores, scores.gather(1, own), own, places)
    return Retrieval(owners, image_ranks, text_ranks)


def _rank(scores: Tensor, own: Tensor, at: Tensor, places: Tensor) -> Tensor:
    """Of each row, how many scores come before ``own``, which stands at the place ``at``."""
    return ((scores > own) | ((scores == own) & (places < at))).sum(1)


def _first_best(scores: Tensor) -> Tensor:
    """The place of the highest score of each row, the first of equal ones."""
    best = scores == scores.amax(1, keepdim=True)
    return best.int().argmax(1)
