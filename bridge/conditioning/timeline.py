"""Prompts that change from step to step: encoded at once, swapped at the steps' borders.

stable-diffusion-webui's prompt editing (``[cat:dog:0.5]``) and alternation (``[cat|dog]``) are
compiled to intervals of steps (``bridge.prompt.schedule``); each interval's prompt is encoded, all
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
from typing import Any, Unpack

import torch
from torch import Tensor

from bridge.conditioning.adapters.adapter import Adapter
from bridge.conditioning.adapters.swap import read_adapter, with_towers
from bridge.conditioning.addons import fitted
from bridge.conditioning.brought import Brought, Loras, TextualInversions, bring
from bridge.conditioning.composition import (
    Composition,
    is_apart,
    part_prompts,
    repeated,
    weights_of,
)
from bridge.conditioning.encode import encode_texts
from bridge.conditioning.kit import open_kit
from bridge.conditioning.request import ParsedTexts, Place, Texts, WordingOptions, read_place
from bridge.conditioning.result import HOW_TO_INJECT, Conditioning
from bridge.conditioning.running import call_of_run, calls_per_step, is_guided
from bridge.conditioning.unet_only import check_unet
from bridge.conditioning.wording import Wording, read_wording
from bridge.embedded import DRAWING
from bridge.errors import OptionError
from bridge.prompt import LongPrompt, Prompt, check_paired, check_prompts
from bridge.prompt.loras import Tagged
from bridge.prompt.schedule import Rule, at_step, check_run, last_steps

OnStepEnd = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]


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
class ReadSchedule:
    """What ``schedule`` is asked for, checked as far as no model is needed for it."""

    steps: int
    rule: Rule
    wording: Wording
    place: Place
    towers: Any
    adapter: Adapter | None
    tagged: tuple[Tagged, ...]
    brought: Brought
    prompts: tuple[Prompt, ...]
    negatives: tuple[Prompt, ...] | None


def read_schedule(
    prompt: Texts,
    negative_prompt: Texts | None = None,
    *,
    steps: int,
    height: int | None = None,
    width: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    **worded: Unpack[WordingOptions],
) -> ReadSchedule:
    """Check and parse; arguments and errors as ``schedule``, but those that need a model."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise OptionError(f"steps must be a whole number above 0, not {steps!r}.")
    texts = check_prompts(prompt)
    negative_texts = check_paired(negative_prompt, len(texts))
    wording = read_wording(
        worded.get("dialect", "a1111"),
        worded.get("emphasis"),
        worded.get("token_normalization", "none"),
        worded.get("long_prompt"),
        worded.get("align"),
        worded.get("clean"),
    )
    place = read_place(
        worded.get("clip_skip"),
        height,
        width,
        device,
        dtype,
        max_sequence_length=worded.get("max_sequence_length"),
        negative_clip_skip=worded.get("negative_clip_skip"),
    )
    tagged = tuple(wording.tagged(text) for text in texts)
    brought = bring(worded.get("textual_inversions"), worded.get("loras"), tagged)
    prompts = tuple(wording.read(each.text) for each in tagged)
    negatives = (
        None
        if negative_texts is None
        else tuple(wording.read(text, negative=True) for text in negative_texts)
    )
    rule, adapter = worded.get("rule", "new"), worded.get("adapter")
    check_run(steps, rule)
    return ReadSchedule(
        steps=steps,
        rule=rule,
        wording=wording,
        place=place,
        towers=worded.get("towers"),
        adapter=None if adapter is None else read_adapter(adapter),
        tagged=tagged,
        brought=brought,
        prompts=prompts,
        negatives=negatives,
    )


def schedule(
    prompt: Texts,
    negative_prompt: Texts | None = None,
    *,
    steps: int,
    model: Any = DRAWING,
    towers: Any = None,
    adapter: Any = None,
    rule: Rule = "new",
    dialect: str = "a1111",
    emphasis: str | None = None,
    token_normalization: str = "none",
    long_prompt: str | LongPrompt | None = None,
    align: str | None = None,
    clean: str | None = None,
    textual_inversions: TextualInversions | None = None,
    loras: Loras | None = None,
    clip_skip: int | None = None,
    negative_clip_skip: int | None = None,
    max_sequence_length: int | None = None,
    height: int | None = None,
    width: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
) -> PromptSchedule:
    """Encode prompts and negatives for a run of ``steps`` steps.

    Args:
        steps: ``num_inference_steps`` of the run. Of a live pipeline whose solver calls the
            model twice a step, ``when`` counts those calls, fractions of them too.
        rule: how the numbers in ``[from:to:when]`` are read: ``new``, with a point a fraction of
            the steps, else a step; ``old``, below 1 a fraction.
        The others as in ``bridge.condition``.

    Raises:
        OptionError, PromptError and the others of ``bridge.condition``.
    """
    asked = read_schedule(
        prompt,
        negative_prompt,
        steps=steps,
        towers=towers,
        adapter=adapter,
        rule=rule,
        dialect=dialect,
        emphasis=emphasis,
        token_normalization=token_normalization,
        long_prompt=long_prompt,
        align=align,
        clean=clean,
        textual_inversions=textual_inversions,
        loras=loras,
        clip_skip=clip_skip,
        negative_clip_skip=negative_clip_skip,
        max_sequence_length=max_sequence_length,
        height=height,
        width=width,
        device=device,
        dtype=dtype,
    )
    return encode_schedule(asked, model, revision)


def encode_schedule(asked: ReadSchedule, model: Any, revision: str | None = None) -> PromptSchedule:
    """Encode what was read; arguments and errors as ``schedule``."""
    steps, rule, place = asked.steps, asked.rule, asked.place
    prompts, negatives = asked.prompts, asked.negatives
    each_step = calls_per_step(model)
    calls = steps * each_step
    changing = (*prompts, *(negatives or ()))
    ends = sorted({end for each in changing for end in last_steps(each, calls, rule)})
    kit = open_kit(model, device=place.device, dtype=place.dtype, revision=revision)
    if len(ends) > 1 and not kit.recipe.swapped:
        raise OptionError(
            f"The prompt changes from step to step, and the pipeline of {kit.recipe.name} lets no "
            "callback change all that it is conditioned on; give a prompt that stays the same."
        )
    if any(map(is_apart, prompts)):
        check_unet(kit, "The parts of an AND are summed")
    weights = tuple(weights_of(each) for each in prompts)
    counts = [len(some) for some in weights]

    def at(each: Prompt, end: int) -> tuple[Prompt, ...]:
        """The parts of a prompt as they are at one step."""
        return part_prompts(each, at_step(each, end, calls, rule))

    whole = encode_texts(
        fitted(
            with_towers(kit, asked.towers, asked.adapter, place.device),
            asked.brought,
            asked.wording.dialect,
        ),
        asked.wording,
        place,
        ParsedTexts(
            tuple(part for end in ends for each in prompts for part in at(each, end)),
            None
            if negatives is None
            else tuple(
                negative
                for end in ends
                for negative in repeated([at(each, end)[0] for each in negatives], counts)
            ),
            tagged=repeated(asked.tagged, counts) * len(ends),
            counts=tuple(counts),
        ),
    )
    rows = range(0, len(whole), sum(counts))
    found = tuple(whole.rows(start, start + sum(counts)) for start in rows)
    plain = all(some == (1.0,) for some in weights)
    return PromptSchedule(
        steps,
        tuple(ends),
        found if plain else tuple(Composition(each, weights) for each in found),
        each_step,
    )


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
