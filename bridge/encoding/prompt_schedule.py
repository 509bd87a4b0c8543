"""Prompts that change from step to step: encoded at once, swapped at the steps' borders.

stable-diffusion-webui's prompt editing (``[cat:dog:0.5]``) and alternation (``[cat|dog]``) are
compiled to intervals of steps (``bridge.prompt.intervals``); each interval's prompt is encoded, all
in one pass a tower. As in the web UI, what is counted are calls of the model: a live pipeline whose
solver calls it twice a step (Heun, KDPM2) has twice as many as steps. A diffusers pipeline swaps
the prompts through its own ``callback_on_step_end``, between two calls, so that a change falls
exactly on a border with any scheduler. The parts of an ``AND`` may each change; such a schedule is
drawn inside ``bridge.inject``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bridge.checks import either, is_whole, keywords
from bridge.encoding.composition import Composition, part_prompts, weights_of
from bridge.encoding.conditioning import HOW_TO_INJECT, Conditioning
from bridge.encoding.options import Call, ParsedTexts, Request, is_apart, repeated
from bridge.encoding.pipeline_state import call_of_run, is_guided
from bridge.errors import OptionError
from bridge.prompt import Prompt
from bridge.prompt.prompt import Rule, at_step, check_run, last_steps

OnStepEnd = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]


@keywords
@dataclass(frozen=True)
class PromptSchedule:
    """Conditionings over the steps of a run.

    Attributes:
        steps: the run's length.
        last_steps: the last call of the model in each interval, counted from 1; the last one is
            ``calls``. Where the solver calls the model once a step, these are steps.
        conditionings: one an interval, each with the B prompts of the call; Compositions if any
            prompt has parts that are drawn apart.
        calls_per_step: how often the solver calls the model in a step.
    """

    steps: int
    last_steps: tuple[int, ...]
    conditionings: tuple[Conditioning | Composition, ...]
    calls_per_step: int = 1

    @property
    def calls(self) -> int:
        """How many calls of the model the run is compiled for."""
        return self.steps * self.calls_per_step

    def at(self, step: int) -> Conditioning | Composition:
        """What is drawn at ``step``, counted from 1 in calls of the model, as ``last_steps`` are.
        Raises OptionError outside the run."""
        if not 1 <= step <= self.calls:
            raise OptionError(f"Step {step} is outside the run; it has steps 1 to {self.calls}.")
        return self.conditionings[bisect_left(self.last_steps, step)]

    def kwargs(self, num_images: int = 1, then: OnStepEnd | None = None) -> dict[str, Any]:
        """Keyword arguments of a stock pipeline call; give it ``num_inference_steps=steps`` too.

        Args:
            num_images: pictures for each prompt.
            then: another ``callback_on_step_end`` to call after ours.

        Raises:
            OptionError: parts or weights that act inside the UNet, so that ``bridge.inject`` is
                needed.
        """
        first = self.at(1)
        if isinstance(first, Composition):
            raise OptionError(f"The parts of an AND are drawn apart: {HOW_TO_INJECT}")
        found = first.kwargs(num_images)
        if len(self.conditionings) == 1 and then is None:
            return found
        names = first.recipe.swapped
        found["callback_on_step_end"] = self._swapping(then)
        found["callback_on_step_end_tensor_inputs"] = ["latents", *names]
        return found

    def _swapping(self, then: OnStepEnd | None) -> OnStepEnd:
        def at_step_end(
            pipe: Any, index: int, time: Any, tensors: dict[str, Any]
        ) -> dict[str, Any]:
            swapped: dict[str, Any] = {}
            before, after = (
                self.at(call_of_run(pipe, call, self.steps, self.calls_per_step))
                for call in (index, index + 1)
            )
            if after is not before:
                assert isinstance(after, Conditioning)
                swapped = _tensors(after, is_guided(pipe), tensors)
            if then is None:
                return swapped
            return swapped | then(pipe, index, time, tensors | swapped)

        return at_step_end


@dataclass(frozen=True)
class ScheduleCall:
    """A call of ``schedule``, parsed."""

    call: Call
    steps: int
    rule: Rule
    prompts: ParsedTexts
    negatives: ParsedTexts

    @property
    def is_apart(self) -> bool:
        """Whether any prompt has parts that are drawn apart."""
        return any(map(is_apart, self.prompts[0] or ()))

    def last_steps(self, calls: int) -> list[int]:
        """Each call of the model after which what is drawn may change, in a run of ``calls``."""
        every = (prompt for some in (*self.prompts, *self.negatives) for prompt in some or ())
        return sorted({end for each in every for end in last_steps(each, calls, self.rule)})

    def request(self, calls: int) -> Request:
        """All that is encoded for a run of ``calls``: the prompts at one step after the other."""
        prompts = self.prompts[0] or ()
        counts = tuple(len(weights_of(each)) for each in prompts)
        ends = self.last_steps(calls)

        def at(each: Prompt, end: int) -> tuple[Prompt, ...]:
            """The parts of a prompt as they are at one step."""
            return part_prompts(each, at_step(each, end, calls, self.rule))

        def spread(texts: tuple[Prompt, ...] | None) -> tuple[Prompt, ...] | None:
            """One for each part of each prompt, at each step."""
            if texts is None:
                return None
            return tuple(
                one for end in ends for one in repeated([at(t, end)[0] for t in texts], counts)
            )

        return Request(
            (
                tuple(part for end in ends for each in prompts for part in at(each, end)),
                *map(spread, self.prompts[1:]),
            ),
            tuple(map(spread, self.negatives)),
            repeated(self.call.tagged, counts) * len(ends),
            counts,
            self.call.sizes,
        )

    def scheduled(self, found: Conditioning, each_step: int) -> PromptSchedule:
        """The schedule out of what ``request`` became; ``each_step``: calls of the model a step."""
        weights = tuple(weights_of(each) for each in self.prompts[0] or ())
        count = sum(map(len, weights))
        ends = self.last_steps(self.steps * each_step)
        parts = [found.rows(start, start + count) for start in range(0, len(found), count)]
        plain = all(some == (1.0,) for some in weights)
        return PromptSchedule(
            self.steps,
            tuple(ends),
            tuple(parts if plain else [Composition(each, weights) for each in parts]),
            each_step,
        )


def steps_of(steps: int | None, num_inference_steps: int | None) -> int:
    """The length of a run by either of its names. Raises OptionError for none and for both."""
    found = either(steps, num_inference_steps, "steps and num_inference_steps")
    if found is None:
        raise OptionError("schedule needs steps, the num_inference_steps of the run; give them.")
    return found


def read_schedule(call: Call, steps: object, rule: Rule) -> ScheduleCall:
    """Parse the prompts of a run.

    Raises:
        OptionError: no number of steps, no rule.
        PromptError: as ``bridge.schedule``.
    """
    if not is_whole(steps, 1):
        raise OptionError(f"steps must be a whole number above 0, not {steps!r}.")
    check_run(steps, rule)

    def read(text: str, negative: bool) -> Prompt:
        return call.rules.read(text, negative=negative)

    return ScheduleCall(call, steps, rule, *call.parsed(read))


def _tensors(cond: Conditioning, guided: bool, tensors: dict[str, Any]) -> dict[str, Tensor]:
    """What a pipeline's loop reads from the next step on.

    How many pictures a prompt has is the pipeline's to say: it may repeat what it was given.
    """
    running, pictures = tensors["prompt_embeds"], len(tensors["latents"])
    each, rest = divmod(pictures, len(cond))
    if rest or len(running) != pictures * (1 + guided):
        raise OptionError(
            f"The pipeline runs {len(running)} rows for {pictures} pictures of {len(cond)} "
            f"prompts, {'with' if guided else 'without'} guidance, so the prompts cannot be "
            "changed between its steps: draw in one that runs negatives and prompts alone."
        )
    ready = cond.repeat(each)

    def joined(negative: Tensor | None, positive: Tensor | None) -> Tensor:
        assert positive is not None and negative is not None
        both = torch.cat([negative, positive]) if guided else positive
        return both.to(running.device, running.dtype)

    found = {"prompt_embeds": joined(ready.negative_prompt_embeds, ready.prompt_embeds)}
    # SDXL's loop calls it by the one name, SD 3's by the other.
    for name in {"add_text_embeds", "pooled_prompt_embeds"} & tensors.keys():
        found[name] = joined(ready.negative_pooled_prompt_embeds, ready.pooled_prompt_embeds)
    return found
