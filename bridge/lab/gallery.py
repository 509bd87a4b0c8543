"""The pictures of a study: every variant, tower choice and seed; how far each drifts, and whether
a judge finds it right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bridge.errors import OptionError
from bridge.lab.measures import mean_interval
from bridge.lab.painting import Drawn, Painter, draw_variant
from bridge.lab.picture_drift import pixel_distance, tower_distances
from bridge.lab.subject import Subject
from bridge.lab.variants import ORIGINAL
from bridge.progress import OnProgress, Progress
from bridge.towers import ImageTower

if TYPE_CHECKING:
    from PIL.Image import Image

Judge = Callable[["Image", str], Mapping[str, float]]
"""From a picture and the prompt that it is to be judged by to named figures; 1 and 0 for yes and
no."""

Row = dict[str, Any]


def paint(
    painter: Painter,
    subjects: Sequence[Subject],
    choices: Sequence[str],
    on_progress: OnProgress,
) -> list[tuple[str, Drawn]]:
    """``(prompt, picture)`` of all, in the order of the variants; equal texts are drawn once."""
    found = []
    done: dict[tuple[str, str, str], list[Drawn]] = {}
    total = sum(len(subject.variants) for subject in subjects) * len(choices)
    for subject in subjects:
        for variant in subject.variants:
            for choice in choices:
                key = (variant.text, variant.dialect, choice)
                if key not in done:
                    done[key] = draw_variant(painter, variant, choice)
                found += [
                    (subject.prompt, Drawn(variant, each.choice, each.seed, each.image, each.heat))
                    for each in done[key]
                ]
                drawn = len(found) // len(painter.brush.seeds)
                on_progress(Progress("drawing", drawn, total, "variants"))
    return found


def picture_rows(
    drawn: Sequence[tuple[str, Drawn]],
    image_tower: ImageTower | None,
    judge: Judge | None,
) -> list[Row]:
    """A row a picture. Drift is from the prompt's own picture of the same choice and seed."""
    bases = {
        (prompt, each.choice, each.seed): each.image
        for prompt, each in drawn
        if each.variant.operation == ORIGINAL
    }
    images = [each.image for _, each in drawn]
    beside = [bases[prompt, each.choice, each.seed] for prompt, each in drawn]
    distances = [None] * len(drawn) if image_tower is None else tower_distances(
        image_tower, images, beside
    )  # fmt: skip
    rows = []
    for (prompt, each), base, distance in zip(drawn, beside, distances, strict=True):
        row: Row = {
            "prompt": prompt,
            "operation": each.variant.operation,
            "detail": each.variant.detail,
            "text": each.variant.text,
            "dialect": each.variant.dialect,
            "choice": each.choice,
            "seed": each.seed,
            "pixel_distance": pixel_distance(base, each.image),
        }
        if distance is not None:
            row["tower_distance"] = distance
        if judge is not None:
            row |= {f"judge_{name}": value for name, value in _judged(judge, each.image, prompt)}
        rows.append(row)
    return rows


def verdict_rows(rows: Sequence[Row]) -> list[Row]:
    """For each operation and choice the mean of each of the judge's figures, with its interval."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith("judge_"):
                key = (row["operation"], row["choice"], name.removeprefix("judge_"))
                groups.setdefault(key, []).append(value)
    found = []
    for (operation, choice, figure), values in groups.items():
        mean, low, high = mean_interval(values)
        found.append(
            {
                "operation": operation, "choice": choice, "figure": figure,
                "mean": mean, "low": low, "high": high, "pictures": len(values),
            }
        )  # fmt: skip
    return found


def _judged(judge: Judge, image: Image, prompt: str) -> list[tuple[str, float]]:
    found = judge(image, prompt)
    if not isinstance(found, Mapping):
        raise OptionError(
            f"judge gave a {type(found).__name__}; it must give a mapping of names to numbers."
        )
    return [(str(name), float(value)) for name, value in found.items()]
