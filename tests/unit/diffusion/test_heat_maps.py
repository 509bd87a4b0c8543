"""Heat maps against a naive DAAM: probabilities taken from diffusers' own processor, each head of
each layer and step enlarged by itself, and added up.

Both run in float32. The naive sum enlarges each map before it adds, so the two differ by rounding:
1e-5 of the largest entry.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from support.comparisons import relative
from support.tiny_models import tiny_sd_pipeline, tiny_sdxl_pipeline
from torch.nn.functional import interpolate

import bridge
from bridge.diffusion import heat_maps
from bridge.diffusion.attention import cross_attentions
from bridge.diffusion.heat import keys_of
from bridge.errors import OptionError, UnsupportedModelError
from bridge.prompt import parse, plan

TOLERANCE = 1e-5
SIZE = (6, 10)  # of the latents
LONG = "a red cat, " * 40 + "two apples"


class Peer(AttnProcessor):
    """diffusers' plain processor, whose probabilities are noted as it works them out."""

    def __init__(self, maps: list[torch.Tensor]) -> None:
        self.maps = maps

    def __call__(self, attn: Any, *args: Any, **kwargs: Any) -> Any:
        scores = attn.get_attention_scores

        def noted(*given: Any) -> torch.Tensor:
            found = scores(*given)
            self.maps.append(found.unflatten(0, (-1, attn.heads)))
            return found

        attn.get_attention_scores = noted
        try:
            return super().__call__(attn, *args, **kwargs)
        finally:
            del attn.get_attention_scores


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def pipe(request: pytest.FixtureRequest) -> Any:
    made = tiny_sdxl_pipeline() if request.param == "sdxl" else tiny_sd_pipeline()
    made.set_progress_bar_config(disable=True)
    return made


def draw(pipe: Any, cond: Any, guidance: float = 4.0, images: int = 1) -> torch.Tensor:
    return pipe(
        **cond.kwargs(images), num_inference_steps=2, guidance_scale=guidance,
        height=8 * SIZE[0], width=8 * SIZE[1], output_type="latent",
        generator=[torch.Generator().manual_seed(i) for i in range(images * len(cond))],
    ).images  # fmt: skip


def naive(pipe: Any, cond: Any, guidance: float, images: int) -> torch.Tensor:
    """(rows, T, h, w)"""
    maps: list[torch.Tensor] = []
    usual = dict(pipe.unet.attn_processors)
    for name, module in pipe.unet.named_modules():
        if name.endswith("attn2") and not name.startswith("mid_block"):
            module.set_processor(Peer(maps))
    try:
        draw(pipe, cond, guidance, images)
    finally:
        pipe.unet.set_attn_processor(usual)
    whole, count = 0, 0
    for each in maps:
        rows, heads, places, keys = each.shape
        # A tiny UNet has two levels, of all places and of a quarter of them.
        level = SIZE if places == SIZE[0] * SIZE[1] else (SIZE[0] // 2, SIZE[1] // 2)
        for head in range(heads):
            own = each[:, head].transpose(1, 2).reshape(rows, keys, *level)
            whole = whole + interpolate(own, SIZE, mode="bicubic")
            count += 1
    return (whole / count).clamp_min(0)


@pytest.mark.parametrize("guidance", [4.0, 1.0])
@torch.no_grad()
def test_maps_are_daams_for_batches_long_prompts_and_negatives(pipe: Any, guidance: float) -> None:
    cond = bridge.condition([LONG, "a dog"], ["apple", "a (blue:1.2) cat"], model=pipe)
    images = 2
    wanted = naive(pipe, cond, guidance, images)
    plain = draw(pipe, cond, guidance, images)
    with heat_maps(pipe, cond) as heat:
        watched = draw(pipe, cond, guidance, images)
    assert torch.equal(plain, watched)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pipe.unet.modules())
    assert wanted.shape[1] == cond.prompt_embeds.shape[1] > 77
    pictures = 4
    for prompt in range(2):
        for image in range(images):
            row = prompt * images + image
            found = heat.keys(prompt=prompt, image=image)
            first = pictures if guidance > 1 else 0
            assert relative(found, wanted[first + row]) <= TOLERANCE
            if guidance > 1:
                negative = heat.keys(prompt=prompt, image=image, negative=True)
                assert relative(negative, wanted[row]) <= TOLERANCE
    # A word is the mean of its keys: "dog" is the second token of its prompt, after BOS.
    dog = heat.of("DOG", prompt=1, image=1)
    assert torch.equal(dog, heat.keys(prompt=1, image=1)[[2]].mean(0))
    # "apples" stands in the third window.
    at = LONG.index("apples")
    (key,) = keys_of(cond.plans[0][0], len(found), (at, at + 6))
    assert key > 77
    assert torch.equal(heat.of("apples"), heat.keys()[key])
    if guidance > 1:
        blue = heat.of("blue", prompt=1, negative=True)
        assert blue.shape == SIZE and not torch.equal(blue, heat.of("a", prompt=1, negative=True))


