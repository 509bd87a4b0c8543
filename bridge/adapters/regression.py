"""Maps from paired states in closed form: ridge regression, random features, Procrustes.

Pairs are gathered as sums of products, so that thousands of prompts take the memory of one. All of
it is float64: normal equations square the condition number.

- Ridge: Hoerl and Kennard 1970. ``W`` minimises ``|Y - XW - b|^2 + sum_j p_j |W_j|^2``; the
  offset ``b`` is not penalised. The strength is chosen on prompts that were held out, by the error
  in whitened coordinates of y: faint directions tell words apart as well as strong ones do.
- Procrustes: Schönemann 1966, with one scale (Schönemann and Carroll 1970). ``W = s P R`` where R
  has orthonormal rows or columns and ``s`` is a number; P takes a wider input to its principal
  directions, as many as the output has, and is left out otherwise.
- Random features: which word a tower's token is, and what stands before it, decides another tower's
  state, and no linear map of the first state reads all of that. Random features (Rahimi and Recht
  2007, "Random Features for Large-Scale Kernel Machines"; of rectified units, Cho and Saul 2009,
  "Kernel Methods for Deep Learning") put beside an input ``max(0, xR + c)`` with R and c drawn at
  random: ridge on both is kernel regression in closed form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STRENGTHS = (1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 1e3)
"""Ridge penalties tried, in shares of the input's variance."""
_LEAST = 1e-12
_FLOOR = 0.01
_TIE = 0.01
_FAINT = 1e-3  # of the mean standard deviation: fainter entries are not blown up to matter


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over N pairs of x ``(F,)`` and y ``(D,)``: all that the closed forms need of them."""

    count: int
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> Moments:
        """Of the rows of x ``(N, F)`` and y ``(N, D)``."""
        a, b = x.double(), y.double()
        return cls(len(a), a.sum(0), b.sum(0), a.T @ a, a.T @ b, b.T @ b)

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count,
            self.x + other.x,
            self.y + other.y,
            self.xx + other.xx,
            self.xy + other.xy,
            self.yy + other.yy,
        )

    def beyond(self, known: LinearMap) -> Moments:
        """Those of x and of what ``known`` leaves of y."""
        w, b = known.weight.double(), known.bias.double()
        return Moments(
            self.count,
            self.x,
            self.y - self.x @ w - self.count * b,
            self.xx,
            self.xy - self.xx @ w - torch.outer(self.x, b),
            known.residual(self),
        )

    def first(self, width: int) -> Moments:
        """Those of the first ``width`` entries of x."""
        return Moments(
            self.count, self.x[:width], self.y, self.xx[:width, :width], self.xy[:width], self.yy
        )

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        return self.x / self.count, self.y / self.count

    @property
    def centred(self) -> tuple[Tensor, Tensor]:
        """``Xc'Xc (F, F)`` and ``Xc'Yc (F, D)`` of x and y without their means."""
        mean_x, mean_y = self.means
        xx = self.xx - self.count * torch.outer(mean_x, mean_x)
        return xx, self.xy - self.count * torch.outer(mean_x, mean_y)

    @property
    def scatter(self) -> Tensor:
        """``Yc'Yc (D, D)`` of y without its mean."""
        mean = self.y / self.count
        return self.yy - self.count * torch.outer(mean, mean)

    @property
    def spread(self) -> float:
        """The sum of squares of y without its mean."""
        return max(float(self.scatter.trace()), 0.0)


@dataclass(frozen=True, eq=False)
class LinearMap:
    """``y = x @ weight + bias``; weight ``(F, D)``, bias ``(D,)``."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """``(..., F)`` to ``(..., D)``, in the map's dtype."""
        return x.to(self.weight) @ self.weight + self.bias

    def __add__(self, other: LinearMap) -> LinearMap:
        return LinearMap(self.weight + other.weight, self.bias + other.bias)

    def widened(self, width: int) -> LinearMap:
        """The same for an x of ``width`` entries, of which those beyond its own have no say."""
        missing = self.weight.new_zeros(width - len(self.weight), self.weight.shape[1])
        return LinearMap(torch.cat([self.weight, missing]), self.bias)

    def residual(self, pairs: Moments) -> Tensor:
        """``E'E (D, D)`` of the errors E on pairs, from their moments."""
        w, b = self.weight.double(), self.bias.double()
        crossed = w.T @ pairs.xy + torch.outer(b, pairs.y)
        mixed = torch.outer(w.T @ pairs.x, b)
        own = w.T @ pairs.xx @ w + mixed + mixed.T + pairs.count * torch.outer(b, b)
        return own - crossed - crossed.T + pairs.yy

    def error(self, pairs: Moments, rows: Tensor | None = None) -> float:
        """The sum of squared errors on pairs; with ``rows`` ``(R, D)`` that of ``rows @ error``."""
        found = self.residual(pairs)
        return float(found.trace() if rows is None else ((rows @ found) * rows).sum())

    def explained(self, pairs: Moments) -> float:
        """R² on pairs: 1 for all of the variance, 0 for as much as their mean does."""
        return 1 - self.error(pairs) / max(pairs.spread, _LEAST)


def ridge(pairs: Moments, penalty: Tensor) -> LinearMap:
    """The ridge solution. ``penalty``: ``(F,)``, one for each entry of x, above 0."""
    xx, xy = pairs.centred
    mean_x, mean_y = pairs.means
    system = xx + torch.diag(penalty.double())
    factor, failed = torch.linalg.cholesky_ex(system)
    # Sums of many products may lose a tiny eigenvalue to rounding; least squares still works, by
    # a driver that torch has on the CPU alone.
    weight = (
        torch.linalg.lstsq(system.cpu(), xy.cpu(), driver="gelsd").solution.to(xy.device)
        if int(failed)
        else torch.cholesky_solve(xy, factor)
    )
    return LinearMap(weight, mean_y - mean_x @ weight)


