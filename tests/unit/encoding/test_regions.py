"""Regional prompts: cross-attention by hand, place by place, and what the pictures do.

The loop below runs the attention module once for each prompt alone and mixes its outputs cell by
cell; the pipeline runs all at once, so the two differ by float32's rounding: 1e-5 of the largest
entry for one attention, 1e-4 for a whole run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from diffusers.models.attention_processor import AttnProcessor
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.comparisons import relative
from support.tiny_models import LATENT_SIZE, tiny_sd_pipeline, tiny_sdxl_pipeline

import bridge
from bridge import Region
from bridge.diffusion.attention import cross_attentions, grid
from bridge.encoding.regions import _overlap
from bridge.errors import OptionError, PromptError, UnsupportedModelError

TOLERANCE = 1e-5
LEFT, RIGHT = (0, 0, 0.5, 1), (0.5, 0, 1, 1)
WHOLE = (0, 0, 1, 1)


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def pipe(request: pytest.FixtureRequest) -> Any:
    made = tiny_sdxl_pipeline() if request.param == "sdxl" else tiny_sd_pipeline()
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def sd() -> Any:
    made = tiny_sd_pipeline()
    made.set_progress_bar_config(disable=True)
    return made


def draw(pipe: Any, plan: Any, num_images: int = 1, **call: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, LATENT_SIZE, LATENT_SIZE, generator=generator)
    options = {"num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "latent", **call}
    with bridge.inject(pipe, plan, num_images=num_images) as kwargs:
        images = pipe(**kwargs, latents=latents.repeat(num_images, 1, 1, 1), **options).images
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pipe.unet.modules())
    return images


# ---------------------------------------------------------------- the rule


@pytest.mark.parametrize("processor", ["sdpa", "plain"])
@pytest.mark.parametrize("guidance", [4.0, 1.0])
@torch.no_grad()
def test_attention_equals_a_naive_loop(pipe: Any, processor: str, guidance: float) -> None:
    texts = ["two", "a cat", "a red dog"]
    boxes = [(0.1, 0, 0.6, 0.8), (0.4, 0.3, 1, 1)]
    beta = 0.2
    plan = bridge.regional(
        texts[0],
        [Region(text, box=box) for text, box in zip(texts[1:], boxes, strict=True)],
        "apple",
        base_weight=beta,
        model=pipe,
    )
    if processor == "plain":
        pipe.unet.set_attn_processor(AttnProcessor())
    seen: list[tuple[Any, ...]] = []
    with bridge.inject(pipe, plan) as kwargs:
        # Hooks registered now see what comes into the module, and what goes out, when ours are
        # done; the originals are the states before ours widen them: the first row of each group.
        handles = [
            module.register_forward_hook(lambda m, args, out: seen.append((m, args[0], out)))
            for module in cross_attentions(pipe.unet)
        ]
        try:
            pipe(
                **kwargs, num_inference_steps=1, guidance_scale=guidance, output_type="latent",
                generator=torch.Generator().manual_seed(0),
            )  # fmt: skip
        finally:
            for handle in handles:
                handle.remove()
            pipe.unet.set_default_attn_processor()
    assert len(seen) > 2
    conds = [bridge.condition(text, "apple", model=pipe) for text in texts]
    negatives = 1 if guidance > 1 else 0
    for module, wide, out in seen:
        assert len(wide) == negatives + 3 and len(out) == negatives + 1
        x = wide[negatives : negatives + 1]
        outs = [module(x, encoder_hidden_states=c.prompt_embeds)[0] for c in conds]
        side = int(x.shape[1] ** 0.5)
        for place in range(x.shape[1]):
            row, column = divmod(place, side)
            covers = [cell(box, row, column, side) for box in boxes]
            shares = [(1 - beta) * c / max(1.0, sum(covers)) for c in covers]
            wanted = (1 - sum(shares)) * outs[0][place]
            for share, own in zip(shares, outs[1:], strict=True):
                wanted = wanted + share * own[place]
            assert relative(out[-1, place], wanted) <= 5 * TOLERANCE
        if negatives:
            wanted = module(wide[:1], encoder_hidden_states=conds[0].negative_prompt_embeds)[0]
            assert relative(out[0], wanted) <= TOLERANCE


def cell(box: Any, row: int, column: int, side: int) -> float:
    """How much of a cell a box covers."""
    left, top, right, bottom = (side * edge for edge in box)
    wide = max(0.0, min(right, column + 1) - max(left, column))
    high = max(0.0, min(bottom, row + 1) - max(top, row))
    return wide * high


@given(low=st.floats(0, 1), high=st.floats(0, 1), cells=st.integers(1, 97))
@settings(max_examples=60, deadline=None)
def test_covers_add_up_to_the_length(low: float, high: float, cells: int) -> None:
    low, high = sorted((low, high))
    found = _overlap(low, high, cells)
    assert found.min() >= 0 and found.max() <= 1
    assert found.sum().item() / cells == pytest.approx(high - low, abs=1e-12)


@given(height=st.integers(1, 200), width=st.integers(1, 200), level=st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_a_levels_size_follows_from_its_places(height: int, width: int, level: int) -> None:
    h, w = height, width
    for _ in range(level):
        h, w = -(-h // 2), -(-w // 2)
    assert grid(h * w, height, width) == (h, w)


def test_shares_add_up_to_one_everywhere(sd: Any) -> None:
    mask = torch.zeros(50, 70)
    mask[10:30, 5:60] = 0.7
    plan = bridge.regional(
        "two",
        [Region("a cat", mask=mask), Region("a dog", box=(0.2, 0.1, 0.9, 0.6)),
         Region("red", pixels=(3, 5, 20, 64))],
        base_weight=0.3, model=sd,
    )  # fmt: skip
    for size in ((8, 8), (5, 7), (1, 1), (64, 96)):
        shares = plan.shares(*size)
        assert shares.shape == (4, *size) and shares.min() >= 0
        torch.testing.assert_close(shares.sum(0), torch.ones(size, dtype=torch.float64))
    assert plan.regions[2].box == (3 / 64, 5 / 64, 20 / 64, 1)


# ---------------------------------------------------------------- exactly the plain prompt


@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_one_region_over_everything_is_the_plain_prompt(pipe: Any, guidance: float) -> None:
    plan = bridge.regional("red", [Region("a (cat:1.2)", box=WHOLE)], "dog", model=pipe)
    assert len(plan) == 1
    found = draw(pipe, plan, guidance_scale=guidance)
    plain = bridge.condition("a (cat:1.2)", "dog", model=pipe)
    assert torch.equal(found, draw(pipe, plain, guidance_scale=guidance))


def test_equal_prompts_everywhere_are_the_plain_prompt(pipe: Any) -> None:
    regions = [Region("a cat", box=LEFT), Region("a cat", box=(0.3, 0.2, 0.8, 0.9))]
    plan = bridge.regional("a cat", regions, base_weight=0.4, model=pipe)
    plain = bridge.condition("a cat", model=pipe)
    assert relative(draw(pipe, plan), draw(pipe, plain)) <= 1e-4


def test_the_base_takes_all_with_its_full_weight(pipe: Any) -> None:
    plan = bridge.regional("a cat", [Region("red dog", box=LEFT)], base_weight=1.0, model=pipe)
    plain = bridge.condition("a cat", model=pipe)
    assert relative(draw(pipe, plan), draw(pipe, plain)) <= 1e-4


def test_a_mask_and_pixels_say_the_same_as_a_box(sd: Any) -> None:
    picture = np.zeros((64, 64), dtype=np.uint8)
    picture[:, :32] = 255
    places = [
        {"box": LEFT},
        {"pixels": (0, 0, 32, 64)},
        {"mask": picture},
        {"mask": Image.fromarray(picture)},
        {"mask": torch.from_numpy(picture > 0)},
    ]
    found = [
        draw(sd, bridge.regional("two", [Region("a cat", **place)], model=sd)) for place in places
    ]
    assert all(torch.equal(each, found[0]) for each in found[1:])


def test_pooled_states_are_mixed_by_area() -> None:
    sdxl = tiny_sdxl_pipeline()
    regions = [Region("a cat", box=(0, 0, 0.25, 1)), Region("a dog", box=RIGHT)]
    plan = bridge.regional("red", regions, model=sdxl)
    red, cat, dog = (
        bridge.condition(text, model=sdxl).pooled_prompt_embeds
        for text in ("red", "a cat", "a dog")
    )
    wanted = 0.25 * red + 0.25 * cat + 0.5 * dog
    assert plan.joined.pooled_prompt_embeds is not None
    assert relative(plan.joined.pooled_prompt_embeds, wanted) <= TOLERANCE
    assert "text_encoder_2, prompt 3" in plan.report().text()


def test_several_pictures_and_long_prompts(pipe: Any) -> None:
    plan = bridge.regional("cat " * 90, [Region("a dog", box=LEFT)], "red", model=pipe)
    assert plan.joined.prompt_embeds.shape[1] == 2 * 154
    two = draw(pipe, plan, num_images=2)
    assert relative(two, draw(pipe, plan).repeat(2, 1, 1, 1)) <= 1e-4


def test_base_and_regions_skip_layers(pipe: Any) -> None:
    plan = bridge.regional("red", [Region("a cat", box=LEFT)], model=pipe, clip_skip=1)
    texts = bridge.condition(["red", "a cat"], model=pipe, clip_skip=1).prompt_embeds
    torch.testing.assert_close(plan.joined.prompt_embeds, torch.cat([*texts])[None])


def test_weights_that_act_in_the_unet_stay_with_their_region(sd: Any) -> None:
    options = {"model": sd, "emphasis": "unet_attention_bias"}
    plan = bridge.regional("red", [Region("a (cat:3)", box=LEFT), Region("a (cat:3)", box=RIGHT)],
                           **options)  # fmt: skip
    plain = bridge.condition("a (cat:3)", **options)
    assert relative(draw(sd, plan), draw(sd, plain)) <= 1e-4


def test_img2img(sd: Any) -> None:
    pipe = StableDiffusionImg2ImgPipeline(**sd.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    picture = Image.fromarray(np.arange(64 * 96 * 3, dtype=np.uint8).reshape(64, 96, 3))

    def change(plan: Any) -> torch.Tensor:
        with bridge.inject(pipe, plan) as kwargs:
            return pipe(
                **kwargs, image=picture, strength=0.6, num_inference_steps=4,
                generator=torch.Generator().manual_seed(1), output_type="latent",
            ).images  # fmt: skip

    whole = bridge.regional(
        "red", [Region("a cat", box=LEFT), Region("a cat", box=RIGHT)], "", model=pipe
    )
    assert relative(change(whole), change(bridge.condition("a cat", "", model=pipe))) <= 1e-4


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ({}, "has no place"),
        ({"box": LEFT, "pixels": (0, 0, 1, 1)}, "box and pixels"),
        ({"box": (0, 0, 1.2, 1)}, "outside the picture"),
        ({"box": (-0.1, 0, 1, 1)}, "outside the picture"),
        ({"box": (0.6, 0, 0.5, 1)}, "outside the picture"),
        ({"box": (0, 0, float("nan"), 1)}, "outside the picture"),
        ({"box": (0, 0, 0, 1)}, "is empty"),
        ({"box": (0, 0, 1)}, "for a box"),
        ({"box": "left"}, "for a box"),
        ({"mask": torch.zeros(4, 4)}, "covers nothing"),
        ({"mask": torch.ones(1, 4, 4)}, r"\(1, 4, 4\)"),
        ({"mask": torch.full((4, 4), 2.0)}, "from 0 to 1"),
        ({"mask": torch.full((4, 4), float("nan"))}, "from 0 to 1"),
        ({"mask": "mask.png"}, "The mask of the region 'a cat'"),
    ],
)
def test_places_that_are_none(place: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        Region("a cat", **place)


def test_bad_input(sd: Any) -> None:
    left = [Region("a cat", box=LEFT)]
    with pytest.raises(OptionError, match="64x64 pixels"):
        bridge.regional("red", [Region("a cat", pixels=(0, 0, 65, 64))], model=sd)
    bridge.regional("red", [Region("a cat", pixels=(0, 0, 65, 64))], width=72, model=sd)
    with pytest.raises(OptionError, match="at least one"):
        bridge.regional("red", [], model="/no/such/folder")
    with pytest.raises(OptionError, match="base_weight"):
        bridge.regional("red", left, base_weight=2, model="/no/such/folder")
    with pytest.raises(PromptError, match="one picture"):
        bridge.regional(["red", "two"], left, model=sd)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match=r"bridge\.compose"):
        bridge.regional("red", [Region("a cat AND a dog", box=LEFT)], model=sd)
    with pytest.raises(UnsupportedModelError, match="No level"):
        grid(7, 8, 8)
