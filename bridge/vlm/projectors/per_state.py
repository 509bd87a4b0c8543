"""Projectors that give one soft token a state: `identity`, `linear`, `mlp2x_gelu`, `mlp3x_gelu` ...

- `identity`: LLaVA's `IdentityMap` (llava/model/multimodal_projector/builder.py).
- `linear`: Liu et al., "Visual Instruction Tuning" (2023), section 4.1; also in closed form, by
  ridge regression from image states to soft tokens (Hoerl & Kennard, Technometrics 1970). After
  Merullo et al., "Linearly Mapping from Image to Text Space" (2023), who find that one matrix is
  enough to make a picture readable.
- `mlpNx_gelu`: Liu et al., "Improved Baselines with Visual Instruction Tuning" (2023), section 3.

Weights are named as in LLaVA's `mm_projector`, so its tensors load as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bridge.checks import keywords
from bridge.errors import OptionError
from bridge.vlm.projectors.protocol import Grid, n_states


class IdentityProjector(nn.Module):
    """(B, N, D) to itself. Raises OptionError when the two widths differ."""

    kind = "identity"

    def __init__(self, vision_width: int, llm_width: int) -> None:
        super().__init__()
        if vision_width != llm_width:
            raise OptionError(
                f"the projector 'identity' needs one width, but the tower's is {vision_width} and "
                f"the language model's {llm_width}; take 'linear' or 'mlp2x_gelu'"
            )
        self.vision_width = self.llm_width = vision_width

    def forward(self, states: torch.Tensor, grid: Grid | None = None) -> torch.Tensor:
        return states

    def n_soft_tokens(self, states: Grid | int) -> int:
        return n_states(states)

    def options(self) -> dict[str, Any]:
        return {}


class LinearProjector(nn.Linear):
    """(B, N, vision_width) to (B, N, llm_width)."""

    kind = "linear"

    def __init__(self, vision_width: int, llm_width: int, *, bias: bool = True) -> None:
        super().__init__(vision_width, llm_width, bias=bias, dtype=torch.float32)

    @property
    def vision_width(self) -> int:
        return self.in_features

    @property
    def llm_width(self) -> int:
        return self.out_features

    def forward(self, states: torch.Tensor, grid: Grid | None = None) -> torch.Tensor:
        return super().forward(states)

    def n_soft_tokens(self, states: Grid | int) -> int:
        return n_states(states)

    def options(self) -> dict[str, Any]:
        return {"bias": self.bias is not None}


class MlpProjector(nn.Sequential):
    """(B, N, vision_width) to (B, N, llm_width), through linear layers and activations in turn.

    ``activation`` is the name that transformers knows the activation by (its `ACT2FN`).
    """

    def __init__(self, *modules: nn.Module, activation: str = "gelu") -> None:
        super().__init__(*modules)
        self.activation = activation

    @property
    def kind(self) -> str:
        return f"mlp{len(self) // 2 + 1}x_gelu"

    @property
    def vision_width(self) -> int:
        return int(self[0].in_features)  # type: ignore[arg-type]

    @property
    def llm_width(self) -> int:
        return int(self[-1].out_features)  # type: ignore[arg-type]

    def forward(self, states: torch.Tensor, grid: Grid | None = None) -> torch.Tensor:
        return super().forward(states)

    def n_soft_tokens(self, states: Grid | int) -> int:
        return n_states(states)

    def options(self) -> dict[str, Any]:
        return {"bias": self[0].bias is not None, "activation": self.activation}


def mlp_gelu(
    depth: int, vision_width: int, llm_width: int, *, bias: bool = True, activation: str = "gelu"
) -> MlpProjector:
    """A fresh `mlp{depth}x_gelu`; a depth of 1 is a linear layer under another name.

    ``activation`` is for checkpoints that LLaVA's successors made with another than GELU.
    """
    modules: list[nn.Module] = [nn.Linear(vision_width, llm_width, bias=bias, dtype=torch.float32)]
    for _ in range(depth - 1):
        modules += [
            _activation(activation),
            nn.Linear(llm_width, llm_width, bias=bias, dtype=torch.float32),
        ]
    return MlpProjector(*modules, activation=activation)


def mlp2x_gelu(vision_width: int, llm_width: int, *, bias: bool = True) -> MlpProjector:
    """A fresh `mlp2x_gelu`, LLaVA-1.5's."""
    return mlp_gelu(2, vision_width, llm_width, bias=bias)


def _activation(name: str) -> nn.Module:
    if name == "gelu":
        return nn.GELU()
    from transformers.activations import ACT2FN

    module: nn.Module = ACT2FN[name]
    return module


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


@keywords
def fit_linear_projector(
    pairs: PairSums | Iterable[tuple[torch.Tensor, torch.Tensor]], *, ridge: float = 1e-3
) -> LinearProjector:
    """The `linear` projector W x + b with the least squared distance to the targets.

    Args:
        pairs: (states (N, D), targets (N, E)) batches, or their sums.
        ridge: the penalty on the squares of W, in units of the states' mean variance, so that it
            means the same for every tower and any number of pairs; b is not penalised.

    Returns:
        fp32 on the CPU, for inference; `bridge.vlm.save_projector` keeps it.

    Raises:
        OptionError: no pairs, pairs that do not fit, a ridge that is not above 0.
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
