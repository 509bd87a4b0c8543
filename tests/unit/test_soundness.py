"""Numbers that nothing can be made of are one error that names what gave them, not a warning."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.foreign_towers import PROMPTS, foreign_tower
from support.tiny_models import tiny_sd_pipeline, tiny_sdxl_pipeline
from support.tiny_pairs import tiny_llm, tiny_tower
from support.tiny_vlm import tiny_llava
from torch import nn

import bridge
from bridge.encoding import blend
from bridge.encoding.algebra import subtract
from bridge.errors import NumbersError, OffManifoldWarning

TEXTS = ("(red:1.2)", "a (red:1.2) cat", "(dog:1.5) left", "two (apples:0.5)")


def mean_zero(seed: int) -> Any:
    """A pipeline whose tower is as CLIP's at the start of training: states of mean 0."""
    pipe = tiny_sd_pipeline(seed=seed)
    norm = pipe.text_encoder.get_submodule("final_layer_norm")
    with torch.no_grad():
        norm.weight.fill_(1)
        norm.bias.zero_()
    return pipe


def ruined(module: nn.Module, value: float = float("nan")) -> None:
    with torch.no_grad():
        next(p for p in module.parameters() if p.ndim > 1).fill_(value)


@contextmanager
def no_numbers(module: nn.Module) -> Iterator[None]:
    """Within the block its last norm gives NaN."""
    norm = module.get_submodule("final_layer_norm")
    hook = norm.register_forward_hook(lambda layer, args, out: out * torch.nan)
    try:
        yield
    finally:
        hook.remove()


@pytest.fixture(scope="module")
def sdxl() -> Any:
    pipe = tiny_sdxl_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


# ---------------------------------------------------------------- conditioning


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("text", TEXTS)
def test_a_mean_of_zero_is_an_error(seed: int, text: str) -> None:
    """It gave zeros or infinity, or a ratio of two roundings."""
    pipe = mean_zero(seed)
    with pytest.raises(NumbersError) as caught:
        bridge.condition(text, model=pipe)
    for part in (repr(text), "text_encoder", "'a1111'", "no_norm"):
        assert part in str(caught.value)
    for other in ("no_norm", "comfy"):
        assert bridge.condition(text, model=pipe, emphasis=other).prompt_embeds.any()
    assert bridge.condition("red", model=pipe).prompt_embeds.any()


@pytest.mark.parametrize("door", [bridge.condition, bridge.compose, bridge.generate])
def test_every_door_refuses_it(door: Callable[..., Any]) -> None:
    with pytest.raises(NumbersError, match="a1111"):
        door("a (red:1.2) cat", model=mean_zero(0))


def test_a_negative_is_named_too() -> None:
    with pytest.raises(NumbersError, match="red"):
        bridge.condition("a cat", "a (red:1.2) cat", model=mean_zero(0))


def test_a_damaged_tower_is_named(sdxl: Any) -> None:
    pipe = copy.copy(sdxl)
    pipe.text_encoder_2 = copy.deepcopy(sdxl.text_encoder_2)
    ruined(pipe.text_encoder_2)
    with pytest.raises(NumbersError, match="text_encoder_2 gives numbers that are not finite"):
        bridge.condition(["a cat", "a dog"], model=pipe)


def test_one_prompt_of_a_batch_is_named(sdxl: Any) -> None:
    """A weight beyond float16 in the second prompt alone."""
    pipe = copy.copy(sdxl)
    for name in ("text_encoder", "text_encoder_2", "vae", "unet"):
        setattr(pipe, name, copy.deepcopy(getattr(sdxl, name)).half())
    with (
        warnings.catch_warnings(),
        pytest.raises(NumbersError, match=r"\(dog:90000\).*'no_norm'"),
    ):
        warnings.simplefilter("ignore", OffManifoldWarning)
        bridge.condition(["a cat", "a (dog:90000)"], model=pipe, emphasis="no_norm")


def test_parts_that_add_up_to_nothing(sdxl: Any) -> None:
    text = '("a cat", "a cat").blend(1, -1, no_normalize)'
    with pytest.raises(NumbersError, match=r"blend.*all zero"):
        bridge.condition(text, model=sdxl, dialect="compel")


def test_zeros_that_were_meant_are_none_of_it(sdxl: Any) -> None:
    pipe = copy.copy(sdxl)
    pipe.register_to_config(force_zeros_for_empty_prompt=True)
    found = bridge.condition("a cat", model=pipe)
    assert found.negative_prompt_embeds is not None
    assert not found.negative_prompt_embeds.any()


