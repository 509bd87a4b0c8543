"""What every projector promises: soft tokens of the LLM's width, and how many, said beforehand."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch

from bridge.errors import OptionError

Grid: TypeAlias = tuple[int, int]
"""Rows and columns of the patches that the states stand for, in row-major order."""


@runtime_checkable
class Projector(Protocol):
    """What a BridgeVLM asks of its projector: a module from image states to soft tokens."""

    @property
    def kind(self) -> str:
        """Its name in the registry, such as "mlp2x_gelu"."""
        ...

    @property
    def vision_width(self) -> int:
        """The width of the states it takes."""
        ...

    @property
    def llm_width(self) -> int:
        """The width of the soft tokens it gives."""
        ...

    def __call__(self, states: torch.Tensor, grid: Grid | None = None) -> torch.Tensor:
        """(B, N, vision_width) states to (B, n_soft_tokens(grid or N), llm_width).

        ``grid`` says how the N states lie. Raises OptionError where a projector needs it and it
        is not given: 9 states may be 3x3 patches, or 2x4 and a class token.
        """
        ...

    def n_soft_tokens(self, states: Grid | int) -> int:
        """How many soft tokens come of a grid, or of that many states.

        Raises OptionError for a shape that the projector cannot take.
        """
        ...

    def options(self) -> dict[str, Any]:
        """What `build_projector` needs beside the two widths to build its like; plain JSON."""
        ...


def as_grid(states: Grid | int | None, kind: str) -> Grid:
    """The grid. Raises OptionError for a mere number of states, which says nothing of places."""
    if isinstance(states, tuple):
        return states
    raise OptionError(
        f"the projector {kind!r} needs the states as a grid (rows, columns); leave class token "
        'and registers out (select_feature="patch")'
    )


def n_states(states: Grid | int) -> int:
    """How many states a grid has, or the number itself."""
    return states if isinstance(states, int) else states[0] * states[1]


def as_image(states: torch.Tensor, grid: Grid | None, kind: str) -> torch.Tensor:
    """(B, h*w, D) states to (B, D, h, w). Raises OptionError when they do not fill the grid."""
    batch, count, width = states.shape
    rows, columns = as_grid(grid, kind)
    if rows * columns != count:
        raise OptionError(
            f"the projector {kind!r} was given {count} states for a grid of {rows}x{columns}; "
            "leave the class token out (select_feature='patch')"
        )
    return states.transpose(1, 2).reshape(batch, width, rows, columns)
