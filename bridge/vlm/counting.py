"""How many soft tokens a picture makes: the one place that everything else asks.

    picture of H x W -> patches of the tower -> states that are kept -> soft tokens

`SoftTokens` keeps every step, so that an error can say where a number comes from.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from bridge.vlm.features import SelectFeature, image_grid, n_dropped, n_extra_states
from bridge.vlm.projectors.protocol import Grid, Projector


@dataclass(frozen=True)
class SoftTokens:
    """The count of one picture, and how it came about."""

    tower: str
    grid: Grid
    extra: int  # states of the tower beside patches: class token, registers
    dropped: int  # states left out from the front
    projector: str
    count: int

    @property
    def states(self) -> int:
        """How many states the projector is given."""
        return self.grid[0] * self.grid[1] + self.extra - self.dropped

    @property
    def layout(self) -> Grid | None:
        """The grid, if the states that are kept are exactly its patches."""
        return self.grid if self.extra == self.dropped else None

    def __str__(self) -> str:
        rows, columns = self.grid
        beside = f", {self.extra} beside, {self.dropped} dropped" if self.extra else ""
        if not self.extra and self.dropped:
            beside = f", {self.dropped} dropped"
        return (
            f"{self.count} soft tokens ({self.tower}: {rows}x{columns} patches{beside}; "
            f"{self.projector}: {self.states} states to {self.count})"
        )


def soft_tokens_of(
    tower: nn.Module, projector: Projector, select_feature: SelectFeature, height: int, width: int
) -> SoftTokens:
    """Count for a preprocessed picture of ``height`` x ``width`` pixels; nothing is run.

    Raises OptionError when the projector cannot take the grid.
    """
    grid = image_grid(tower, height, width)
    extra, dropped = n_extra_states(tower), n_dropped(tower, select_feature)
    states = grid[0] * grid[1] + extra - dropped
    return SoftTokens(
        tower=type(tower).__name__,
        grid=grid,
        extra=extra,
        dropped=dropped,
        projector=getattr(projector, "kind", type(projector).__name__),
        count=projector.n_soft_tokens(grid if extra == dropped else states),
    )