def penalties(pairs: Moments, blocks: Sequence[int], strength: float) -> Tensor:
    """A penalty for each entry of x, alike within a block of entries of one kind.

    ``strength`` is in shares of the block's mean variance, so that states, pooled states and
    places are shrunk alike, whatever their units. ``blocks``: the widths of the blocks.
    """
    variances = pairs.centred[0].diagonal().split(list(blocks))
    least = _LEAST * max(float(pairs.xx.diagonal().mean()), _LEAST)
    return torch.cat([(strength * v.mean().clamp(min=0) + least).expand(len(v)) for v in variances])


def chosen_ridge(
    pairs: Moments,
    held: Moments,
    groups: Sequence[Sequence[int]],
    prior: LinearMap | None = None,
) -> tuple[LinearMap, float, float]:
    """The ridge map of ``pairs`` that is best on those held out.

    Tried are the first group of inputs alone, with the second, and so on, each with every
    strength: where pairs are few, few inputs may say more.

    Args:
        pairs, held: what to fit on, and what to choose by.
        groups: blocks of x as in ``penalties``, in groups, the most telling one first.
        prior: what the map is shrunk towards, instead of none at all.

    Returns:
        The map, its R² on the held-out pairs, the strength. It is not fitted again on both: what is
        trained on top of it must see how wrong it is where it was not fitted.
    """
    spread = max(held.spread, _LEAST)
    rows = whitening_rows(pairs + held)
    rounding = _LEAST * float(((rows @ held.yy) * rows).sum())
    if prior is not None:
        pairs, held = pairs.beyond(prior), held.beyond(prior)
    nested = [[each for group in groups[: k + 1] for each in group] for k in range(len(groups))]

    def fitted(k: int, strength: float) -> LinearMap:
        part = pairs.first(sum(nested[k]))
        return ridge(part, penalties(part, nested[k], strength))

    tried = {
        (k, strength): max(fitted(k, strength).error(held.first(sum(nested[k])), rows), rounding)
        for k in range(len(groups))
        for strength in STRENGTHS
    }
    # Of those as good as the best that of the fewest inputs, and of these the strongest: it
    # amplifies a tower's rounding least.
    limit = min(tried.values()) * (1 + _TIE)
    k, strength = max(
        (each for each, error in tried.items() if error <= limit),
        key=lambda each: (-each[0], each[1]),
    )
    found = fitted(k, strength).widened(len(pairs.x))
    share = 1 - max(found.error(held), 0.0) / spread
    return found if prior is None else found + prior, share, strength


def whitening_rows(pairs: Moments) -> Tensor:
    """``(D, D)`` rows that bring y to about unit variance in every direction (PCA whitening).

    Directions of far less than the mean variance stay faint: they may be rounding alone.
    """
    values, directions = torch.linalg.eigh(pairs.scatter / pairs.count)
    floor = max(_FLOOR * float(values.mean()), _LEAST)
    return (values.clamp(min=0) + floor).rsqrt()[:, None] * directions.T


def procrustes(pairs: Moments, width: int) -> LinearMap:
    """The Procrustes solution from the first ``width`` entries of x; the others have no say."""
    xx, xy = pairs.centred
    mean_x, mean_y = pairs.means
    xx, xy = xx[:width, :width], xy[:width]
    out = xy.shape[1]
    basis = torch.linalg.eigh(xx).eigenvectors[:, -out:] if width > out else None
    if basis is not None:
        xx, xy = basis.T @ xx @ basis, basis.T @ xy
    left, values, right = torch.linalg.svd(xy, full_matrices=False)
    turned = (values.sum() / xx.trace().clamp(min=_LEAST)) * (left @ right)
    weight = pairs.xy.new_zeros(pairs.xy.shape)
    weight[:width] = turned if basis is None else basis @ turned
    return LinearMap(weight, mean_y - mean_x @ weight)


@dataclass(frozen=True, eq=False)
class RandomFeatures:
    """``x -> [x, max(0, (x - mean) / scale @ weight + offset)]``, float32.

    Attributes:
        mean, scale: of each entry of x, ``(F,)``.
        weight: ``(F, K)``.
        offset: ``(K,)``.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    offset: Tensor

    @classmethod
    def drawn(cls, inputs: Moments, count: int, seed: int) -> RandomFeatures:
        """``count`` of them for x as in ``inputs``; the same for the same seed."""
        mean, _ = inputs.means
        spread = (inputs.centred[0].diagonal() / inputs.count).clamp(min=0).sqrt()
        scale = spread + _FAINT * spread.mean() + 1e-12
        dice = torch.Generator().manual_seed(seed)
        width = len(mean)
        weight = torch.randn(width, count, generator=dice, dtype=torch.float32) / width**0.5
        offset = torch.randn(count, generator=dice, dtype=torch.float32)
        return cls(mean.float(), scale.float(), weight.to(mean.device), offset.to(mean.device))

    def __call__(self, x: Tensor) -> Tensor:
        """``(..., F)`` to ``(..., F + K)``."""
        x = x.to(self.weight)
        bent = torch.relu((x - self.mean) / self.scale @ self.weight + self.offset)
        return torch.cat([x, bent], dim=-1)

    def to(self, device: torch.device) -> RandomFeatures:
        """The same on another device."""
        return RandomFeatures(
            self.mean.to(device), self.scale.to(device), self.weight.to(device),
            self.offset.to(device),
        )  # fmt: skip
