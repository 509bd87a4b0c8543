"""Adapters between text towers: fitted, saved, refused, used, and gone without a trace."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.comparisons import relative
from support.foreign_towers import ALL, PROMPTS, UNSEEN, foreign_tower
from support.tiny_models import (
    tiny_sd_pipeline,
    tiny_sdxl_pipeline,
)
from support.tiny_t5 import tiny_t5_pipeline

import bridge
from bridge.adapters import Adapter, label_swap
from bridge.adapters.maps import TowerMap
from bridge.adapters.pairs import foreign_readings, native_states
from bridge.adapters.reading import Places, inputs_of
from bridge.adapters.regression import LinearMap
from bridge.adapters.training import train_resampler
from bridge.encoding import (
    load_conditioning,
    open_model,
    save_conditioning,
)
from bridge.errors import BridgeError, OptionError, UnsupportedModelError, WeightsError
from bridge.prompt import TruncationWarning
from bridge.towers import TEXT_FAMILIES, Layer, TextTower, fingerprint, stretch_positions


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_sd_pipeline("sd21")


@pytest.fixture(scope="module")
def foreign() -> TextTower:
    return foreign_tower()


@pytest.fixture(scope="module")
def adapter(pipe: Any, foreign: TextTower) -> Adapter:
    return bridge.fit_adapter(foreign, model=pipe, prompts=PROMPTS)


def own_tower(pipe: Any, number: str = "") -> TextTower:
    parts = pipe.components
    return TextTower.from_modules(parts[f"text_encoder{number}"], parts[f"tokenizer{number}"])


# ---------------------------------------------------------------- where it goes


def test_schedules_and_pictures_take_towers_and_adapters(
    pipe: Any, foreign: TextTower, adapter: Adapter
) -> None:
    swap: dict[str, Any] = {"model": pipe, "towers": foreign, "adapter": adapter}
    plan = bridge.schedule("a [cat:dog:1]", "apple", steps=3, **swap)
    for step, text in ((2, "a cat"), (3, "a dog")):
        want = bridge.condition(text, "apple", **swap)
        # 1e-4: a batch of another size rounds otherwise, which the map makes larger.
        assert relative(plan.at(step).prompt_embeds, want.prompt_embeds) < 1e-4
        assert plan.at(step).addons == want.addons
    drawn = bridge.generate("a cat", negative_prompt="apple", seed=1, steps=2, **swap)
    assert relative(drawn.conditioning.prompt_embeds, plan.at(1).prompt_embeds) < 1e-4
    own = bridge.generate("a cat", negative_prompt="apple", seed=1, steps=2, model=pipe)
    assert drawn.images[0].tobytes() != own.images[0].tobytes()


# ---------------------------------------------------------------- exactness


def test_a_tower_adapted_to_itself_gives_its_own_states(pipe: Any) -> None:
    # 1e-4 of the largest entry: the least penalty is 1e-10 of the variance, and 5e-6 of a standard
    # deviation is the most that shrinking can cost in any direction.
    made = bridge.fit_adapter(own_tower(pipe), model=pipe, prompts=PROMPTS)
    native = bridge.condition(UNSEEN, "a cat", model=pipe)
    mapped = bridge.condition(UNSEEN, "a cat", model=pipe, towers=own_tower(pipe), adapter=made)
    assert relative(mapped.prompt_embeds, native.prompt_embeds) < 1e-4
    assert relative(mapped.negative_prompt_embeds, native.negative_prompt_embeds) < 1e-4


@pytest.mark.parametrize("number", ["", "_2"])
def test_each_tower_of_sdxl_gives_its_own_columns(number: str) -> None:
    sdxl = tiny_sdxl_pipeline()
    made = bridge.fit_adapter(own_tower(sdxl, number), model=sdxl, prompts=PROMPTS)
    native = bridge.condition(UNSEEN, "", model=sdxl)
    mapped = bridge.condition(UNSEEN, "", model=sdxl, towers=own_tower(sdxl, number), adapter=made)
    columns = slice(None, 32) if not number else slice(32, None)
    assert mapped.prompt_embeds.shape == native.prompt_embeds.shape
    assert relative(mapped.prompt_embeds[..., columns], native.prompt_embeds[..., columns]) < 1e-4
    if number:
        assert mapped.pooled_prompt_embeds is not None
        assert relative(mapped.pooled_prompt_embeds, native.pooled_prompt_embeds) < 1e-4
    # The stored empty prompt is exact, whatever the tower.
    # (1e-6: a batch of another size rounds otherwise.)
    for name in ("negative_prompt_embeds", "negative_pooled_prompt_embeds"):
        assert relative(getattr(mapped, name), getattr(native, name)) < 1e-6
    assert relative(mapped.prompt_embeds[:, 0], native.prompt_embeds[:, 0]) < 1e-6


def test_a_foreign_tower_comes_near_to_the_native_one(
    pipe: Any, foreign: TextTower, adapter: Adapter
) -> None:
    native = bridge.condition(UNSEEN, model=pipe).prompt_embeds
    mapped = bridge.condition(UNSEEN, model=pipe, towers=foreign, adapter=adapter).prompt_embeds
    # Each prompt's states are nearer to its own native ones than to those of any other prompt.
    distance = (mapped[:, None] - native[None]).square().mean((2, 3))
    assert distance.argmin(1).tolist() == list(range(len(UNSEEN)))
    shares = adapter.explained["text_encoder"]
    assert set(shares) == {"content", "eos", "padding"} and min(shares.values()) > 0.3


@pytest.mark.parametrize("kind", ["procrustes", "random-features", "resampler"])
def test_the_other_kinds(pipe: Any, foreign: TextTower, adapter: Adapter, kind: str) -> None:
    drawn_before = torch.rand(1, generator=torch.default_generator.clone_state())
    made = bridge.fit_adapter(foreign, model=pipe, prompts=PROMPTS, kind=kind, steps=3)
    assert torch.equal(torch.rand(1, generator=torch.default_generator.clone_state()), drawn_before)
    native = bridge.condition(UNSEEN, model=pipe).prompt_embeds
    mapped = bridge.condition(UNSEEN, model=pipe, towers=foreign, adapter=made).prompt_embeds
    assert mapped.isfinite().all()
    assert relative(mapped[:, 0], native[:, 0]) < 1e-6  # BOS
    scores = made.explained["text_encoder"]
    if kind == "procrustes":
        # A turn can do less than any linear map, and more than nothing.
        assert 0.05 < scores["content"] < adapter.explained["text_encoder"]["content"]
        assert made.layers == adapter.layers[:1] != adapter.layers
    else:
        distance = (mapped[:, None] - native[None]).square().mean((2, 3))
        assert distance.argmin(1).tolist() == list(range(len(UNSEEN)))


@pytest.mark.parametrize("kind", ["ridge", "random-features"])
@pytest.mark.filterwarnings("ignore::bridge.prompt.TruncationWarning")
def test_prompts_that_fill_their_window(pipe: Any, foreign: TextTower, kind: str) -> None:
    # Of padding there is nothing to learn from; all else is fitted as ever.
    texts = [" ".join([text] * 20) for text in PROMPTS[:47]]
    made = bridge.fit_adapter(foreign, model=pipe, prompts=texts, kind=kind)
    options: dict[str, Any] = {"dialect": "plain", "long_prompt": "truncate"}
    native = bridge.condition(texts[-8:], model=pipe, **options).prompt_embeds
    swap: dict[str, Any] = {"towers": foreign, "adapter": made}
    mapped = bridge.condition(texts[-8:], model=pipe, **swap, **options).prompt_embeds
    # 0.15 of the largest entry; these prompts are 0.25 apart.
    assert relative(mapped, native) < 0.2
    distance = (mapped[:, None] - native[None]).square().mean((2, 3))
    assert distance.argmin(1).tolist() == list(range(8))
    assert bridge.condition(UNSEEN, model=pipe, **swap).prompt_embeds.abs().max() < 1e3


def test_a_resampler_learns_what_its_base_does_not_know(pipe: Any, foreign: TextTower) -> None:
    # Over a base that gives the mean state everywhere; scored on prompts that were left out.
    kit = open_model(pipe)
    native = native_states(kit, kit.load(), ALL[:320:5])
    readings = foreign_readings(foreign, native, [Layer()], torch.device("cpu"))
    (own,) = native.values()
    inputs = inputs_of(
        Places.of(own.windows[0].window), own.windows[0].text, readings[own.windows[0].text.text]
    )
    mean = own.states.mean((0, 1))
    base = TowerMap(
        {k: LinearMap(torch.zeros(x.shape[1], len(mean)), mean) for k, x in inputs.items()},
        own.states[0],
    )
    _, scores = train_resampler(base, [(own, readings)], 8, 200, 0, hidden=32)
    # However short a run and few the prompts, what was left out is never worse than before.
    _, short = train_resampler(base, [(own, readings)], 8, 2, 0, hidden=32)
    before, after = (
        sum(short[f"{name}/{place}"] for place in ("content", "eos", "padding"))
        for name in ("error of closed form", "error")
    )
    assert after <= before + 3e-4  # rounded to four digits each
    # The mean is most of what there is to know of padding.
    for place, most in {"content": 0.85, "eos": 0.85, "padding": 1.0}.items():
        assert scores[f"error/{place}"] < most * scores[f"error of closed form/{place}"]
    made, again = (
        train_resampler(base, [(own, readings)], 8, 3, 0, hidden=32)[0] for _ in range(2)
    )
    assert all(map(torch.equal, made.state_dict().values(), again.state_dict().values()))


@pytest.mark.parametrize("kind", ["sd3", "pixart-sigma"])
def test_recipes_of_several_bands_and_masks(kind: str, foreign: TextTower) -> None:
    model = tiny_t5_pipeline(kind)
    made = bridge.fit_adapter(foreign, model=model, prompts=PROMPTS[:40])
    native = bridge.condition(["red cat", "two dog, apple"], "a cat", model=model)
    mapped = bridge.condition(
        ["red cat", "two dog, apple"], "a cat", model=model, towers=foreign, adapter=made
    )
    for name, tensor in native.kwargs().items():
        if isinstance(tensor, torch.Tensor):
            other = mapped.kwargs()[name]
            assert (other.shape, other.dtype) == (tensor.shape, tensor.dtype)
            assert other.isfinite().all()


# ---------------------------------------------------------------- files and pairs


def test_an_adapter_goes_through_its_file(
    pipe: Any, foreign: TextTower, adapter: Adapter, tmp_path: Path
) -> None:
    trained = bridge.fit_adapter(
        foreign, model=pipe, prompts=PROMPTS[:40], kind="resampler", steps=2
    )
    for made in (adapter, trained):
        path = made.save(tmp_path / f"{made.kind}.safetensors")
        read = bridge.load_adapter(path)
        assert read.hash == made.hash and read.explained == made.explained
        assert (read.layers, read.foreign, read.natives) == (
            made.layers, made.foreign, made.natives,
        )  # fmt: skip
        options: dict[str, Any] = {"model": pipe, "towers": foreign}
        one = bridge.condition(UNSEEN, **options, adapter=made)
        two = bridge.condition(UNSEEN, **options, adapter=path)
        assert torch.equal(one.prompt_embeds, two.prompt_embeds)
        assert str(path) in two.report().text()


def test_a_pair_that_does_not_match_is_refused(
    pipe: Any, foreign: TextTower, adapter: Adapter
) -> None:
    stranger = foreign_tower(seed=8)
    with pytest.raises(WeightsError) as refused:
        bridge.condition("a cat", model=pipe, towers=stranger, adapter=adapter)
    for part in (stranger.fingerprint(), foreign.fingerprint(), "fit_adapter"):
        assert part in str(refused.value)
    with pytest.raises(WeightsError, match="another text_encoder"):
        other = tiny_sd_pipeline("sd21", seed=1)
        bridge.condition("a cat", model=other, towers=foreign, adapter=adapter)
    with pytest.raises(WeightsError, match="is sdxl with text_encoder, text_encoder_2"):
        bridge.condition("a cat", model=tiny_sdxl_pipeline(), towers=foreign, adapter=adapter)


def test_files_that_are_no_adapters(adapter: Adapter, tmp_path: Path) -> None:
    path = adapter.save(tmp_path / "one.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(WeightsError, match="cannot be read"):
        bridge.load_adapter(path)
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(WeightsError, match="no adapter"):
        bridge.load_adapter(path)
    with pytest.raises(WeightsError, match=r"There is no adapter file '.*none\.safetensors'"):
        bridge.load_adapter(tmp_path / "none.safetensors")
    for other in (1, 9):  # an earlier and a later one
        changed = whole.replace(b'\\"format\\": 2', f'\\"format\\": {other}'.encode())
        assert changed != whole
        path.write_bytes(changed)
        with pytest.raises(WeightsError, match=f"format {other}; .*Fit the adapter again"):
            bridge.load_adapter(path)


def test_a_damaged_adapter_is_refused(
    pipe: Any, foreign: TextTower, adapter: Adapter, tmp_path: Path
) -> None:
    path = tmp_path / "one.safetensors"
    weight = "text_encoder.linear.content.weight"

    def refused(match: str, said: Any = None, **tensors: torch.Tensor) -> None:
        adapter.save(path)
        with safe_open(path, "pt") as opened:
            header = json.loads(opened.metadata()["bridge_adapter"])
        header.update(said or {})
        save_file({**load_file(path), **tensors}, path, {"bridge_adapter": json.dumps(header)})
        with pytest.raises(WeightsError, match=rf"one\.safetensors.*{match}"):
            bridge.condition("a cat", model=pipe, towers=foreign, adapter=path)

    stored = load_file(adapter.save(path))[weight]
    for number in (float("nan"), float("inf")):
        bad = stored.clone()
        bad[0, 0] = number
        refused(f"'{weight}' holds numbers that are not finite", **{weight: bad})
    refused(r"the map of content is .* to states", **{weight: stored.T.contiguous()})
    refused("the map of content takes", **{weight: stored[1:].contiguous()})
    refused(r"it is of torch.float16, torch.float32", **{weight: stored.half()})
    refused("belongs to none of its towers", more=torch.ones(1))
    refused("prompts must be a whole number, not '<b>'", {"prompts": "<b>"})
    card = {"name": "x", "width": [1], "fingerprints": {}}
    refused(r"foreign\.width must be a whole number", {"foreign": card})
    refused(r"layers\[0\]\[0\] must be a whole number", {"layers": [[10**400, True]]})
    shape = {"length": 77, "width": 32, "pooled": 0, "memory": 48, "hidden": 192, "heads": 4}
    refused("a resampler of", {"resamplers": {"text_encoder": {**shape, "layers": 10**9}}})


def test_half_precision_is_the_same_tower(foreign: TextTower, adapter: Adapter) -> None:
    half = tiny_sd_pipeline("sd21")
    module = half.text_encoder
    for dtype in (torch.float16, torch.bfloat16):
        cast = copy.deepcopy(module).to(dtype)
        assert fingerprint(cast) == fingerprint(module, dtype) != fingerprint(module)
    half.to(torch.float16)
    found = bridge.condition("a cat", model=half, towers=foreign, adapter=adapter)
    assert found.prompt_embeds.dtype == torch.float16


# ---------------------------------------------------------------- in use


def hooks_of(module: torch.nn.Module) -> list[Any]:
    return [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]


def test_the_pipeline_is_left_as_it_was(pipe: Any, foreign: TextTower, adapter: Adapter) -> None:
    parts = {n: m for n, m in pipe.components.items() if isinstance(m, torch.nn.Module)}
    before = {n: copy.deepcopy(m.state_dict()) for n, m in parts.items()}
    # transformers leaves hooks of its own on a tower whose inner layers were asked for once.
    hooks = {each: hooks_of(each) for module in parts.values() for each in module.modules()}
    native = bridge.condition("a red cat", "", model=pipe)
    limit = pipe.tokenizer.model_max_length
    found = bridge.condition("a red cat", "", model=pipe, towers=foreign, adapter=adapter)
    bridge.condition("a red cat", model=pipe, towers=[own_tower(tiny_sd_pipeline("sd21", 3))])
    for name, module in parts.items():
        assert pipe.components[name] is module
        after = module.state_dict()
        assert all(torch.equal(after[key], value) for key, value in before[name].items())
        assert all(hooks_of(each) == hooks[each] for each in module.modules())
    assert pipe.tokenizer.model_max_length == limit
    again = bridge.condition("a red cat", "", model=pipe)
    assert torch.equal(again.prompt_embeds, native.prompt_embeds)
    assert not torch.equal(found.prompt_embeds, native.prompt_embeds)


def test_a_picture_and_the_report(
    pipe: Any, foreign: TextTower, adapter: Adapter, tmp_path: Path
) -> None:
    found = bridge.condition("a red cat", "", model=pipe, towers=foreign, adapter=adapter)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    picture = pipe(
        **found.kwargs(), num_inference_steps=2, generator=noise, output_type="np"
    ).images
    assert picture.shape == (1, 64, 64, 3) and np.isfinite(picture).all()
    assert f"adapter foreign by ridge (fitted in this session, {adapter.hash})" in str(
        found.report()
    )
    (addon,) = found.report().to_dict()["addons"]
    assert (addon["kind"], addon["towers"]) == ("adapter", ["text_encoder"])
    # Arithmetic keeps apart what came from other towers, and the file knows its model.
    with pytest.raises(OptionError, match="other towers"):
        found.interpolate(bridge.condition("a dog", "", model=pipe), 0.5)
    path = save_conditioning(found, tmp_path / "cond.safetensors")
    read = load_conditioning(path, model=pipe)
    assert read.addons == found.addons and torch.equal(read.prompt_embeds, found.prompt_embeds)


def test_weights_act_on_the_mapped_states(pipe: Any, foreign: TextTower, adapter: Adapter) -> None:
    options: dict[str, Any] = {"model": pipe, "towers": foreign, "adapter": adapter}
    plain = bridge.condition("a red cat", **options).prompt_embeds[0]
    empty = bridge.condition("", **options).prompt_embeds[0]
    weighted = bridge.condition("a (red:1.5) cat", emphasis="comfy", **options).prompt_embeds[0]
    expected = plain.clone()
    expected[2] = empty[2] + 1.5 * (plain[2] - empty[2])
    assert relative(weighted, expected) < 1e-4
    scaled = bridge.condition("a (red:1.5) cat", emphasis="no_norm", **options).prompt_embeds[0]
    assert relative(scaled[2], 1.5 * plain[2]) < 1e-4
    assert bridge.condition("a (red:1.5) cat", **options).prompt_embeds.isfinite().all()
    bridge.condition("a (red)1.5 cat", dialect="compel", **options)
    for emphasis, weight in (
        ("compel", 0.5), ("down_weight", 1.5), ("comfy++", 1.5), ("text_attention_bias", 1.5),
    ):  # fmt: skip
        with pytest.raises(OptionError, match=f"{emphasis}.*with an adapter".replace("+", r"\+")):
            bridge.condition(f"a (red:{weight}) cat", emphasis=emphasis, **options)


def test_long_prompts_and_breaks_are_windows(
    pipe: Any, foreign: TextTower, adapter: Adapter
) -> None:
    options: dict[str, Any] = {"model": pipe, "towers": foreign, "adapter": adapter}
    both = bridge.condition("a red cat BREAK two dog", "", **options)
    halves = [bridge.condition(half, **options).prompt_embeds for half in ("a red cat", "two dog")]
    # Another batch rounds otherwise, and a map may amplify that a thousand times.
    assert relative(both.prompt_embeds, torch.cat(halves, 1)) < 1e-4
    empty = bridge.condition("", **options).prompt_embeds
    assert torch.equal(both.negative_prompt_embeds, torch.cat([empty, empty], 1))
    with pytest.warns(TruncationWarning, match="77 of foreign"):
        assert bridge.condition("of cat, " * 60, **options).prompt_embeds.shape[1] == 3 * 77
    # The foreign vocabulary needs more tokens for this than its context has.
    with pytest.warns(TruncationWarning, match="77 of foreign"):
        bridge.condition("left " * 60, **options)


def test_layers_are_layers_one_or_more(pipe: Any, foreign: TextTower) -> None:
    for wrong in ((), -1, [Layer(), "last"]):
        with pytest.raises(OptionError, match=r"layers must be one or more bridge\.towers\.Layer"):
            bridge.fit_adapter(foreign, model=pipe, prompts=PROMPTS, layers=wrong)
    made = bridge.fit_adapter(foreign, model=pipe, prompts=PROMPTS, layers=Layer())
    assert made.layers == (Layer(),)


def test_what_an_adapter_cannot_do(pipe: Any, foreign: TextTower, adapter: Adapter) -> None:
    options: dict[str, Any] = {"model": pipe, "towers": foreign, "adapter": adapter}
    with pytest.raises(OptionError, match="clip_skip"):
        bridge.condition("a cat", clip_skip=1, **options)
    with pytest.raises(OptionError, match="one foreign tower"):
        bridge.condition("a cat", model=pipe, towers=[foreign], adapter=adapter)
    with pytest.raises(OptionError, match="adapter takes an Adapter"):
        bridge.condition("a cat", model=pipe, towers=foreign, adapter=3)


# ---------------------------------------------------------------- without an adapter


def test_a_tower_of_the_same_kind_takes_the_place_as_it_is(pipe: Any) -> None:
    other = tiny_sd_pipeline("sd21", seed=3)
    tower = own_tower(other)
    swapped = tiny_sd_pipeline("sd21")
    swapped.text_encoder, swapped.tokenizer = other.text_encoder, other.tokenizer
    wanted = bridge.condition("a (red:1.2) cat", "", model=swapped)
    for towers in (tower, [tower], {"text_encoder": tower}):
        found = bridge.condition("a (red:1.2) cat", "", model=pipe, towers=towers)
        assert torch.equal(found.prompt_embeds, wanted.prompt_embeds)
        assert torch.equal(found.negative_prompt_embeds, wanted.negative_prompt_embeds)
        assert "same-width tower CLIPTextModel" in str(found.report())
    own = bridge.condition("a cat", model=pipe, towers=own_tower(pipe))
    assert "native tower" in str(own.report())
    assert torch.equal(own.prompt_embeds, bridge.condition("a cat", model=pipe).prompt_embeds)


def test_a_folder_and_a_longer_context(pipe: Any, tmp_path: Path) -> None:
    longer = stretch_positions(pipe.text_encoder)
    longer.save_pretrained(tmp_path)
    pipe.tokenizer.save_pretrained(tmp_path)
    found = bridge.condition("a cat " * 60, model=pipe, towers={"text_encoder": tmp_path})
    assert found.prompt_embeds.shape[1] == 248
    swapped = tiny_sd_pipeline("sd21")
    swapped.text_encoder = longer
    wanted = bridge.condition("a cat " * 60, model=swapped)
    assert torch.equal(found.prompt_embeds, wanted.prompt_embeds)


def test_what_needs_an_adapter_says_so(
    pipe: Any, foreign: TextTower, monkeypatch: pytest.MonkeyPatch
) -> None:
    for towers in (foreign, [foreign], {"text_encoder": foreign}):
        with pytest.raises(OptionError, match=r"48 wide, not 32.*bridge\.fit_adapter"):
            bridge.condition("a cat", model=pipe, towers=towers)
    with pytest.raises(OptionError, match="has no text_encoder_2"):
        bridge.condition("a cat", model=pipe, towers={"text_encoder_2": foreign})
    with pytest.raises(OptionError, match="2 towers were given"):
        bridge.condition("a cat", model=pipe, towers=[None, foreign])
    with pytest.raises(OptionError, match="towers takes a name"):
        bridge.condition("a cat", model=pipe, towers=3)
    with pytest.raises(BridgeError, match="no-such-tower"):
        bridge.condition("a cat", model=pipe, towers="no-such-tower")
    assert label_swap(own_tower(pipe), pipe).label == "native"
    assert label_swap(own_tower(tiny_sd_pipeline("sd21", 3)), pipe).label == "same-width"
    assert label_swap(foreign, pipe).label == "adapter"
    pooled_only = replace(TEXT_FAMILIES["clip"], tokens=False)
    monkeypatch.setitem(TEXT_FAMILIES, "clip", pooled_only)
    swap = label_swap(foreign, pipe)
    assert swap.label == "incompatible" and "without a trained adapter" in swap.reason
    with pytest.raises(UnsupportedModelError, match="cannot feed cross-attention"):
        bridge.condition("a cat", model=pipe, towers=foreign)
    with pytest.raises(OptionError, match="pooled state alone"):
        bridge.fit_adapter(foreign, model=pipe, prompts=PROMPTS)


def test_what_cannot_be_fitted(pipe: Any, foreign: TextTower) -> None:
    with pytest.raises(OptionError, match="at least 32 different prompts, and here are 1"):
        bridge.fit_adapter(foreign, model=pipe, prompts=["a cat"] * 50)
    with pytest.raises(
        OptionError, match="there is: ridge, procrustes, random-features, resampler"
    ):
        bridge.fit_adapter(foreign, model=pipe, prompts=PROMPTS, kind="rigde")
    with pytest.raises(OptionError, match="steps"):
        bridge.fit_adapter(foreign, model=pipe, prompts=PROMPTS, steps=0)
