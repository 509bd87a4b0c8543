"""Arithmetic on conditionings: ends and formulas exact, what does not go together refused.

Formulas are worked out here again in plain torch; 1e-5 is float32's rounding over their few sums.
"""

from __future__ import annotations

import math
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import pytest
import torch
from compel import Compel
from hypothesis import given, settings
from hypothesis import strategies as st
from support.comparisons import Compared
from support.tiny_models import tiny_sd_pipeline, tiny_sdxl_pipeline

import bridge
from bridge.encoding import Conditioning, blend, load_conditioning, save_conditioning
from bridge.encoding.algebra import NEAR_PARALLEL, rejected, slerp
from bridge.errors import OptionError

UNTIMED = settings(deadline=None, max_examples=40)
STATES = (
    "prompt_embeds",
    "pooled_prompt_embeds",
    "negative_prompt_embeds",
    "negative_pooled_prompt_embeds",
)


@pytest.fixture(scope="module")
def sdxl() -> Any:
    return tiny_sdxl_pipeline()


@pytest.fixture(scope="module")
def cat(sdxl: Any) -> Conditioning:
    return bridge.condition("a cat", "red", model=sdxl)


@pytest.fixture(scope="module")
def dog(sdxl: Any) -> Conditioning:
    return bridge.condition("a (dog:1.2) in the photo", "", model=sdxl, dialect="comfy")


@pytest.fixture(scope="module")
def three(sdxl: Any) -> Conditioning:
    return bridge.condition(["an apple", "two apples", "left"], "the", model=sdxl)


def assert_equal(found: Conditioning, wanted: Conditioning) -> None:
    for name in STATES:
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name


def assert_near(found: Conditioning, wanted: Conditioning) -> None:
    """The same up to the rounding of another batch size."""
    for name in STATES:
        near(getattr(found, name), getattr(wanted, name))


def near(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- blend


def test_blend_is_the_weighted_sum(cat: Conditioning, dog: Conditioning) -> None:
    for weights, normalize in (((3, 1), True), ((1.5, -0.5), True), ((2, 3), False)):
        total = sum(weights) if normalize else 1
        found = blend([cat, dog], weights, normalize=normalize)
        for name in STATES:
            a, b = getattr(cat, name), getattr(dog, name)
            near(getattr(found, name), (weights[0] * a + weights[1] * b) / total)


def test_blend_is_compels(compared: Compared) -> None:
    sd = tiny_sd_pipeline("sd15")
    compel = Compel(tokenizer=sd.tokenizer, text_encoder=sd.text_encoder)
    parts = [bridge.condition(text, model=sd, dialect="compel") for text in ("a cat", "a red+ dog")]
    for weights in ((0.7, 0.3), (1.4, 0.6)):
        with torch.no_grad():
            wanted = compel(f'("a cat", "a red+ dog").blend{weights}')
        found = blend(parts, weights).prompt_embeds
        compared("blend of conditionings", f"compel {version('compel')}", found, wanted, 1e-5)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=4))
@UNTIMED
def test_a_blend_of_one_with_itself_is_itself(cat: Conditioning, weights: list[float]) -> None:
    found = blend([cat] * len(weights), weights)
    near(found.prompt_embeds, cat.prompt_embeds)
    assert len(found.plans[0]) == 2 * len(weights)


# ---------------------------------------------------------------- interpolate


@pytest.mark.parametrize("method", ["linear", "spherical"])
def test_the_ends_are_exact(cat: Conditioning, dog: Conditioning, method: str) -> None:
    assert_equal(cat.interpolate(dog, 0, method=method), cat)
    assert_equal(cat.interpolate(dog, 1, method=method), dog)
    near(cat.interpolate(dog, 0.25).prompt_embeds, blend([cat, dog], [0.75, 0.25]).prompt_embeds)


ROWS = st.lists(st.floats(-8, 8, width=32), min_size=4, max_size=4)


