"""`bridge.generate`: a prompt becomes pictures on any SD or SDXL pipeline.

The pipeline itself stays stock: bridge makes the conditioning, one random generator a
picture, and reads along for previews. Nothing of a live pipeline is changed, because the
work is done on a shallow copy (same modules, own scheduler and flags); so two threads may
draw with one pipeline, and each can be stopped alone.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack

import torch

from bridge.checks import either, keywords
from bridge.diffusion.injection import inject
from bridge.diffusion.load import SUPPORTED, load_folder, locate, size_factor
from bridge.diffusion.options import Options, check_size, checked_options, default_guidance
from bridge.diffusion.preview import render, watch_clean_estimate
from bridge.embedded import DRAWING
from bridge.encoding.addons import Loras, TextualInversions, read_addons
from bridge.encoding.composition import Composition
from bridge.encoding.conditioning import Conditioning
from bridge.encoding.encoder import Encoder, read_adapter, split_options
from bridge.encoding.options import (
    AdapterInput,
    LaterTexts,
    Model,
    TextOptions,
    Texts,
    Towers,
    read_call,
    takes,
)
from bridge.encoding.prompt_schedule import PromptSchedule, read_schedule
from bridge.errors import NumbersError, OptionError, UnsupportedModelError
from bridge.kept import kept
from bridge.prompt.prompt import Rule
from bridge.runtime import Dtype, check_dtype, resolve_device, resolve_dtype

if TYPE_CHECKING:
    from PIL.Image import Image


_STEPS = 20


class StopGeneration(Exception):
    """Raise it in ``on_step`` to end drawing early; `generate` returns what there is."""


@dataclass(frozen=True)
class StepPreview:
    """One finished step.

    Attributes:
        step: 1 for the first.
        steps: how many the sampler takes in all.
        latents: ``(B, C, h, w)``, the estimate of the clean picture.
    """

    step: int
    steps: int
    latents: torch.Tensor = field(repr=False)
    _pipe: Any = field(repr=False)

    @cached_property
    def images(self) -> list[Image]:
        """What each picture looks like so far, at full size; worked out when first asked for, so
        that looking at every third step costs a third."""
        return render(self._pipe, self.latents)


@keywords
@dataclass(frozen=True)
class Generation:
    """Pictures with what made them.

    Attributes:
        images: all of the first prompt's, then the second's.
        seeds: one for each; ``seeds[i]`` alone draws ``images[i]`` again. Empty where a
            ``generator`` made the noise.
        conditioning: that of the first step, for prompts that change from step to step; with
            ``AND`` in a prompt it has a row for every part.
        steps_done: how many steps were taken.
        stopped: whether ``on_step`` stopped it.
        warnings: sentences on what was cut off and which weights go too far at any step; Python
            warns of the same, but of no call in particular.
    """

    images: list[Image]
    seeds: tuple[int, ...]
    conditioning: Conditioning = field(repr=False)
    steps_done: int
    stopped: bool
    warnings: tuple[str, ...] = ()


OnStep = Callable[[StepPreview], object]


class GenerateOptions(TextOptions, LaterTexts, total=False):
    """What `generate` hands on to the encoder."""

    towers: Towers | None
    adapter: AdapterInput | None
    textual_inversions: TextualInversions | None
    loras: Loras | None
    original_size: Sequence[int] | None
    crops_coords_top_left: Sequence[int] | None
    target_size: Sequence[int] | None


@takes(GenerateOptions)
def generate(
    prompt: Texts,
    negative_prompt: Texts | None = None,
    *,
    model: Model = DRAWING,
    seed: int | Sequence[int] | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    steps: int | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    guidance_rescale: float = 0.0,
    num_images: int = 1,
    height: int | None = None,
    width: int | None = None,
    on_step: OnStep | None = None,
    device: str | torch.device | None = None,
    dtype: Dtype | None = None,
    progress: bool = False,
    rule: Rule = "new",
    **encoding: Unpack[GenerateOptions],
) -> Generation:
    """Draw ``num_images`` pictures of every prompt.

    Prompts are read as ``bridge.schedule`` reads them, in the a1111 dialect: with ``AND`` between
    them, several are drawn into one picture.

    Args:
        prompt: one or several.
        negative_prompt: one for all, or one for each prompt.
        model: an embedded name, a short name, a folder or a hub id, kept loaded between calls, or
            a live pipeline, which keeps its own device and dtype.
        seed: picture i takes ``seed + i``, or the i-th of a list; None draws a seed, which the
            result reports. Noise is made on the CPU, so a seed means the same picture on every
            device, alone or in a batch.
        generator: in place of ``seed``: what makes the noise, as diffusers takes it, one for all
            pictures or one for each.
        steps, num_inference_steps: of the sampler, by bridge's name or by diffusers'; 20 if neither
            is given.
        guidance_scale: 1 and below turns guidance, and with it the negative prompt, off; None takes
            3 for an embedded name and 5 for any other model.
        guidance_rescale: 0 to 1; pulls back the contrast that strong guidance adds, for models
            trained to zero terminal SNR (Lin et al. 2023, section 3.4).
        num_images: pictures of each prompt.
        height, width: in pixels; the model's own by default.
        on_step: called with a ``StepPreview`` after every step. When it returns False (not None) or
            raises ``StopGeneration``, drawing stops, and the estimate of the clean picture so far
            is returned with ``stopped=True``; any other exception passes through.
        device, dtype: as in ``load_pipeline``.
        progress: show diffusers' progress bar.
        rule: as in ``bridge.schedule``.
        encoding: all other options of ``bridge.schedule``. A LoRA's part for the UNet is the
            pipeline's own business: load it there (``load_lora_weights``) and pass the pipeline.

    Raises:
        PromptError, OptionError, UnsupportedModelError: before any model loads, where that can be.
        NumbersError: the latents are not finite.

    It also raises what ``load_pipeline`` and ``bridge.schedule`` raise.
    """
    of_model, of_call = split_options(encoding)
    if generator is not None:
        either(seed, generator, "seed and generator")
    count = either(steps, num_inference_steps, "steps and num_inference_steps")
    options = checked_options(
        prompt,
        negative_prompt,
        seed=seed,
        steps=_STEPS if count is None else count,
        guidance_scale=default_guidance(model) if guidance_scale is None else guidance_scale,
        guidance_rescale=guidance_rescale,
        num_images=num_images,
        size=(height, width),
    )
    if generator is not None:
        check_generator(generator, options.pictures)
        options = replace(options, seeds=())
    if on_step is not None and not callable(on_step):
        raise OptionError(f"on_step is {on_step!r}; give a function that takes a StepPreview")
    negatives = None if options.negatives is None else list(options.negatives)
    sizes = {"height": options.height, "width": options.width}
    call = read_call(list(options.prompts), negatives, {**of_call, **sizes})
    asked = read_schedule(call, options.steps, rule)
    # Their files are read before a model is; the encoder finds them read.
    read_addons(of_model.get("textual_inversions"), of_model.get("loras"), asked.call.tagged)
    adapter = of_model.get("adapter")
    if adapter is not None:
        of_model["adapter"] = read_adapter(adapter)
    by_name = isinstance(model, (str, os.PathLike))
    pipe = _named(model, options, device, dtype) if by_name else _live(model, options)
    noise = _generators(generator, options, pipe)
    plan = Encoder.over_kept(pipe, of_model).run_schedule(asked)
    if by_name:
        _check_unet_parts(plan)
    return _draw(pipe, options, noise, plan, on_step, progress)


Noise: TypeAlias = torch.Generator | Sequence[torch.Generator]


def check_generator(given: object, pictures: int) -> None:
    """Refuse what is neither a ``torch.Generator`` nor one for each picture. Raises OptionError."""
    if isinstance(given, torch.Generator):
        return
    some = list(given) if isinstance(given, list | tuple) else [given]
    odd = next((each for each in some if not isinstance(each, torch.Generator)), None)
    if odd is not None:
        raise OptionError(
            "generator must be a torch.Generator, or a list of one for each picture, not "
            f"{odd!r:.60}; a number goes in as seed"
        )
    if len(some) != pictures:
        raise OptionError(f"{len(some)} generators for {pictures} pictures; give one a picture")


def _generators(given: Noise | None, options: Options, pipe: Any) -> Noise:
    """What the pipeline draws its noise from."""
    if given is None:
        return [torch.Generator("cpu").manual_seed(seed) for seed in options.seeds]
    place = pipe.device.type
    for each in [given] if isinstance(given, torch.Generator) else given:
        if each.device.type not in ("cpu", place):
            raise OptionError(
                f"generator is on {each.device}, and the pipeline on {place}; make it on the CPU"
            )
    return given


def _live(model: Any, options: Options) -> Any:
    name = type(model).__name__
    if name not in SUPPORTED:
        raise UnsupportedModelError(
            f"model is a {name}; bridge draws with {' and '.join(SUPPORTED)}, "
            "live or by name, folder or hub id"
        )
    check_size(options.height, options.width, model.vae_scale_factor)
    return model


def _named(
    model: str | os.PathLike[str],
    options: Options,
    device: str | torch.device | None,
    dtype: Dtype | None,
) -> Any:
    place = resolve_device(device)
    check_dtype(dtype)
    folder = locate(model)
    check_size(options.height, options.width, size_factor(folder))
    return _loaded(folder, place, resolve_dtype(dtype, place, folder))


@kept(2)
def _loaded(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    return load_folder(folder, device, dtype)


def _check_unet_parts(plan: PromptSchedule) -> None:
    """Raise OptionError for a LoRA that would act by half: a model by name has no UNet to load
    its other part into."""
    for addon in _parts(plan.at(1)).addons:
        if addon.unused and any(addon.unet_strengths):
            raise OptionError(
                f"The LoRA {addon.name!r} has a part for the UNet ({addon.unused[0]} …), and only "
                "its text part would act. Load it into a pipeline (bridge.load_pipeline, then "
                "load_lora_weights) and pass that as model; or set the UNet's strength to 0: "
                f"<lora:{addon.name}:1:0>."
            )


def _parts(used: Conditioning | Composition) -> Conditioning:
    return used.parts if isinstance(used, Composition) else used


def _draw(
    pipe: Any,
    options: Options,
    noise: Noise,
    plan: PromptSchedule,
    on_step: OnStep | None,
    progress: bool,
) -> Generation:
    own = own_copy(pipe, progress)
    clean_estimate = watch_clean_estimate(own.scheduler) if on_step else None
    done: list[int] = [0]
    finite: list[torch.Tensor] = []  # of each step, of each picture; on the device until the end
    stopped: list[bool] = [False]

    def after_step(running: Any, index: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        done[0] = index + 1
        finite.append(tensors["latents"].isfinite().flatten(1).all(1))
        if on_step is None or clean_estimate is None:
            return {}
        estimate = clean_estimate()
        latents = tensors["latents"] if estimate is None else estimate
        preview = StepPreview(index + 1, running.num_timesteps, latents, running)
        try:
            go_on = on_step(preview) is not False
        except StopGeneration:
            go_on = False
        if go_on or index + 1 == running.num_timesteps:
            return {}
        running._interrupt = True  # the pipelines' own flag; the steps left become no-ops
        stopped[0] = True
        return {"latents": latents.to(tensors["latents"].dtype)}

    try:
        with inject(own, plan, num_images=options.num_images, then=after_step) as settings:
            result = own(
                **{**settings, **_size(options)},
                num_inference_steps=options.steps,
                guidance_scale=options.guidance_scale,
                guidance_rescale=options.guidance_rescale,
                generator=noise,
            )
    except torch.OutOfMemoryError as error:
        raise OptionError(
            f"no memory left for {options.pictures} pictures at once; "
            "ask for fewer, or for smaller ones"
        ) from error
    _check_finite(finite, options)
    used = _parts(plan.at(1))
    told = dict.fromkeys(line for each in plan.conditionings for line in _parts(each).warnings())
    return Generation(list(result.images), options.seeds, used, done[0], stopped[0], tuple(told))


def _check_finite(finite: Sequence[torch.Tensor], options: Options) -> None:
    """Refuse pictures of numbers that are not finite. Raises NumbersError."""
    for step, row in enumerate(torch.stack(list(finite)).tolist() if finite else [], start=1):
        if all(row):
            continue
        picture = row.index(False)
        seed = f" (seed {options.seeds[picture]})" if options.seeds else ""
        raise NumbersError(
            f"The latents of {options.prompts[picture // options.num_images]!r:.120}{seed} are not "
            f"finite (NaN or infinity) after step {step} of "
            f"{options.steps}, so there is no picture. Draw in float32 or bfloat16, with a "
            "guidance_scale nearer to 5, or with another scheduler; or the UNet's weights are "
            "damaged."
        )


def _size(options: Options) -> dict[str, int]:
    sizes = {"height": options.height, "width": options.width}
    return {name: value for name, value in sizes.items() if value is not None}


def own_copy(pipe: Any, progress: bool = False) -> Any:
    """The pipeline with the same modules, but a scheduler, flags and settings of its own."""
    own = copy.copy(pipe)
    own.scheduler = copy.deepcopy(pipe.scheduler)
    # Set anew rather than through set_progress_bar_config, whose dictionary is shared.
    own._progress_bar_config = {"disable": not progress}
    return own
