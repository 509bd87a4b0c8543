"""Where a live pipeline runs, and which of its parts are brought there when they run."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import nn


def is_offloaded(module: Any) -> bool:
    """Whether accelerate or diffusers brings its weights when it runs."""
    # Neither modules() nor hasattr: SDXL's UNet has two thousand parts, and asking a module for
    # what it lacks is slow.
    waiting = [module]
    while waiting:
        own = vars(waiting.pop())
        if "_hf_hook" in own or "_diffusers_hook" in own:
            return True
        waiting += [part for part in own["_modules"].values() if part is not None]
    return False


def execution_device(pipe: Any) -> torch.device:
    """The device that diffusers would run a pipeline's parts on, its ``_execution_device``.

    diffusers asks every part of every module several times, which takes it 10 ms with SDXL's UNet;
    where all lies in one place and nothing is offloaded, the answer is that place.
    """
    modules = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    places = {_place(module) for module in modules}
    place = places.pop() if len(places) == 1 else None
    if place is None or any(map(is_offloaded, modules)):
        place = pipe._execution_device
    return place


def _place(module: nn.Module) -> torch.device | None:
    """Where its first tensor lies, by which diffusers goes too; None if it has none."""
    tensor = next(chain(module.parameters(), module.buffers()), None)
    return None if tensor is None else tensor.device
