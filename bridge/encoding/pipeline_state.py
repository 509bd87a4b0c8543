"""What a live pipeline says of itself: whether it is guided, which step comes next, and where its
parts run."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import nn

from bridge.errors import UnsupportedModelError
from bridge.towers.watch import is_offloaded


def is_guided(pipe: Any) -> bool:
    """Whether the pipeline now runs negatives beside prompts. Raises UnsupportedModelError."""
    guided = getattr(pipe, "do_classifier_free_guidance", None)
    if guided is None:
        raise UnsupportedModelError(
            f"{type(pipe).__name__} does not say whether it is guided (it has no "
            "do_classifier_free_guidance), so its rows cannot be told apart."
        )
    return bool(guided)


def calls_per_step(pipe: Any) -> int:
    """How often the solver of a live pipeline calls the model in a step; 1 where there is none."""
    return int(getattr(getattr(pipe, "scheduler", None), "order", 1))


def call_of_run(pipe: Any, index: int, steps: int, each: int) -> int:
    """Which call, counted from 1, of a run of ``steps`` steps of ``each`` calls the model's call
    ``index``, counted from 0, is. If the pipeline's solver calls it otherwise, its step's first."""
    if calls_per_step(pipe) == each:
        return min(steps * each, index + 1)
    return (step_of_call(pipe, index, steps) - 1) * each + 1


def step_of_call(pipe: Any, index: int, steps: int) -> int:
    """The step, counted from 1, that the model's call ``index``, counted from 0, belongs to.

    A scheduler of second order (Heun, KDPM2) calls the model twice a step, but once in the last
    one; PNDM calls it twice in the first step alone, and so once more than there are steps.
    """
    order = getattr(pipe.scheduler, "order", 1)
    again = max(0, pipe.num_timesteps - steps * order)
    return min(steps, max(0, index - again) // order + 1)


def execution_device(pipe: Any, parts: Iterable[Any] | None = None) -> torch.device:
    """The device that diffusers would run a pipeline's parts on, its ``_execution_device``.

    diffusers asks every part of every module several times, which takes it 10 ms with SDXL's UNet;
    where all lies in one place and nothing is offloaded, the answer is that place.

    Args:
        pipe: the pipeline.
        parts: its components, if they are known.
    """
    own = pipe.components.values() if parts is None else parts
    modules = [part for part in own if isinstance(part, nn.Module)]
    places = {_place(module) for module in modules}
    place = places.pop() if len(places) == 1 else None
    if place is None or any(map(is_offloaded, modules)):
        place = pipe._execution_device
    return place


def _place(module: nn.Module) -> torch.device | None:
    """Where its first tensor lies, by which diffusers goes too; None if it has none."""
    tensor = next(chain(module.parameters(), module.buffers()), None)
    return None if tensor is None else tensor.device
