"""The pictures of a list of tasks, drawn in batches and kept on disk."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image

from benchmarks.tasks import Task
from bridge.encoding.emphasis import EmphasisName


class Wanted(Protocol):
    """What can be painted: a prompt, and the seed of its noise."""

    @property
    def prompt(self) -> str: ...

    @property
    def seed(self) -> int: ...


Item = TypeVar("Item", bound=Wanted)


def paint(
    pipe: Any,
    tasks: Sequence[Item],
    *,
    steps: int,
    guidance: float,
    batch: int = 16,
    negative_prompt: str | None = None,
    emphasis: EmphasisName | None = None,
    towers: Any = None,
    adapter: Any = None,
) -> Iterator[tuple[Item, Image.Image]]:
    """Draw every task with a stock pipeline on bridge's conditioning, ``batch`` at once.

    Each picture has its own noise from the task's seed, made on the CPU, so it does not depend
    on the batch or the device.
    """
    import bridge

    pipe.set_progress_bar_config(disable=True)
    for start in range(0, len(tasks), batch):
        part = tasks[start : start + batch]
        prompts = [task.prompt for task in part]
        conditioning = bridge.condition(
            prompts, negative_prompt, model=pipe, emphasis=emphasis, towers=towers, adapter=adapter
        )
        noise = [torch.Generator().manual_seed(task.seed) for task in part]
        with bridge.inject(pipe, conditioning) as kwargs:
            pictures = pipe(
                **kwargs,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=noise,
            ).images
        yield from zip(part, pictures, strict=True)


def with_progress(
    pairs: Iterator[tuple[Task, Image.Image]], total: int, budget: float | None
) -> Iterator[tuple[Task, Image.Image]]:
    """Pass the pairs on, print how far they are, and stop after ``budget`` seconds."""
    begun = told = time.monotonic()
    for done, pair in enumerate(pairs, start=1):
        yield pair
        now = time.monotonic()
        if now - told > 20 or done == total:
            told = now
            print(f"  {done} of {total} pictures, {now - begun:.0f} s", flush=True)
        if budget is not None and now - begun > budget and done < total:
            print(f"  the time budget of {budget:.0f} s is spent", flush=True)
            return


def as_array(picture: Image.Image) -> np.ndarray:
    """A picture as uint8 (H, W, 3), brought to 128 x 128 when it has another size."""
    rgb = picture.convert("RGB")
    if rgb.size != (128, 128):
        rgb = rgb.resize((128, 128), Image.Resampling.LANCZOS)
    return np.asarray(rgb)
