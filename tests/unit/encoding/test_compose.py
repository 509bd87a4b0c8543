"""AND: the pipeline's latents against a loop that runs every part by itself.

The loop below asks the UNet for one row at a time and writes out the formula; the pipeline runs
all rows at once, so the two differ by float32's rounding of other batch sizes over a few steps:
1e-4 of the largest latent.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
)
from PIL import Image
from support.comparisons import Compared, relative
from support.tiny_models import LATENT_SIZE, tiny_sd_pipeline, tiny_sdxl_pipeline

import bridge
from bridge.diffusion.hooks import around
from bridge.diffusion.noise import layout
from bridge.errors import OptionError, PromptError, UnsupportedModelError

SCHEDULERS = [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler]
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=["sd15", "sd21", "sdxl"])
def pipe(request: pytest.FixtureRequest) -> Any:
    made = tiny_sdxl_pipeline() if request.param == "sdxl" else tiny_sd_pipeline(request.param)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def sd() -> Any:
    made = tiny_sd_pipeline()
    made.set_progress_bar_config(disable=True)
    return made


def start(count: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 4, LATENT_SIZE, LATENT_SIZE, generator=generator)


@torch.no_grad()
def naive(
    pipe: Any,
    stages: Sequence[Sequence[tuple[str, float]]],
    negative: str | None,
    scale: float,
) -> torch.Tensor:
    """The latents of one picture; ``stages`` has the weighted parts of every step."""
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(len(stages))
    latents = start() * scheduler.init_noise_sigma

    def predicted(time: Any, states: Any, pooled: Any, ids: Any) -> torch.Tensor:
        added = None if pooled is None else {"text_embeds": pooled, "time_ids": ids}
        noisy = scheduler.scale_model_input(latents, time)
        return pipe.unet(noisy, time, states, added_cond_kwargs=added).sample

    for time, parts in zip(scheduler.timesteps, stages, strict=True):
        conds = [bridge.condition(text, negative, model=pipe) for text, _ in parts]
        one = conds[0]
        base = predicted(
            time, one.negative_prompt_embeds, one.negative_pooled_prompt_embeds, one.add_time_ids
        )
        noise = base
        for cond, (_, weight) in zip(conds, parts, strict=True):
            own = predicted(time, cond.prompt_embeds, cond.pooled_prompt_embeds, cond.add_time_ids)
            noise = noise + scale * weight * (own - base)
        latents = scheduler.step(noise, time, latents).prev_sample
    return latents


def drawn(pipe: Any, plan: Any, num_images: int = 1, **call: Any) -> torch.Tensor:
    with bridge.inject(pipe, plan, num_images=num_images) as kwargs:
        count = len(kwargs["prompt_embeds"])
        call = {"latents": start(count), "output_type": "latent", **call}
        return pipe(**kwargs, **call).images


def no_hooks(pipe: Any) -> bool:
    return not any(m._forward_hooks or m._forward_pre_hooks for m in pipe.unet.modules())


# ---------------------------------------------------------------- exactness


@pytest.mark.parametrize("negative", [None, "red two"])
def test_parts_are_summed_as_in_the_formula(
    pipe: Any, negative: str | None, compared: Compared
) -> None:
    plan = bridge.compose("a cat AND a dog :0.7 AND red :-0.3", negative, model=pipe)
    assert plan.weights == ((1.0, 0.7, -0.3),)
    found = drawn(pipe, plan, num_inference_steps=3, guidance_scale=4.0)
    parts = [("a cat", 1.0), ("a dog", 0.7), ("red", -0.3)]
    wanted = naive(pipe, [parts] * 3, negative, 4.0)
    compared("AND", "stable-diffusion-webui's formula", found, wanted, TOLERANCE)
    assert no_hooks(pipe)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_any_scheduler(sd: Any, scheduler: Any) -> None:
    before = sd.scheduler
    sd.scheduler = scheduler.from_config(before.config)
    try:
        plan = bridge.compose("a cat AND a dog :0.7", model=sd)
        found = drawn(sd, plan, num_inference_steps=4, guidance_scale=5.0)
        wanted = naive(sd, [[("a cat", 1.0), ("a dog", 0.7)]] * 4, "", 5.0)
    finally:
        sd.scheduler = before
    assert relative(found, wanted) <= TOLERANCE


def test_without_guidance_the_scale_is_one(pipe: Any) -> None:
    plan = bridge.compose("a cat AND a dog :0.7", "two", model=pipe)
    found = drawn(pipe, plan, num_inference_steps=2, guidance_scale=1.0)
    wanted = naive(pipe, [[("a cat", 1.0), ("a dog", 0.7)]] * 2, "two", 1.0)
    assert relative(found, wanted) <= TOLERANCE


@pytest.mark.parametrize("guidance", [5.0, 1.0])
@pytest.mark.parametrize("text", ["a (cat:1.3)", "a cat :1"])
def test_one_part_of_weight_one_is_the_plain_picture(pipe: Any, text: str, guidance: float) -> None:
    call = {"num_inference_steps": 2, "guidance_scale": guidance}
    found = drawn(pipe, bridge.compose(text, "dog", model=pipe), **call)
    cond = bridge.condition(text.removesuffix(" :1"), "dog", model=pipe)
    wanted = pipe(**cond.kwargs(), latents=start(), output_type="latent", **call).images
    assert torch.equal(found, wanted)


def test_prompts_of_unequal_parts_in_one_call_with_several_pictures(pipe: Any) -> None:
    texts = ["a cat AND red :0.5 AND two", "a dog", "an apple AND the dog"]
    call = {"num_inference_steps": 2, "guidance_scale": 3.0}
    plan = bridge.compose(texts, ["", "red", "two"], model=pipe)
    assert len(plan) == 3 and len(plan.parts) == 6 and plan.starts == (0, 3, 4)
    found = drawn(pipe, plan, num_images=2, **call)
    # diffusers' own way to several pictures a prompt gives the same rows.
    with bridge.inject(pipe, plan) as kwargs:
        same = pipe(
            **kwargs, **call, num_images_per_prompt=2, latents=start(6), output_type="latent"
        ).images
    assert torch.equal(found, same)
    for i, (text, negative) in enumerate(zip(texts, ["", "red", "two"], strict=True)):
        alone = bridge.compose(text, negative, model=pipe)
        for j in (2 * i, 2 * i + 1):
            wanted = drawn(pipe, alone, **call, latents=start(6)[j : j + 1])
            assert relative(found[j : j + 1], wanted) <= TOLERANCE


def test_parts_skip_layers(pipe: Any) -> None:
    plan = bridge.compose("a cat AND a dog", "red", model=pipe, clip_skip=1)
    wanted = bridge.condition(["a cat", "a dog"], "red", model=pipe, clip_skip=1)
    torch.testing.assert_close(plan.parts.prompt_embeds, wanted.prompt_embeds)


def test_the_unet_runs_once_a_step(sd: Any) -> None:
    calls: list[int] = []
    handle = sd.unet.register_forward_hook(lambda _m, _a, out: calls.append(len(out[0])))
    try:
        plan = bridge.compose("a cat AND a dog", model=sd)
        drawn(sd, plan, num_inference_steps=3, guidance_scale=3.0)
    finally:
        handle.remove()
    # This hook was there first, so it sees the widened rows: one negative, two parts.
    assert calls == [3, 3, 3]


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_img2img(kind: str) -> None:
    made = tiny_sd_pipeline() if kind == "sd15" else tiny_sdxl_pipeline()
    maker = StableDiffusionImg2ImgPipeline if kind == "sd15" else StableDiffusionXLImg2ImgPipeline
    changes = {} if kind == "sd15" else {"requires_aesthetics_score": False}
    pipe = maker(
        **made.components,
        **changes,
        **({"requires_safety_checker": False} if kind == "sd15" else {}),
    )
    pipe.set_progress_bar_config(disable=True)
    picture = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3))

    def call(plan: Any) -> torch.Tensor:
        with bridge.inject(pipe, plan) as kwargs:
            return pipe(
                **kwargs, image=picture, strength=0.6, num_inference_steps=5, guidance_scale=4.0,
                generator=torch.Generator().manual_seed(1), output_type="latent",
            ).images  # fmt: skip

    # Twice the same part of half the weight is the plain prompt; another part is not.
    plain = call(bridge.condition("a cat", "", model=pipe))
    halves = call(bridge.compose("a cat :0.5 AND a cat :0.5", "", model=pipe))
    both = call(bridge.compose("a cat AND a dog", "", model=pipe))
    assert relative(halves, plain) <= TOLERANCE
    assert relative(both, plain) > 100 * TOLERANCE


# ---------------------------------------------------------------- with schedules


def test_parts_change_at_their_steps_and_again_in_a_second_call(pipe: Any) -> None:
    plan = bridge.schedule("a [cat:dog:0.5] AND [red|two] :0.6", "apple", steps=4, model=pipe)
    stages = [
        [("a cat", 1.0), ("red", 0.6)],
        [("a cat", 1.0), ("red", 0.6)],
        [("a cat", 1.0), ("two", 0.6)],
        [("a dog", 1.0), ("red", 0.6)],
    ]
    wanted = naive(pipe, stages, "apple", 3.0)
    with bridge.inject(pipe, plan) as kwargs:
        for _ in range(2):
            found = pipe(
                **kwargs, num_inference_steps=4, guidance_scale=3.0, latents=start(),
                output_type="latent",
            ).images  # fmt: skip
            assert relative(found, wanted) <= TOLERANCE
    with pytest.raises(OptionError, match=r"bridge\.inject"):
        plan.kwargs()


def test_generate_draws_parts(pipe: Any) -> None:
    def draw(prompt: str) -> np.ndarray:
        made = bridge.generate(prompt, model=pipe, seed=1, steps=2)
        return np.asarray(made.images[0], dtype=int)

    assert np.abs(draw("a cat :0.5 AND a cat :0.5") - draw("a cat")).max() <= 1
    assert np.abs(draw("a cat AND [a dog:red:1]") - draw("a cat AND red")).max() > 1
    assert no_hooks(pipe)
    made = bridge.generate("a cat AND a dog", model=pipe, seed=1, steps=1)
    assert len(made.conditioning) == 2


# ---------------------------------------------------------------- no trace


def test_hooks_come_off_after_an_error(sd: Any) -> None:
    plan = bridge.compose("a cat AND a dog", model=sd)
    with pytest.raises(ZeroDivisionError), bridge.inject(sd, plan):
        assert not no_hooks(sd)
        raise ZeroDivisionError
    assert no_hooks(sd)

    def fail(*_: Any) -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), bridge.inject(sd, plan, then=fail) as kwargs:
        sd(**kwargs, num_inference_steps=2, output_type="latent")
    assert no_hooks(sd)


def test_another_thread_draws_as_if_nothing_were_there(sd: Any) -> None:
    cond = bridge.condition("a cat", "", model=sd)
    call = {"latents": start(), "num_inference_steps": 2, "output_type": "latent"}
    wanted = sd(**cond.kwargs(), **call).images
    found: list[torch.Tensor] = []
    with bridge.inject(sd, bridge.compose("red AND two", model=sd)):
        # A copy, for a pipeline's scheduler is not made for two threads.
        other = type(sd)(**sd.components, requires_safety_checker=False)
        other.set_progress_bar_config(disable=True)
        thread = threading.Thread(
            target=lambda: found.append(other(**cond.kwargs(), **call).images)
        )
        thread.start()
        thread.join()
    assert torch.equal(found[0], wanted)


def test_a_hook_called_without_its_kwargs_does_nothing() -> None:
    module = torch.nn.Linear(2, 2)
    with around(module, lambda args, kwargs: ((args[0] + 1,), kwargs)):
        (hook,) = module._forward_pre_hooks.values()
        assert hook(module, (torch.zeros(2),)) is None


# ---------------------------------------------------------------- bad input


def test_rows_that_are_not_the_prompts() -> None:
    with pytest.raises(OptionError, match="3 rows, without guidance"):
        layout(((1.0,), (1.0, 0.5)), 3, guided=False)
    with pytest.raises(OptionError, match="with guidance"):
        layout(((1.0, 0.5),), 3, guided=True)


def test_what_cannot_be_composed(sd: Any) -> None:
    with pytest.raises(PromptError, match=r"bridge\.compose[\s\S]*\n +\^+"):
        bridge.condition("a cat AND a dog", model=sd)
    with pytest.raises(PromptError, match=r"bridge\.schedule"):
        bridge.compose("a [cat:dog:2] AND red", model=sd)
    with pytest.raises(PromptError, match=r"bridge\.condition"):
        bridge.schedule('("a", "b").and()', steps=2, model=sd, dialect="compel")
    # compel's own conjunction sets states end to end, here as everywhere.
    ends = bridge.compose('("a cat", "a dog").and()', model=sd, dialect="compel")
    assert ends.is_plain and ends.parts.prompt_embeds.shape[1] == 154


def test_pipelines_that_cannot_be_injected(sd: Any) -> None:
    plan = bridge.compose("a cat AND a dog", model=sd)

    class Other:
        transformer = torch.nn.Linear(2, 2)

    with (
        pytest.raises(UnsupportedModelError, match="Other draws with NoneType"),
        bridge.inject(Other(), plan),
    ):
        pass
    sd.unet._compiled_call_impl = sd.unet._call_impl
    try:
        with pytest.raises(UnsupportedModelError, match="compiled"), bridge.inject(sd, plan):
            pass
    finally:
        sd.unet._compiled_call_impl = None
    # Nothing of it is needed for prompts without parts.
    with bridge.inject(Other(), bridge.compose("a cat", model=sd)) as kwargs:
        assert "prompt_embeds" in kwargs
