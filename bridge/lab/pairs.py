"""Whether the towers of a study agree: a row for each pair of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from bridge.lab.measures import cosine, kendall_tau, linear_cka
from bridge.lab.reading import stacked
from bridge.lab.subject import Subject
from bridge.lab.tower_study import TowerStudy


def pair_rows(studies: Sequence[TowerStudy], subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """Kendall's tau of the variants' pooled drift, and CKA of their pooled states, by prompt."""
    found = []
    for a, b in combinations(studies, 2):
        for subject in subjects:
            both = _plain(subject)
            orders = [_cosines(each, subject, both) for each in (a, b)]
            shapes = [stacked([_of(each, at, subject) for at in both]) for each in (a, b)]
            found.append(
                {
                    "tower": a.tower.name,
                    "other": b.tower.name,
                    "prompt": subject.prompt,
                    "texts": len(both),
                    "kendall_tau": kendall_tau(*orders),
                    "cka": linear_cka(*shapes),
                }
            )
    return found


def _plain(subject: Subject) -> list[int]:
    """Places of the variants without weights, each text once: no tool weighs pooled states."""
    found: dict[str, int] = {}
    for at, variant in enumerate(subject.variants):
        if variant.dialect == "plain":
            found.setdefault(variant.text, at)
    return list(found.values())


def _of(study: TowerStudy, at: int, subject: Subject) -> Any:
    return study.of(subject.variants[at])


def _cosines(study: TowerStudy, subject: Subject, places: Sequence[int]) -> list[float]:
    """How near each variant is to the prompt, which is itself left out."""
    base = study.readings[subject.prompt].pooled
    # Rounded, so that texts of the same tokens are a tie whatever float32 makes of them.
    return [round(cosine(base, _of(study, at, subject).pooled), 6) for at in places if at]
