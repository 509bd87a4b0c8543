"""Prompts that change from step to step: the UNet is asked what it was given at each."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    PNDMScheduler,
)
from support.tiny_models import tiny_sd_pipeline, tiny_sdxl_pipeline
from support.tiny_t5 import tiny_t5_pipeline

import bridge
from bridge.errors import OptionError, PromptError
from bridge.prompt import TruncationWarning

SCHEDULERS = [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler]


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def pipe(request: pytest.FixtureRequest) -> Any:
    made = tiny_sdxl_pipeline() if request.param == "sdxl" else tiny_sd_pipeline("sd15")
    made.set_progress_bar_config(disable=True)
    return made


def seen_by_the_unet(pipe: Any, **call: Any) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """The token states and pooled states of each forward pass of the UNet."""
    seen: list[tuple[torch.Tensor, torch.Tensor | None]] = []

    def hook(_module: Any, _args: Any, kwargs: Any) -> None:
        more = kwargs.get("added_cond_kwargs") or {}
        seen.append((kwargs["encoder_hidden_states"], more.get("text_embeds")))

    handle = pipe.unet.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        pipe(**call, output_type="latent", generator=torch.Generator().manual_seed(0))
    finally:
        handle.remove()
    return seen


def both(cond: Any, name: str) -> torch.Tensor:
    return torch.cat([getattr(cond, f"negative_{name}"), getattr(cond, name)])


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_change_falls_on_the_border_of_its_step(pipe: Any, scheduler: Any) -> None:
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    plan = bridge.schedule("a [cat:dog:0.5] (red:1.2)", "[ugly:two:2]", steps=4, model=pipe)
    assert plan.last_steps == (3, 4)
    seen = seen_by_the_unet(pipe, **plan.kwargs(), num_inference_steps=4, guidance_scale=3.0)
    parts = [
        bridge.condition("a cat (red:1.2)", "ugly", model=pipe),
        bridge.condition("a dog (red:1.2)", "two", model=pipe),
    ]
    assert len(seen) == 4
    for step, (states, pooled) in enumerate(seen):
        torch.testing.assert_close(states, both(parts[step // 3], "prompt_embeds"))
        if pooled is not None:
            torch.testing.assert_close(pooled, both(parts[step // 3], "pooled_prompt_embeds"))


def test_each_prompt_of_a_batch_keeps_its_own_negative(pipe: Any) -> None:
    plan = bridge.schedule(["a [cat:dog:1]", "red"], ["[ugly:two:1]", "apple"], steps=3, model=pipe)
    for step, animal, negative in ((2, "cat", "ugly"), (3, "dog", "two")):
        wanted = bridge.condition([f"a {animal}", "red"], [negative, "apple"], model=pipe)
        torch.testing.assert_close(
            both(plan.at(step), "prompt_embeds"), both(wanted, "prompt_embeds")
        )


def steps_seen(pipe: Any, plan: Any, **call: Any) -> list[int]:
    """At which interval of the plan each call of the UNet was, counted from 0."""
    seen = seen_by_the_unet(pipe, **plan.kwargs(), num_inference_steps=plan.steps, **call)
    wanted = [both(cond, "prompt_embeds") for cond in plan.conditionings]
    return [[torch.equal(states, each) for each in wanted].index(True) for states, _ in seen]


@pytest.mark.parametrize(
    ("scheduler", "options", "wanted"),
    [
        (HeunDiscreteScheduler, {}, [0, 0, 0, 0, 0, 1, 1]),
        (KDPM2DiscreteScheduler, {}, [0, 0, 0, 0, 0, 1, 1]),
        (PNDMScheduler, {"skip_prk_steps": True}, [0, 0, 0, 1, 1]),
    ],
)
def test_a_step_may_take_several_calls(
    scheduler: Any, options: dict[str, Any], wanted: list[int]
) -> None:
    pipe = tiny_sd_pipeline("sd15")
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **options)
    plan = bridge.schedule("a [cat:dog:0.5]", steps=4, model=pipe)
    assert steps_seen(pipe, plan, guidance_scale=3.0) == wanted
    # Parts of an AND change by the same count, inside bridge.inject, in one run and the next.
    apart = bridge.schedule("a [cat:dog:0.5] AND a hat", steps=4, model=pipe)
    halves = [stage.parts.prompt_embeds[0] for stage in apart.conditionings]
    for _ in range(2):
        with bridge.inject(pipe, apart) as kwargs:
            seen = seen_by_the_unet(pipe, **kwargs, num_inference_steps=4, guidance_scale=3.0)
        found = [
            [torch.equal(states[1], half) for half in halves].index(True) for states, _ in seen
        ]
        assert found == wanted


def test_the_pipeline_may_repeat_the_prompts(pipe: Any) -> None:
    plan = bridge.schedule(["[cat|dog]", "red"], "", steps=3, model=pipe)
    dogs = bridge.condition(["dog", "red"], "", model=pipe).repeat(2)
    for scale, wanted in ((1.0, dogs.prompt_embeds), (3.0, both(dogs, "prompt_embeds"))):
        seen = seen_by_the_unet(
            pipe, **plan.kwargs(), num_inference_steps=3, num_images_per_prompt=2,
            guidance_scale=scale,
        )  # fmt: skip
        torch.testing.assert_close(seen[-1][0], wanted)


def test_a_pipeline_with_rows_of_its_own_is_refused() -> None:
    sd = tiny_sd_pipeline("sd15")
    pag = diffusers.StableDiffusionPAGPipeline(**sd.components, pag_applied_layers="mid")
    pag.set_progress_bar_config(disable=True)
    plan = bridge.schedule("[cat|dog]", steps=3, model=pag)
    with pytest.raises(OptionError, match="3 rows for 1 pictures of 1 prompts, with guidance"):
        pag(**plan.kwargs(), num_inference_steps=3, guidance_scale=3.0, output_type="latent")


def test_a_pipeline_that_lets_nothing_be_changed_is_refused() -> None:
    sd3 = tiny_t5_pipeline("sd3")
    other = diffusers.StableDiffusion3Img2ImgPipeline(**sd3.components)
    assert bridge.schedule("[cat|dog]", steps=3, model=sd3).last_steps == (2, 3)
    assert bridge.schedule("a cat", steps=2, model=other).last_steps == (2,)
    with pytest.raises(OptionError, match="lets no callback change"):
        bridge.schedule("[cat|dog]", steps=3, model=other)


def test_alternation_takes_turns_without_guidance_and_with_several_pictures(pipe: Any) -> None:
    plan = bridge.schedule(["[cat|dog]", "red"], "", steps=4, model=pipe)
    seen = seen_by_the_unet(
        pipe, **plan.kwargs(num_images=2), num_inference_steps=4, guidance_scale=1.0
    )
    for (states, _), word in zip(seen, ("cat", "cat", "dog", "cat"), strict=True):
        wanted = bridge.condition([word, "red"], "", model=pipe).prompt_embeds
        torch.testing.assert_close(states, wanted.repeat_interleave(2, 0))


def test_a_prompt_that_never_changes_is_condition(pipe: Any) -> None:
    plan = bridge.schedule("a (cat:1.3)", "a dog", steps=5, model=pipe)
    cond = bridge.condition("a (cat:1.3)", "a dog", model=pipe)
    assert plan.last_steps == (5,) and "callback_on_step_end" not in plan.kwargs()
    for name, tensor in cond.kwargs().items():
        assert torch.equal(plan.kwargs()[name], tensor), name


def test_a_weight_at_one_step_does_not_move_another(pipe: Any) -> None:
    """The webui restores the mean over all that a prompt says."""
    plan = bridge.schedule("two [(red:1.5):dog:0.5]", steps=4, model=pipe)
    for step, text in ((1, "two (red:1.5)"), (4, "two dog")):
        alone = bridge.condition(text, model=pipe)
        assert torch.allclose(plan.at(step).prompt_embeds, alone.prompt_embeds, atol=1e-5)


def test_all_intervals_take_one_pass_a_tower(pipe: Any) -> None:
    calls: list[int] = []
    handle = pipe.text_encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    bridge.schedule(["[cat|dog|red]", "[a:the:3]"], "[x:y:2]", steps=8, model=pipe)
    handle.remove()
    assert calls == [1]


def test_another_callback_runs_after_and_sees_the_change(pipe: Any) -> None:
    plan = bridge.schedule("[cat:dog:1]", "", steps=3, model=pipe)
    heard: list[bool] = []

    def then(_pipe: Any, index: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        dog = both(plan.at(3), "prompt_embeds")
        heard.append(torch.equal(tensors["prompt_embeds"], dog))
        return {}

    seen_by_the_unet(pipe, **plan.kwargs(then=then), num_inference_steps=3, guidance_scale=3.0)
    assert heard == [False, True, True]


def test_intervals_of_unequal_length_have_one_length(pipe: Any) -> None:
    plan = bridge.schedule("a [cat:" + "dog " * 90 + ":1]", "", steps=3, model=pipe)
    lengths = {cond.prompt_embeds.shape[1] for cond in plan.conditionings}
    assert lengths == {154}


def test_t5_is_given_as_many_tokens_as_are_asked_for() -> None:
    made: dict[str, Any] = {"model": tiny_t5_pipeline("pixart-alpha"), "max_sequence_length": 5}
    with pytest.warns(TruncationWarning):
        plan = bridge.schedule("two red apples and a cat", steps=2, **made)
    with pytest.warns(TruncationWarning):
        want = bridge.condition("two red apples and a cat", **made)
    found = plan.at(2).prompt_embeds
    assert found.shape[1] == 5 and torch.equal(found, want.prompt_embeds)
    with pytest.raises(OptionError, match="max_sequence_length"):
        bridge.schedule("a cat", steps=2, model=made["model"], max_sequence_length=0)


def test_generate_reads_schedules(pipe: Any) -> None:
    def draw(prompt: str) -> bytes:
        return bridge.generate(prompt, model=pipe, seed=1, steps=4).images[0].tobytes()

    changed = draw("a [cat:dog:1]")
    assert changed != draw("a cat") and changed != draw("a dog")
    assert draw("a [cat:dog:3]") == draw("a cat")  # the change lies past the last step


def test_bad_input(pipe: Any) -> None:
    with pytest.raises(OptionError, match="steps must be"):
        bridge.schedule("a cat", steps=0, model=pipe)
    with pytest.raises(OptionError, match="No rule"):
        bridge.schedule("a cat", steps=2, model=pipe, rule="older")  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="several parts"):
        bridge.schedule('("a cat", "a dog").and()', steps=2, model=pipe, dialect="compel")
    with pytest.raises(PromptError, match=r"bridge\.schedule"):
        bridge.condition("a [cat:dog:1]", model=pipe)
    plan = bridge.schedule("a cat", steps=2, model=pipe)
    with pytest.raises(OptionError, match="outside the run"):
        plan.at(3)


def test_a_solver_of_two_calls_a_step_counts_its_calls() -> None:
    pipe = tiny_sd_pipeline("sd15")
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    plan = bridge.schedule("a [cat:dog:3]", steps=4, model=pipe)
    assert (plan.calls, plan.last_steps) == (8, (4, 8))
    assert steps_seen(pipe, plan, guidance_scale=3.0) == [0, 0, 0, 0, 1, 1, 1]
    # Compiled for a solver of one call and run by this one, a step keeps one prompt.
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    plan = bridge.schedule("a [cat:dog:2]", steps=4, model=pipe)
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    assert steps_seen(pipe, plan, guidance_scale=3.0) == [0, 0, 0, 0, 0, 0, 1]
