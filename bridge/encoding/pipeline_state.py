"""What a live pipeline says of itself: whether it is guided, which step comes next, and where its
parts run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import nn

from bridge.errors import OptionError, UnsupportedModelError


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


def check_one_dtype(pipe: Any, tower: str) -> None:
    """Refuse a pipeline whose UNet cannot calculate with what diffusers makes of its prompts.

    diffusers casts prompt embeddings to the dtype of its last text tower, and the UNet's layers
    take their own alone, unless autocast is on. What loads a folder as its configs say can give the
    two different ones.

    Args:
        pipe: a pipeline with a ``unet``.
        tower: the name of its last text tower.

    Raises:
        OptionError: the two differ.
    """
    text, unet = getattr(pipe, tower, None), pipe.unet
    if text is None or unet is None or first_dtype(text) == first_dtype(unet):
        return
    # ``dtype`` knows of layers that are stored otherwise than they calculate, by a slow walk; what
    # is quantized calculates in a dtype of its own.
    quantized = getattr(unet, "hf_quantizer", None) is not None
    if quantized or text.dtype == unet.dtype:
        return
    if torch.is_autocast_enabled(pipe._execution_device.type):
        return
    theirs, own = (str(part.dtype).removeprefix("torch.") for part in (text, unet))
    raise OptionError(
        f"In the live {type(pipe).__name__} the text towers are {theirs} ({tower}), and the UNet "
        f"is {own}, so it cannot draw what they say. Load all of it with one dtype "
        f"(from_pretrained(..., torch_dtype=torch.{own})), or move it: pipe.to(torch.{own})."
    )


def first_dtype(module: nn.Module) -> torch.dtype | None:
    """That of its first parameter; None if it has none."""
    parameters = (each for own in _parts(module) for each in own["_parameters"].values())
    return next((each.dtype for each in parameters if each is not None), None)


def execution_device(pipe: Any, modules: Iterable[nn.Module], within: bool) -> torch.device:
    """The device that diffusers would run a pipeline's parts on, its ``_execution_device``.

    diffusers asks every part of every module several times, which takes it 10 ms with SDXL's UNet;
    where all lies in one place and nothing is offloaded, the answer is that place. Both libraries
    that offload leave a hook on the way to a model's first tensor, whichever way they are asked to.

    Args:
        pipe: the pipeline.
        modules: its components that are modules.
        within: whether one of them was found to be offloaded (`is_offloaded`), perhaps in a part.
    """
    places = {_place(module) for module in modules}
    place = places.pop() if len(places) == 1 and not within else None
    return pipe._execution_device if place is None else place


def is_offloaded(module: nn.Module) -> bool:
    """Whether accelerate or diffusers brings the weights of any part when it runs."""
    return any(map(_is_hooked, _parts(module)))


def _place(module: nn.Module) -> torch.device | None:
    """Where its first tensor lies, by which diffusers goes too; None if it has none, or if what
    stands before it is offloaded."""
    for own in _parts(module):
        if _is_hooked(own):
            return None
        for tensor in chain(own["_parameters"].values(), own["_buffers"].values()):
            if tensor is not None:
                return tensor.device
    return None


def _is_hooked(part: dict[str, Any]) -> bool:
    return "_hf_hook" in part or "_diffusers_hook" in part


def _parts(module: nn.Module) -> Iterator[dict[str, Any]]:
    """What each part holds, each before those in it.

    Neither modules() nor hasattr: SDXL's UNet has two thousand parts, and asking a module for what
    it lacks is slow.
    """
    waiting: list[nn.Module] = [module]
    while waiting:
        own = vars(waiting.pop())
        yield own
        waiting += [part for part in reversed(own["_modules"].values()) if part is not None]