@given(ROWS, ROWS, st.floats(0, 1))
@UNTIMED
def test_slerp_keeps_to_the_circle_and_the_length_between(
    a: list[float], b: list[float], t: float
) -> None:
    one, two = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    found = slerp(one[None], two[None], t)[0]
    assert torch.isfinite(found).all()
    long_one, long_two = one.norm().item(), two.norm().item()
    if min(long_one, long_two) < 1e-3:
        return
    cosine = (one @ two).item() / long_one / long_two
    if abs(cosine) > NEAR_PARALLEL:
        near(found, torch.lerp(one, two, t))
        return
    length = (1 - t) * long_one + t * long_two
    assert found.norm().item() == pytest.approx(length, rel=1e-6)
    # It has turned by t of the angle.
    turned = (found @ one).item() / length / long_one
    assert turned == pytest.approx(math.cos(t * math.acos(cosine)), abs=1e-6)
    near(slerp(two[None], one[None], 1 - t)[0], found)


def test_slerp_of_zeros_and_opposites_goes_along_the_line() -> None:
    a, zero = torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)
    near(slerp(a, zero, 0.25), 0.75 * a)
    near(slerp(a, -a, 0.25), 0.5 * a)
    near(slerp(a, 2 * a, 0.5), 1.5 * a)
    # At right angles: half way round, at the mean length.
    near(
        slerp(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]]), 0.5),
        torch.tensor([[3.0, 3.0]]) / math.sqrt(2),
    )


def test_spherical_is_slerp_of_each_row(cat: Conditioning, dog: Conditioning) -> None:
    found = cat.interpolate(dog, 0.3, method="spherical")
    for name in STATES:
        assert torch.equal(getattr(found, name), slerp(getattr(cat, name), getattr(dog, name), 0.3))


# ---------------------------------------------------------------- concatenate, subtract, zeros


def test_concatenate_sets_states_end_to_end(
    sdxl: Any, cat: Conditioning, dog: Conditioning
) -> None:
    found = cat.concatenate(dog, cat)
    assert found.prompt_embeds.shape == found.negative_prompt_embeds.shape == (1, 231, 80)
    assert torch.equal(found.prompt_embeds[:, 77:154], dog.prompt_embeds)
    assert torch.equal(found.negative_prompt_embeds[:, :77], cat.negative_prompt_embeds)
    assert torch.equal(found.pooled_prompt_embeds, cat.pooled_prompt_embeds)
    made = sdxl(**found.kwargs(), num_inference_steps=1, output_type="np").images
    assert made.shape[0] == 1
    # The account names all three, and the pooled state of the first alone.
    towers = [plan.tower for plan in found.plans[0]]
    assert towers[0] == "text_encoder, part 1" and towers[-1] == "text_encoder_2, part 3"
    (source,) = found.traces[0].pooled
    assert source == replace(cat.traces[0].pooled[0], tower="text_encoder_2, part 1")


def test_subtract_leaves_nothing_along_the_concept(cat: Conditioning, dog: Conditioning) -> None:
    found = cat.subtract(dog)
    base = dog.negative_prompt_embeds
    u = (dog.prompt_embeds - base).mean(1, keepdim=True)
    u = u / u.norm()
    along = ((cat.prompt_embeds - base) * u).sum(-1, keepdim=True)
    near(found.prompt_embeds, cat.prompt_embeds - along * u)
    assert ((found.prompt_embeds - base) * u).sum(-1).abs().max() < 1e-5
    e = dog.negative_pooled_prompt_embeds
    v = (dog.pooled_prompt_embeds - e) / (dog.pooled_prompt_embeds - e).norm()
    assert ((found.pooled_prompt_embeds - e) * v).sum().abs() < 1e-5
    assert torch.equal(found.negative_prompt_embeds, cat.negative_prompt_embeds)
    assert_equal(cat.subtract(dog, 0), cat)
    # Twice the same at strength 1 is once, and half is half the way.
    near(found.subtract(dog).prompt_embeds, found.prompt_embeds)
    half = cat.subtract(dog, 0.5).prompt_embeds
    near(half, (cat.prompt_embeds + found.prompt_embeds) / 2)


