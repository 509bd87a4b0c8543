"""A Conditioning saved and read back: the same tensors, plans and account, and honest refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers import StableDiffusionXLImg2ImgPipeline
from safetensors.torch import load_file, save_file
from support.tiny_models import tiny_sd_pipeline, tiny_sdxl_pipeline
from support.tiny_t5 import T5_KINDS, tiny_t5_pipeline

import bridge
from bridge.encoding import Conditioning, load_conditioning, save_conditioning
from bridge.encoding.conditioning import BIASES, TENSORS
from bridge.encoding.emphasis import EMPHASES
from bridge.errors import WeightsError
from bridge.prompt import LONG_PROMPTS

NAMES = (
    "prompt_embeds",
    "pooled_prompt_embeds",
    "negative_prompt_embeds",
    "negative_pooled_prompt_embeds",
    "add_time_ids",
)
PROMPTS = ["a (cat:1.3) 🎈", "two red apples, " * 30]


@pytest.fixture(scope="module")
def sdxl() -> Any:
    return tiny_sdxl_pipeline()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_comes_back(sdxl: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    cond = bridge.condition(PROMPTS, model=sdxl, height=64, width=64, dtype=dtype)
    path = save_conditioning(cond, tmp_path / "deep" / "cond.safetensors")
    assert cond.save(tmp_path / "same").read_bytes() == path.read_bytes()
    back = bridge.Conditioning.load(path, model=sdxl)
    for name in NAMES:
        one, two = getattr(cond, name), getattr(back, name)
        assert two.dtype == one.dtype and torch.equal(one, two), name
    assert back.plans == cond.plans and back.negative_plans == cond.negative_plans
    assert back.recipe == cond.recipe and back.sizes == cond.sizes
    assert dict(back.fingerprints) == dict(cond.fingerprints)
    assert back.report().text() == cond.report().text()
    assert back.kwargs().keys() == cond.kwargs().keys()
    assert not list(tmp_path.rglob("*.part"))


def test_parts_that_a_recipe_lacks_stay_away(tmp_path: Path) -> None:
    cond = bridge.condition("a cat", model=tiny_sd_pipeline("sd15"))
    path = save_conditioning(cond, tmp_path / "cond.safetensors")
    assert set(load_file(path)) == {"prompt_embeds", "negative_prompt_embeds"}
    back = load_conditioning(path)
    assert back.pooled_prompt_embeds is None and back.add_time_ids is None and back.sizes is None


def test_other_towers_are_refused_unless_told(sdxl: Any, tmp_path: Path) -> None:
    path = save_conditioning(bridge.condition("a cat", model=sdxl), tmp_path / "c.safetensors")
    other = tiny_sdxl_pipeline()
    with torch.no_grad():
        next(other.text_encoder_2.parameters()).add_(1)
    with pytest.raises(WeightsError, match=r"text_encoder_2 differ.*any_towers=True"):
        load_conditioning(path, model=other)
    assert load_conditioning(path, model=other, any_towers=True).plans


def test_offloaded_towers_are_known(tmp_path: Path) -> None:
    sdxl = tiny_sdxl_pipeline()
    path = save_conditioning(bridge.condition("a cat", model=sdxl), tmp_path / "c.safetensors")
    offloaded = tiny_sdxl_pipeline()
    for name in ("text_encoder", "text_encoder_2"):
        cpu_offload(getattr(offloaded, name), torch.device("cpu"))
    assert next(offloaded.text_encoder.parameters()).is_meta
    assert load_conditioning(path, model=offloaded).plans
    with torch.no_grad():
        next(sdxl.text_encoder_2.parameters()).add_(1)
    other = save_conditioning(bridge.condition("a cat", model=sdxl), tmp_path / "o.safetensors")
    with pytest.raises(WeightsError, match="text_encoder_2 differ"):
        load_conditioning(other, model=offloaded)


def test_files_that_are_no_conditioning(sdxl: Any, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"missing\.safetensors"):
        load_conditioning(tmp_path / "missing.safetensors")
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_conditioning(tmp_path / "text")
    save_file({"a": torch.zeros(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(WeightsError, match="no conditioning"):
        load_conditioning(tmp_path / "plain.safetensors")
    whole = save_conditioning(bridge.condition("a cat", model=sdxl), tmp_path / "whole")
    data = whole.read_bytes()
    (tmp_path / "half").write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match="half"):
        load_conditioning(tmp_path / "half")
    (tmp_path / "later").write_bytes(data.replace(b'\\"format\\": 1', b'\\"format\\": 9'))
    with pytest.raises(WeightsError, match="format 9"):
        load_conditioning(tmp_path / "later")


# ---------------------------------------------------------------- whatever bridge makes


def same(cond: Conditioning, folder: Path) -> None:
    """What is saved comes back, whatever the checks of a file ask for."""
    back = load_conditioning(save_conditioning(cond, folder / "any.safetensors"))
    for name in (*TENSORS, "add_time_ids", *BIASES):
        one, two = getattr(cond, name), getattr(back, name)
        assert (one is None) == (two is None) and (one is None or torch.equal(one, two)), name
    assert back.plans == cond.plans and back.negative_plans == cond.negative_plans
    assert back.report().html() == cond.report().html()


LONG = "(a cat:1.4) 🎈 of two BREAK red apples, " * 20


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("long_prompt", LONG_PROMPTS)
def test_every_way_with_long_prompts_is_read_back(
    sdxl: Any, tmp_path: Path, long_prompt: str
) -> None:
    same(bridge.condition([LONG, ""], "a (dog:0)", model=sdxl, long_prompt=long_prompt), tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", T5_KINDS)
def test_every_recipe_with_t5_is_read_back(tmp_path: Path, kind: str) -> None:
    pipe = tiny_t5_pipeline(kind)
    cond = bridge.condition(["A <Cat> 🎈\r\n  DOG", LONG], model=pipe)
    for each in (cond, cond.repeat(2), cond.take([1, 1, 0]), cond.to(dtype=torch.bfloat16)):
        same(each, tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_results_of_arithmetic_and_of_all_dialects_are_read_back(sdxl: Any, tmp_path: Path) -> None:
    two = bridge.condition(["a cat", LONG], "b", model=sdxl, height=64, width=48)
    one = bridge.condition("apples", "b", model=sdxl, height=64, width=48)
    same(two.concatenate(one, one), tmp_path)
    same(bridge.condition("a cat", model=sdxl).zero_negatives().repeat(3), tmp_path)
    blended = bridge.condition(["a cat", "a dog"], "b", model=sdxl)
    same(blended.interpolate(bridge.condition("of", "b", model=sdxl), 0.3).repeat(2), tmp_path)
    same(bridge.compose("a cat AND a dog :0.7 AND LONG", model=sdxl).parts, tmp_path)
    for dialect, text in (
        ("compel", '("a cat", "a dog++").and(1, 0.5)'),
        ("compel", '("a cat", "a dog").blend(1, -0.5)'),
        ("comfy", "a \\(cat (dog:1.2)"),
        ("a1111", "((a)) [cat] \\(dog"),
        ("plain", "\x07 ﬁ İ 👩‍👩‍👧 a\u0301"),
    ):
        same(bridge.condition([text, "a"], model=sdxl, dialect=dialect), tmp_path)
    for emphasis in EMPHASES:
        if emphasis != "unet_attention_bias":
            same(bridge.condition("a (cat:1.5) (dog:0.4)", model=sdxl, emphasis=emphasis), tmp_path)
    half = tiny_sdxl_pipeline().to(dtype=torch.bfloat16)
    same(bridge.condition("a cat", model=half, height=1023, width=777, dtype="float32"), tmp_path)
    parts = {**tiny_sdxl_pipeline().components, "text_encoder": None, "tokenizer": None}
    refiner = StableDiffusionXLImg2ImgPipeline(
        **parts, requires_aesthetics_score=True, add_watermarker=False
    )
    same(bridge.condition("a cat", model=refiner), tmp_path)
