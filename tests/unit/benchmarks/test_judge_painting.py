"""Tasks drawn in batches through bridge.condition and a stock pipeline (tiny, random)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image
from support.tiny_models import tiny_sdxl_pipeline

from benchmarks.painting import as_array, paint, with_progress
from benchmarks.tasks import Task, interleaved


def test_a_picture_does_not_depend_on_its_batch() -> None:
    pipe = tiny_sdxl_pipeline()
    tasks = interleaved(1)[:3]
    together = [p for _, p in paint(pipe, tasks, steps=2, guidance=5.0, batch=2)]
    alone = [p for _, p in paint(pipe, tasks, steps=2, guidance=5.0, batch=1)]
    assert len(together) == len(alone) == 3
    for a, b in zip(together, alone, strict=True):
        difference = np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int))
        assert difference.max() <= 2  # rounding of other batch sizes
    assert as_array(together[0]).shape == (128, 128, 3)


def test_the_time_budget_ends_the_drawing() -> None:
    tasks = interleaved(1)

    def pairs() -> Iterator[tuple[Task, Image.Image]]:
        for task in tasks:
            yield task, Image.new("RGB", (128, 128))

    assert len(list(with_progress(pairs(), len(tasks), None))) == len(tasks)
    assert len(list(with_progress(pairs(), len(tasks), -1.0))) == 1
