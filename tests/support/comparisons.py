"""The table in docs/conditioning.md: what a test run measured against each peer.

``pytest -m "not slow" --comparisons docs/conditioning.md`` writes it between that page's markers;
a test notes a row with the ``compared`` fixture. Without the option nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

BEGIN, END = "<!-- comparisons -->", "<!-- end of comparisons -->"


Compared = Callable[[str, str, torch.Tensor, torch.Tensor, float], None]
"""The ``compared`` fixture: feature, peer, found, wanted, tolerance."""


@dataclass(frozen=True)
class Comparison:
    """One feature against one peer: the largest difference over the largest entry."""

    feature: str
    peer: str
    difference: float
    cases: int = 1


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, in units of the largest entry; absolute where all are zero."""
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    scale = wanted.abs().max().item()
    return (found - wanted).abs().max().item() / (scale or 1.0)


def merged(rows: list[Comparison]) -> list[Comparison]:
    """One row a feature and peer: the worst case, and how many there were."""
    worst: dict[tuple[str, str], Comparison] = {}
    for row in rows:
        key = (row.feature, row.peer)
        before = worst.get(key)
        cases = row.cases + (before.cases if before else 0)
        top = max(row.difference, before.difference if before else 0.0)
        worst[key] = Comparison(row.feature, row.peer, top, cases)
    return list(worst.values())


def table(rows: list[Comparison]) -> str:
    lines = ["| feature | against | cases | largest difference |", "| --- | --- | --- | --- |"]
    for row in sorted(merged(rows), key=lambda row: (row.feature, row.peer)):
        told = "none" if row.difference == 0 else f"{row.difference:.1e}"
        lines.append(f"| {row.feature} | {row.peer} | {row.cases} | {told} |")
    return "\n".join(lines)


def write(path: Path, rows: list[Comparison]) -> None:
    """Put the table between the markers of ``path``."""
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    path.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{after}", encoding="utf-8")
