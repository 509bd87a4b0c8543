"""``bridge.inject``: run what acts inside a UNet in any stock pipeline, and leave no trace.

Parts of an ``AND`` (``noise``), regional prompts and biased attention (``attention``) are hung
around the modules of ``pipe.unet`` while a block lasts (``hooks``). The pipeline stays stock and is
called as always, for text-to-image, img2img or inpaint, with any scheduler.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from bridge.checks import keywords
from bridge.diffusion.attention import RegionalAttention, biased, cross_attentions
from bridge.diffusion.hooks import around, unet_of
from bridge.diffusion.noise import ComposedNoise
from bridge.encoding.composition import Composition
from bridge.encoding.conditioning import Conditioning
from bridge.encoding.pipeline_state import call_of_run
from bridge.encoding.prompt_schedule import OnStepEnd, PromptSchedule
from bridge.encoding.regions import RegionalConditioning

Injectable = Conditioning | Composition | RegionalConditioning | PromptSchedule


@keywords
@contextmanager
def inject(
    pipe: Any, conditioning: Injectable, *, num_images: int = 1, then: OnStepEnd | None = None
) -> Iterator[dict[str, Any]]:
    """While the block lasts, ``pipe`` draws as ``conditioning`` says.

    ::

        with bridge.inject(pipe, bridge.compose("a cat AND a dog", model=pipe)) as kwargs:
            image = pipe(**kwargs, num_inference_steps=30).images[0]

    The hooks come off the UNet when the block ends, in whatever way. They act only in the thread
    that entered the block. A plain ``Conditioning`` or ``PromptSchedule`` needs none, and is drawn
    exactly as by ``pipe(**conditioning.kwargs())``.

    Args:
        pipe: a diffusers pipeline with a ``UNet2DConditionModel`` that is not compiled, of the
            model that made the conditioning.
        conditioning: what ``bridge.condition``, ``compose``, ``regional`` or ``schedule`` gave.
        num_images: pictures for each prompt.
        then: a ``callback_on_step_end`` to call after ours.

    Yields:
        Keyword arguments for the pipeline's call.

    Raises:
        UnsupportedModelError: a pipeline without such a UNet (SD 3, FLUX), or a compiled one;
            while drawing, a pipeline that does not say whether it is guided.
        OptionError: while drawing, rows that are not those of the prompts.
    """
    plan = _as_schedule(conditioning)
    stages = tuple(_as_composition(each) for each in plan.conditionings)
    bare = replace(plan, conditionings=tuple(stage.first.without_bias() for stage in stages))
    regions = conditioning if isinstance(conditioning, RegionalConditioning) else None
    step = [1]

    def track(running: Any, index: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        # After the last call the next run begins anew.
        over = index + 1 >= running.num_timesteps
        step[0] = 1 if over else call_of_run(running, index + 1, plan.steps, plan.calls_per_step)
        return {} if then is None else then(running, index, time, tensors)

    with ExitStack() as stack:
        for hook in _hooks(pipe, lambda: _as_composition(plan.at(step[0])), stages, regions):
            stack.enter_context(hook)
        yield bare.kwargs(num_images, track if len(stages) > 1 else then)


def _hooks(
    pipe: Any,
    now: Callable[[], Composition],
    stages: Collection[Composition],
    regions: RegionalConditioning | None,
) -> Iterator[AbstractContextManager[None]]:
    """What is to hang around which module; nothing where all prompts are plain."""
    biases = any(stage.parts.is_biased for stage in stages)
    if biases or not all(stage.is_plain for stage in stages):
        noise = ComposedNoise(pipe, now)
        yield around(unet_of(pipe), noise.before, noise.after)
        if biases:
            for module in cross_attentions(unet_of(pipe)):
                yield around(module, biased(lambda: noise.key_bias))
    if regions is not None and len(regions) > 1:
        mixing = RegionalAttention(pipe, regions)
        yield around(unet_of(pipe), mixing.before_unet)
        for module in cross_attentions(unet_of(pipe)):
            yield around(module, mixing.before, mixing.after)


def _as_schedule(conditioning: Injectable) -> PromptSchedule:
    if isinstance(conditioning, PromptSchedule):
        return conditioning
    if isinstance(conditioning, RegionalConditioning):
        conditioning = conditioning.joined
    return PromptSchedule(1, (1,), (conditioning,))


def _as_composition(conditioning: Conditioning | Composition) -> Composition:
    if isinstance(conditioning, Composition):
        return conditioning
    return Composition(conditioning, ((1.0,),) * len(conditioning))
