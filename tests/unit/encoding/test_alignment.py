"""Prompts and negatives of unequal length: repeated, so that each acts as if it ran alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.comparisons import relative
from support.tiny_models import tiny_sd_pipeline, tiny_sdxl_pipeline
from support.tiny_t5 import tiny_t5_pipeline

import bridge
from bridge.errors import OptionError

TOLERANCE = 1e-5
LATENTS = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def windows(count: int) -> str:
    """A prompt that fills ``count`` windows."""
    return " BREAK ".join(["a cat", "two dogs", "red", "apple", "the", "left", "blue"][:count])


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def pipe(request: pytest.FixtureRequest) -> Any:
    made = tiny_sdxl_pipeline() if request.param == "sdxl" else tiny_sd_pipeline("sd15")
    made.set_progress_bar_config(disable=True)
    return made


def predicted(pipe: Any, states: torch.Tensor, cond: Any) -> torch.Tensor:
    """The UNet's prediction of one row of token states, run alone."""
    more = None
    if cond.pooled_prompt_embeds is not None:
        pooled = torch.zeros_like(cond.pooled_prompt_embeds[:1])
        more = {"text_embeds": pooled, "time_ids": cond.add_time_ids[:1]}
    with torch.no_grad():
        return pipe.unet(LATENTS, 10, states, added_cond_kwargs=more).sample


@pytest.mark.parametrize("dialect", ["a1111", "comfy"])
def test_a_short_negative_acts_as_if_it_ran_alone(pipe: Any, dialect: str) -> None:
    long = "two red apples left of a cat, " * 20
    alone = bridge.condition("ugly", "", model=pipe, dialect=dialect)
    wanted = predicted(pipe, alone.prompt_embeds, alone)

    def drawn(**options: Any) -> torch.Tensor:
        cond = bridge.condition(long, "ugly", model=pipe, dialect=dialect, **options)
        assert cond.negative_prompt_embeds.shape == cond.prompt_embeds.shape
        return predicted(pipe, cond.negative_prompt_embeds, cond)

    assert relative(drawn(), wanted) <= TOLERANCE
    assert relative(drawn(align="repeat"), wanted) <= TOLERANCE
    assert relative(drawn(align="empty"), wanted) > 100 * TOLERANCE


def test_lengths_meet_at_their_common_multiple(pipe: Any) -> None:
    cond = bridge.condition(windows(3), windows(2), model=pipe)
    alone = bridge.condition(windows(2), windows(3), model=pipe)
    assert cond.prompt_embeds.shape[1] == 6 * 77
    assert relative(cond.negative_prompt_embeds[:, :154], alone.prompt_embeds[:, :154]) < TOLERANCE
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        states = getattr(cond, name)
        own = 231 if name == "prompt_embeds" else 154
        assert torch.equal(states, states[:, :own].repeat(1, 462 // own, 1))


def test_beyond_four_times_the_longest_they_are_hidden_inside_the_unet(pipe: Any) -> None:
    cond = bridge.condition(windows(6), windows(5), model=pipe)
    assert cond.prompt_embeds.shape[1] == 6 * 77
    with pytest.raises(OptionError, match=r"unequal length.*align='empty'.*bridge\.inject"):
        cond.kwargs()
    steps: list[torch.Tensor] = []
    with bridge.inject(pipe, cond) as kwargs:
        handle = pipe.unet.register_forward_hook(lambda _m, _a, out: steps.append(out[0]))
        pipe(
            **kwargs, num_inference_steps=1, guidance_scale=3.0, latents=LATENTS,
            output_type="latent", height=64, width=64,
        )  # fmt: skip
        handle.remove()
    apart = bridge.condition(
        [windows(6), windows(6)], [windows(5), windows(6)], model=pipe, align="empty"
    )
    shorter = cond.negative_prompt_embeds[:, : 5 * 77]
    assert relative(shorter, apart.negative_prompt_embeds[:1, : 5 * 77]) <= TOLERANCE
    with_empty = bridge.condition(windows(6), windows(5), model=pipe, align="empty")
    calls: list[torch.Tensor] = []
    handle = pipe.unet.register_forward_hook(lambda _m, _a, out: calls.append(out[0]))
    for states in (shorter, cond.prompt_embeds):
        alone = with_empty.take([0])
        pipe(
            **_given(pipe, alone, states), num_inference_steps=1, guidance_scale=1.0,
            latents=LATENTS, output_type="latent", height=64, width=64,
        )  # fmt: skip
    handle.remove()
    # SDXL's rows have pooled states of their own, so that of the prompt alone is the same.
    assert relative(steps[0][1:], calls[1]) <= TOLERANCE
    if cond.pooled_prompt_embeds is None:
        assert relative(steps[0][:1], calls[0]) <= TOLERANCE


def _given(pipe: Any, cond: Any, states: torch.Tensor) -> dict[str, Any]:
    given: dict[str, Any] = {"prompt_embeds": states}
    if cond.pooled_prompt_embeds is not None:
        given["pooled_prompt_embeds"] = cond.pooled_prompt_embeds
    return given


def test_parts_of_an_and_repeat_their_last_state(pipe: Any) -> None:
    found = bridge.compose(f"{windows(2)} AND red", "", model=pipe).parts
    red = bridge.condition("red", "", model=pipe).prompt_embeds[0]
    assert found.prompt_embeds.shape[1] == 154
    wanted = torch.cat([red, red[-1:].expand(77, -1)])
    assert relative(found.prompt_embeds[1], wanted) <= TOLERANCE


def test_what_a_prompt_says_at_other_steps_is_filled_up_with_empty_windows(pipe: Any) -> None:
    plan = bridge.schedule(f"[{windows(2)}:red:1]", "", steps=3, model=pipe)
    red = plan.at(3).prompt_embeds[0]
    wanted = [bridge.condition(text, "", model=pipe).prompt_embeds[0] for text in ("red", "")]
    assert relative(red, torch.cat(wanted)) <= TOLERANCE
    negative = plan.at(3).negative_prompt_embeds[0]
    assert torch.equal(negative[:77], negative[77:])


def test_joint_attention_keeps_empty_windows() -> None:
    sd3 = tiny_t5_pipeline("sd3")
    with pytest.raises(OptionError, match=r"align='repeat'.*sd3.*align='empty'"):
        bridge.condition("a cat", "", model=sd3, align="repeat")
    own, empty = (
        bridge.condition(windows(2), "red", model=sd3, align=align, max_sequence_length=8)
        for align in (None, "empty")
    )
    assert torch.equal(own.negative_prompt_embeds, empty.negative_prompt_embeds)


def test_an_unknown_align_is_refused() -> None:
    with pytest.raises(OptionError, match=r"No align 'repeated'.*repeat, empty"):
        bridge.condition("a cat", align="repeated")
