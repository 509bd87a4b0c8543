"""Curves of a training run as a picture. Needs matplotlib (the extra ``train``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bridge.errors import MissingDependencyError
from bridge.pictures import LINES, save_figure


def draw_curve(
    log: Sequence[Mapping[str, float]], path: Path, title: str, along: str = "minutes"
) -> None:
    """Plot every logged figure over the figure ``along``, one small panel each.

    Nothing is drawn of an empty log. Raises MissingDependencyError without matplotlib.
    """
    if not log:
        return
    try:
        # No pyplot: it would choose how the program's own figures are shown.
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "curves are drawn by matplotlib; install it with: pip install 'bridge[train]'"
        ) from error
    names = [n for n in log[-1] if n not in ("step", "minutes")]
    figure = Figure(figsize=(4 * len(names), 3))
    axes = figure.subplots(1, len(names), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        rows = [row for row in log if name in row]
        axis.plot([row[along] for row in rows], [row[name] for row in rows])
        axis.set(title=f"{title}: {name}", xlabel=along)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    save_figure(path, figure, dpi=80, colours=LINES)