def test_subtract_measures_from_a_base(sdxl: Any, cat: Conditioning) -> None:
    red = bridge.condition("red", model=sdxl)  # its negatives are zeros
    assert not red.negative_plans
    with pytest.raises(OptionError, match="nothing to measure it from"):
        cat.subtract(red)
    empty = bridge.condition("", model=sdxl)
    measured = cat.subtract(red, base=empty)
    # The default dialect gives zeros for an empty negative of SDXL; this one encodes it.
    beside = bridge.condition("red", "", model=sdxl, dialect="plain")
    assert_near(measured, cat.subtract(beside))
    with pytest.raises(OptionError, match="nothing to measure it from"):
        cat.subtract(bridge.condition("red", "", model=sdxl))
    # The empty prompt is no concept.
    near(cat.subtract(empty, base=empty).prompt_embeds, cat.prompt_embeds)
    z = torch.randn(2, 5, 3)
    assert torch.equal(rejected(z, z, z, 1.0), z)


def test_zero_negatives_are_what_sdxl_means_by_none(sdxl: Any, cat: Conditioning) -> None:
    found, wanted = cat.zero_negatives(), bridge.condition("a cat", model=sdxl)
    assert_near(found, wanted)
    assert not found.negative_prompt_embeds.any()
    assert not found.negative_pooled_prompt_embeds.any()
    assert found.negative_plans == wanted.negative_plans == ()
    assert found.report().negatives == ()


# ---------------------------------------------------------------- batches, files, refusals


def test_one_row_goes_with_each_of_a_batch(cat: Conditioning, three: Conditioning) -> None:
    found = blend([cat, three], [1, 1])
    assert len(found) == 3 and len(found.plans) == 3
    for row in range(3):
        alone = blend([cat, three.rows(row, row + 1)], [1, 1])
        assert_equal(found.rows(row, row + 1), alone)
    assert [plans[2].source for plans in found.plans] == ["an apple", "two apples", "left"]
    assert_equal(three.repeat(2).interpolate(three.repeat(2), 0.5), three.repeat(2))
    with pytest.raises(OptionError, match=r"has 2 rows and another has 3"):
        blend([three, three.rows(0, 2)], [1, 1])


def test_results_save_and_load(cat: Conditioning, dog: Conditioning, tmp_path: Any) -> None:
    found = cat.interpolate(dog, 0.5)
    loaded = load_conditioning(save_conditioning(found, tmp_path / "half.safetensors"))
    assert_equal(loaded, found)
    assert loaded.plans == found.plans and loaded.traces == found.traces
    assert loaded.report().to_dict() == found.report().to_dict()


def test_float16_stays_float16(cat: Conditioning, dog: Conditioning) -> None:
    low = [cond.to(dtype=torch.float16) for cond in (cat, dog)]
    found = low[0].interpolate(low[1], 0.5, method="spherical")
    assert found.prompt_embeds.dtype == torch.float16
    wanted = cat.interpolate(dog, 0.5, method="spherical").prompt_embeds
    torch.testing.assert_close(found.prompt_embeds.float(), wanted, rtol=2e-3, atol=2e-3)


def test_what_does_not_go_together_is_refused(cat: Conditioning, dog: Conditioning) -> None:
    other = replace(dog, fingerprints={**dog.fingerprints, "text_encoder_2": "0" * 16})
    longer = cat.concatenate(dog)
    sd = bridge.condition("a cat", model=tiny_sd_pipeline("sd15"))
    for wrong, said in (
        (sd, "recipe sd15, the first of sdxl"),
        (other, r"other towers than the first \(text_encoder_2 differ"),
        (dog.to(dtype=torch.float64), "float64"),
        (longer, "154 token states a prompt, the first 77"),
    ):
        with pytest.raises(OptionError, match=said):
            cat.interpolate(wrong, 0.5)
    for bad, said in ((2, "from 0 to 1"), (math.nan, "finite"), ("x", "finite"), (True, "finite")):
        with pytest.raises(OptionError, match=said):
            cat.interpolate(dog, bad)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="No method 'cubic'"):
        cat.interpolate(dog, 0.5, method="cubic")
    with pytest.raises(OptionError, match="add up to 0"):
        blend([cat, dog], [1, -1])
    with pytest.raises(OptionError, match="2 conditionings and 1 weights"):
        blend([cat, dog], [1])
    with pytest.raises(OptionError, match="at least one"):
        blend([], [])
    with pytest.raises(OptionError, match="weight 1 must be a finite number"):
        blend([cat, dog], [1, math.inf])
