"""A linear probe: how much of the labels is in frozen embeddings, by logistic regression.

The way of the CLIP paper (Radford et al. 2021, section 3.2 and appendix A.3): L-BFGS of at most
1,000 iterations on an L2-regularised softmax regression, whose strength is swept on a validation
split over 97 values, coarse to fine, and which is then fitted once more on training and validation
pictures together. CLIP_benchmark's ``linear_probe`` sweeps alike, and fits by AdamW in batches; the
problem is convex, so that L-BFGS gets to the one solution that scikit-learn's
``LogisticRegression`` has too (tests/parity).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bridge.contrastive.evaluation import Classification, classification
from bridge.errors import OptionError
from bridge.progress import OnProgress, Progress, unwatched

STRENGTHS = tuple(10.0 ** (at / 8 - 6) for at in range(97))
"""Values of C, the inverse of the regularisation's strength: eight a decade."""

_FIRST = 16  # two decades between values at first, then halved around the best
_ITERATIONS = 1000
_HELD_BACK = 5  # one training picture in five of each label chooses C, but one at least


@dataclass(frozen=True, eq=False)
class Probe:
    """A softmax regression.

    Attributes:
        weight: ``(L, P)`` float64.
        bias: ``(L,)`` float64.
        strength: C, the inverse of the regularisation's strength.
    """

    weight: Tensor
    bias: Tensor
    strength: float

    def scores(self, vectors: Tensor) -> Tensor:
        """Logits ``(N, L)`` float64 of vectors ``(N, P)``."""
        return vectors.double() @ self.weight.T + self.bias


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """What a probe reaches.

    Attributes:
        classification: of the pictures that it was not fitted on.
        probe: the regression itself.
        n_train: how many pictures it was fitted on, those that chose C included.
        sweep: ``(C, share right)`` of each value tried on the validation split, C rising; empty
            where there were too few pictures to choose by, and C is 1.
    """

    classification: Classification
    probe: Probe
    n_train: int
    sweep: tuple[tuple[float, float], ...]


def linear_probe(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    labels: Sequence[str],
    *,
    seed: int = 0,
    on_progress: OnProgress = unwatched,
) -> LinearProbe:
    """Fit a probe on some pictures and measure it on others.

    Args:
        train, test: vectors ``(N, P)`` of length 1, and targets ``(N,)``: whole numbers, the
            label of each.
        labels: the L names.
        seed: which of the training pictures choose C.
        on_progress: told after each fit.

    Raises:
        OptionError: vectors that are not ``(N, P)``; fewer than two labels among the training
            pictures; what `classification` refuses.
    """
    vectors, targets = train[0].cpu(), train[1].long().cpu()
    if vectors.ndim != 2:
        raise OptionError(
            f"a linear probe takes one vector a picture, not {tuple(vectors.shape[1:])}"
        )
    if len(targets.unique()) < 2:
        raise OptionError("a linear probe needs pictures of two labels at least to be fitted on")
    chosen, kept = hold_back(targets, 1 / _HELD_BACK, seed)
    sweep: dict[float, float] = {}
    if len(chosen) and len(targets[kept].unique()) > 1:
        sweep = _sweep(
            (vectors[kept], targets[kept]), (vectors[chosen], targets[chosen]), labels, on_progress
        )
    # Of equal ones the first: the strongest regularisation.
    strength = max(sorted(sweep), key=sweep.__getitem__, default=1.0)
    probe = fit(vectors, targets, len(labels), strength)
    found = classification(probe.scores(test[0].cpu()), test[1], labels, sigmoid=False)
    return LinearProbe(found, probe, len(targets), tuple(sorted(sweep.items())))


def _sweep(
    train: tuple[Tensor, Tensor],
    held: tuple[Tensor, Tensor],
    labels: Sequence[str],
    on_progress: OnProgress,
) -> dict[float, float]:
    """The share right of each C tried: seven over twelve decades, then ever nearer to the best."""
    probes: dict[int, Probe] = {}
    right: dict[int, float] = {}

    def look(at: int) -> None:
        if at in right or not 0 <= at < len(STRENGTHS):
            return
        # A solution of stronger regularisation is a good place to start from, and changes none.
        weaker = max((each for each in probes if each < at), default=None)
        start = None if weaker is None else probes[weaker]
        probes[at] = fit(*train, len(labels), STRENGTHS[at], start)
        hits = probes[at].scores(held[0]).argmax(1) == held[1]
        right[at] = float(hits.double().mean())
        figures = f"C {STRENGTHS[at]:.3g}, {100 * right[at]:.1f} % right"
        on_progress(Progress("probe", len(right), None, "fits", figures))

    for at in range(0, len(STRENGTHS), _FIRST):
        look(at)
    step = _FIRST // 2
    while step:
        best = max(sorted(right), key=right.__getitem__)
        look(best - step)
        look(best + step)
        step //= 2
    return {STRENGTHS[at]: share for at, share in right.items()}


def fit(
    vectors: Tensor, targets: Tensor, labels: int, strength: float, start: Probe | None = None
) -> Probe:
    """Softmax regression by L-BFGS: the least of the summed cross-entropies times C, plus half the
    squared norm of the weights; the bias is free, as in scikit-learn.

    Args:
        vectors: ``(N, P)``.
        targets: ``(N,)`` int64.
        labels: L, how many there are.
        strength: C.
        start: a probe to start from.
    """
    vectors, width = vectors.double(), vectors.shape[1]
    weight = torch.zeros(labels, width, dtype=torch.float64)
    bias = torch.zeros(labels, dtype=torch.float64)
    if start is not None:
        weight, bias = start.weight.clone(), start.bias.clone()
    weight.requires_grad_()
    bias.requires_grad_()
    search = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_ITERATIONS,
        max_eval=2 * _ITERATIONS,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        history_size=10,
        line_search_fn="strong_wolfe",
    )
    shrink = 0.5 / (strength * len(vectors))

    def loss() -> Tensor:
        search.zero_grad()
        found = cross_entropy(vectors @ weight.T + bias, targets) + shrink * weight.square().sum()
        found.backward()
        return found

    with torch.enable_grad():
        search.step(loss)
    return Probe(weight.detach(), bias.detach(), strength)


def hold_back(targets: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Two lists of places, by chance: so much of each label, and the rest.

    A label's number is rounded down, but is one at least where it has two pictures.
    """
    rng = torch.Generator().manual_seed(seed)
    back, kept = [], []
    for label in targets.unique().tolist():
        places = (targets == label).nonzero()[:, 0]
        places = places[torch.randperm(len(places), generator=rng)]
        count = max(int(len(places) * share + 1e-9), min(1, len(places) - 1))
        back.append(places[:count])
        kept.append(places[count:])
    return torch.cat(back).sort().values, torch.cat(kept).sort().values