@torch.no_grad()
def test_each_tower_has_its_own_keys() -> None:
    made = tiny_sdxl_pipeline()
    # Only the first tower's tokenizer knows "mouse" as one token.
    from support.tiny_models import tiny_clip_tokenizer

    made.tokenizer_2 = tiny_clip_tokenizer("!", words=("cat", "dog", "mo", "use"))
    made.set_progress_bar_config(disable=True)
    cond = bridge.condition("photo cat", model=made)
    first, second = (keys_of(p, 77, (0, 5)) for p in cond.plans[0])
    assert first == [1] and len(second) > 1
    with heat_maps(made, cond) as heat:
        draw(made, cond)
    keys = heat.keys()
    assert torch.equal(heat.of("photo", tower="text_encoder"), keys[first].mean(0))
    assert torch.equal(heat.of("photo", tower="text_encoder_2"), keys[second].mean(0))
    assert torch.equal(heat.of("photo"), keys[sorted({*first, *second})].mean(0))
    with pytest.raises(OptionError, match="No tower 'third'"):
        heat.of("photo", tower="third")


@torch.no_grad()
def test_bias_in_the_unet_is_part_of_the_map() -> None:
    made = tiny_sd_pipeline()
    made.set_progress_bar_config(disable=True)
    found = []
    for weight in (1.0, 3.0):
        cond = bridge.condition(
            f"a (cat:{weight}) and (dog:1.1)", model=made, emphasis="unet_attention_bias"
        )
        with bridge.inject(made, cond) as kwargs, heat_maps(made, cond) as heat:
            made(**kwargs, num_inference_steps=1, output_type="latent",
                 generator=torch.Generator().manual_seed(0))  # fmt: skip
        found.append(heat.of("cat").mean())
    assert found[1] > 1.5 * found[0]


@torch.no_grad()
def test_only_the_last_call_counts_and_errors_name_the_cause(pipe: Any) -> None:
    cond = bridge.condition("a cat", model=pipe)
    with heat_maps(pipe, cond) as heat:
        with pytest.raises(OptionError, match="Nothing was drawn"):
            heat.of("cat")
        draw(pipe, bridge.condition("two dogs left of an apple", model=pipe), 4.0, 2)
        draw(pipe, cond)
        again = heat.of("cat")
    with heat_maps(pipe, cond) as heat:
        draw(pipe, cond)
    assert torch.equal(again, heat.of("cat"))
    for word in ("elephant", "", "ca"):
        with pytest.raises(OptionError, match="no key in the prompt"):
            heat.of(word)
    with pytest.raises(OptionError, match="no picture 1"):
        heat.keys(image=1)
    with (
        pytest.raises(OptionError, match="not a str"),
        heat_maps(pipe, "a"),
    ):  # type: ignore[arg-type]
        pass
    with pytest.raises(UnsupportedModelError, match="heat maps act inside"), heat_maps(None, cond):
        pass
    # An exception inside leaves no hook behind.
    with pytest.raises(ZeroDivisionError), heat_maps(pipe, cond):
        raise ZeroDivisionError
    assert not any(m._forward_pre_hooks for m in cross_attentions(pipe.unet))


def test_keys_follow_the_way_windows_are_joined() -> None:
    from support.tiny_models import tiny_clip_tokenizer

    long = plan(parse(LONG, "a1111"), tiny_clip_tokenizer(), split="hard")
    count = len(long.windows)
    assert count > 2
    at = LONG.index("apples")
    window, place = next(
        (w, p)
        for w, each in enumerate(long.windows)
        for p, token in enumerate(each.tokens)
        if token.start == at
    )
    span = (at, at + 6)
    assert keys_of(long, 77 * count, span) == [77 * window + place]
    assert keys_of(long, 75 * count + 2, span) == [75 * window + place]
    assert keys_of(long, 77, span) == [place]  # the average of all windows
    # A batch with a longer prompt has more windows than this one.
    assert keys_of(long, 75 * (count + 1) + 2, span) == [75 * window + place]
    # Cut off before that window, there is no key.
    assert keys_of(long, 77 * window, span) == []
    assert keys_of(long, 77 * window + place, span) == []


@torch.no_grad()
def test_a_word_is_looked_up_in_each_towers_own_text() -> None:
    made = tiny_sdxl_pipeline()
    made.set_progress_bar_config(disable=True)
    cond = bridge.condition("red cat of two", model=made, prompt_2="two dog")
    with heat_maps(made, cond) as heat:
        draw(made, cond)
    keys = heat.keys()
    assert torch.equal(heat.of("dog"), keys[2])  # of the second tower alone
    assert torch.equal(heat.of("cat"), keys[2])  # and of the first
    assert torch.equal(heat.of("two"), keys[[1, 4]].mean(0))
    assert torch.equal(heat.of((0, 3)), keys[1])  # "red"; not also "two" of the other text
    assert torch.equal(heat.of((4, 7), tower="text_encoder_2"), keys[2])
    with pytest.raises(OptionError, match="'red cat of two' or 'two dog'"):
        heat.of("apple")


@torch.no_grad()
def test_the_last_of_several_calls_of_one_step_counts(pipe: Any) -> None:
    def one_step(cond: Any) -> None:
        pipe(**cond.kwargs(), num_inference_steps=1, output_type="latent",
             generator=torch.Generator().manual_seed(0))  # fmt: skip

    cond = bridge.condition("a cat", model=pipe)
    with heat_maps(pipe, cond) as heat:
        one_step(bridge.condition("two dogs left of an apple", model=pipe))
        one_step(cond)
        again = heat.keys()
    with heat_maps(pipe, cond) as heat:
        one_step(cond)
    assert torch.equal(again, heat.keys())