def test_arithmetic_beyond_the_dtype(sdxl: Any) -> None:
    cat = bridge.condition("a cat", "", model=sdxl).to("cpu", torch.float16)
    dog = bridge.condition("a dog", "", model=sdxl).to("cpu", torch.float16)
    nothing = bridge.condition("", model=sdxl).to("cpu", torch.float16)
    with pytest.raises(NumbersError, match="Arithmetic"):
        blend([cat, dog], (90_000, 90_000), normalize=False)
    with pytest.raises(NumbersError, match="Arithmetic"):
        subtract(cat, dog, 1e8, base=nothing)


def test_a_tower_behind_an_adapter(sdxl: Any) -> None:
    """As when it is too large for float16: the tower known, but its numbers not."""
    foreign = foreign_tower()
    adapter = bridge.fit_adapter(foreign, model=sdxl, prompts=PROMPTS)
    with no_numbers(foreign.module):
        with pytest.raises(NumbersError, match="foreign gives numbers that are not finite"):
            bridge.condition("a cat", model=sdxl, towers=foreign, adapter=adapter)
        with pytest.raises(NumbersError, match="foreign gives numbers that are not finite"):
            bridge.fit_adapter(foreign, model=sdxl, prompts=PROMPTS)
    maps = dict(adapter.maps)
    for name, each in maps.items():
        large = {k: replace(m, weight=m.weight * 1e38) for k, m in each.linear.items()}
        maps[name] = replace(each, linear=large)
    with pytest.raises(NumbersError, match=r"The adapter from foreign.*text_encoder"):
        bridge.condition("a cat", model=sdxl, towers=foreign, adapter=replace(adapter, maps=maps))


# ---------------------------------------------------------------- pictures


def test_latents_that_are_not_finite(sdxl: Any) -> None:
    pipe = copy.copy(sdxl)
    pipe.unet = copy.deepcopy(sdxl.unet)
    ruined(pipe.unet)
    with pytest.raises(NumbersError, match=r"'a cat' \(seed 3\).*step 1 of 2"):
        bridge.generate("a cat", model=pipe, seed=3, steps=2)


def test_the_step_and_the_picture_are_named(sdxl: Any) -> None:
    """Sound until the second step, and only in the last picture."""
    pipe = copy.copy(sdxl)
    pipe.unet = copy.deepcopy(sdxl.unet)
    calls = []

    def spoil(module: nn.Module, args: Any, out: Any) -> Any:
        calls.append(1)
        if len(calls) >= 2:
            out[0][-1] = float("inf")
        return out

    pipe.unet.register_forward_hook(spoil)
    with pytest.raises(NumbersError, match=r"'a dog' \(seed 6\).*step 2 of 3"):
        bridge.generate(["a cat", "a dog"], model=pipe, seed=5, steps=3)


# ---------------------------------------------------------------- answers


@pytest.fixture
def vlm(tmp_path: Path) -> Any:
    return bridge.load_vlm(tiny_llava(tmp_path / "llava"), device="cpu")


@pytest.mark.parametrize("part", ["vision", "projector"])
def test_soft_tokens_that_are_not_finite(vlm: Any, part: str) -> None:
    ruined(getattr(vlm, part))
    with pytest.raises(NumbersError, match="soft tokens that are not finite"):
        bridge.describe(Image.new("RGB", (32, 32)), model=vlm)


def test_logits_that_are_not_finite(vlm: Any) -> None:
    ruined(vlm.llm.get_output_embeddings())
    picture = Image.new("RGB", (32, 32))
    doors: list[Callable[[], object]] = [
        lambda: vlm.answer(picture, "what is it?"),
        lambda: list(vlm.stream(picture, "what is it?")),
        lambda: vlm.choose(picture, "what is it?", ["a cat", "a dog"]),
        lambda: bridge.vlm.occlusion(vlm, picture, "what is it?", "a cat"),
    ]
    for door in doors:
        with pytest.raises(NumbersError, match="logits are not finite"):
            door()


def test_an_answer_about_no_picture_is_looked_at_too() -> None:
    from support.tiny_pairs import plain_tokenizer

    vlm = bridge.vlm.pair(tiny_tower("clip"), tiny_llm("Llama", 300), plain_tokenizer())
    ruined(vlm.llm)
    with pytest.raises(NumbersError, match="logits are not finite"):
        vlm.answer([], "what is it?")
