"""A linear projector in closed form: ridge regression from image states to soft tokens.

Hoerl & Kennard, "Ridge Regression" (Technometrics 1970). What the language model should read of
each state is given as a target; the projector that comes nearest to all targets at once needs
one pass over the pairs and one solve, no gradient. After Merullo et al., "Linearly Mapping from
Image to Text Space" (2023), who find that one matrix is enough to make a picture readable.

Pairs are summed up as they come (`PairSums`), so their number is bounded by time, not memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from bridge.errors import OptionError
from bridge.vlm.projectors.linear import LinearProjector


@dataclass(frozen=True, eq=False)
class PairSums:
    """Sums over N pairs of a state (D,) and a target (E,), all that the fit needs; float64."""

    count: int
    states: torch.Tensor  # (D,)
    targets: torch.Tensor  # (E,)
    squares: torch.Tensor  # (D, D), sum of state x state
    products: torch.Tensor  # (D, E), sum of state x target

    @classmethod
    def of(cls, states: torch.Tensor, targets: torch.Tensor) -> PairSums:
        """The sums of (N, D) states and their (N, E) targets.

        Raises OptionError when the two do not pair up or hold NaN or infinity.
        """
        if states.ndim != 2 or targets.ndim != 2 or len(states) != len(targets):
            raise OptionError(
                f"states of shape {tuple(states.shape)} and targets of {tuple(targets.shape)} do "
                "not pair up; give (N, D) and (N, E)"
            )
        x, y = states.double(), targets.double()
        if not (x.isfinite().all() and y.isfinite().all()):
            raise OptionError("states or targets hold NaN or infinity; leave those pairs out")
        return cls(len(x), x.sum(0), y.sum(0), x.T @ x, x.T @ y)

    def __add__(self, other: PairSums) -> PairSums:
        return PairSums(
            self.count + other.count,
            self.states + other.states,
            self.targets + other.targets,
            self.squares + other.squares,
            self.products + other.products,
        )


def fit_linear_projector(
    pairs: PairSums | Iterable[tuple[torch.Tensor, torch.Tensor]], *, ridge: float = 1e-3
) -> LinearProjector:
    """The `linear` projector W x + b with the least squared distance to the targets.

    ``pairs`` are (states (N, D), targets (N, E)) batches, or their sums. ``ridge`` is the penalty
    on the squares of W, in units of the states' mean variance, so that it means the same for
    every tower and any number of pairs; b is not penalised. Returns fp32 on the CPU, for
    inference; `bridge.vlm.save_projector` keeps it.

    Raises OptionError for no pairs, pairs that do not fit, and a ridge that is not above 0.
    """
    if not math.isfinite(ridge) or ridge <= 0:
        raise OptionError(f"ridge is {ridge!r}; give a number above 0, such as 1e-3")
    sums = pairs if isinstance(pairs, PairSums) else _summed(pairs)
    if not sums.count:
        raise OptionError("no pairs were given; a fit needs at least one")
    x, y = sums.states / sums.count, sums.targets / sums.count
    covariance = sums.squares / sums.count - torch.outer(x, x)
    together = sums.products / sums.count - torch.outer(x, y)
    # States that never vary would leave nothing to solve for but rounding errors.
    least = 1e-10 * sums.squares.diagonal().mean() / sums.count + 1e-30
    penalty = ridge * covariance.diagonal().mean() + least
    eye = torch.eye(len(x), dtype=torch.float64, device=x.device)
    weight = torch.linalg.solve(covariance + penalty * eye, together).T  # (E, D)
    projector = LinearProjector(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        projector.weight.copy_(weight)
        projector.bias.copy_(y - weight @ x)
    return projector.eval()


def _summed(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> PairSums:
    total: PairSums | None = None
    for states, targets in pairs:
        part = PairSums.of(states, targets)
        if total is not None and part.products.shape != total.products.shape:
            raise OptionError(
                f"pairs of widths {tuple(part.products.shape)} came after pairs of "
                f"{tuple(total.products.shape)}; all must be of one tower and one model"
            )
        total = part if total is None else total + part
    if total is None:
        raise OptionError("no pairs were given; a fit needs at least one")
    return total
