"""bridge.condition against diffusers' own pipelines, at small size.

The tolerance is 1e-5 of the largest entry: both sides run the same modules in float32, but
bridge puts prompts and negatives into one batch, and matrix products of another batch size add
up in another order. What is seen here is below 1e-6.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers.hooks import apply_group_offloading
from PIL import Image
from support.comparisons import Compared, relative
from support.encoding import LONG, NAMES, TOLERANCE, count_passes, expected_of, quiet
from support.tiny_models import (
    PICTURE_SIZE,
    tiny_controlnet,
    tiny_sd_pipeline,
    tiny_sdxl_pipeline,
)

import bridge
from bridge.encoding import RECIPES, find_recipe, open_model, tokenizers_of
from bridge.encoding.options import SizeRequest
from bridge.encoding.pipeline_state import execution_device, is_offloaded
from bridge.errors import (
    BridgeError,
    OptionError,
    PromptError,
    UnknownModelError,
    UnsupportedModelError,
    WeightsError,
)
from bridge.prompt import TruncationWarning

DIFFUSERS = f"diffusers {diffusers.__version__}"


def make(kind: str) -> Any:
    """A tiny pipeline; ``sdxl-encoded`` is SDXL whose missing negatives are encoded."""
    if kind in ("sd15", "sd21"):
        return tiny_sd_pipeline(kind)
    return tiny_sdxl_pipeline(force_zeros=kind != "sdxl-encoded")


@pytest.fixture(scope="module")
def pipes() -> dict[str, Any]:
    return {kind: make(kind) for kind in ("sd15", "sd21", "sdxl", "sdxl-encoded")}


@pytest.fixture(scope="module")
def folders(pipes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for kind, pipe in pipes.items():
        # A name that says nothing: the recipe must come from the parts.
        pipe.save_pretrained(root / f"model-{len(kind)}-{kind[-1]}")
    return {kind: root / f"model-{len(kind)}-{kind[-1]}" for kind in pipes}


def towers_of(pipe: Any) -> list[Any]:
    return [t for t in (pipe.text_encoder, getattr(pipe, "text_encoder_2", None)) if t is not None]


# ---------------------------------------------------------------- equal to diffusers

KINDS = ("sd15", "sd21", "sdxl", "sdxl-encoded")
CASES = {
    "one": ("two red apples left of a cat", "ugly"),
    "one, no negative": ("a cat", None),
    "one, empty negative": ("a cat", ""),
    "empty": ("", None),
    "batch": (["a cat", "two dogs", LONG], ["ugly", "", LONG]),
    "batch, no negative": (["a cat", "a cat", "a dog"], None),
    "batch, one negative": (["a cat", "two dogs"], "ugly"),
    "emoji and right to left": (["🎈 e\u0301", "مرحبا"], ["שלום", "👩‍👩‍👧"]),
}


@pytest.mark.parametrize("clip_skip", [None, 0, 1, 2])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_encode_prompt_in_one_pass(
    pipes: dict[str, Any], kind: str, case: str, clip_skip: int | None, compared: Compared
) -> None:
    pipe, (prompt, negative) = pipes[kind], CASES[case]
    with count_passes(towers_of(pipe)) as passes, quiet():
        found = bridge.condition(prompt, negative, model=pipe, clip_skip=clip_skip, dialect="plain")
    assert passes == [1] * len(passes)
    feature = f"{found.recipe.name}{', clip-skip' if clip_skip else ''}"
    for name, wanted in expected_of(pipe, prompt, negative, clip_skip).items():
        compared(feature, DIFFUSERS, getattr(found, name), wanted, TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_equals_its_pipeline(
    pipes: dict[str, Any], folders: dict[str, Path], kind: str
) -> None:
    prompt, negative = ["a cat", "two dogs"], None
    skips = {"clip_skip": 1, "negative_clip_skip": 0}  # as diffusers does
    found = bridge.condition(prompt, negative, model=folders[kind], device="cpu", **skips)
    assert found.recipe.name == kind.removesuffix("-encoded")
    for name, wanted in expected_of(pipes[kind], prompt, negative, 1).items():
        assert relative(getattr(found, name), wanted) <= TOLERANCE, name
    live = bridge.condition(prompt, negative, model=pipes[kind], **skips)
    assert found.fingerprints == live.fingerprints
    if found.add_time_ids is not None:
        assert torch.equal(found.add_time_ids, live.add_time_ids)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dialect", "own"), [("plain", 0), ("a1111", 1), ("comfy", 1), ("compel", 1)]
)
def test_clip_skip_acts_on_the_negative_as_in_the_dialects_tool(
    pipes: dict[str, Any], kind: str, dialect: str, own: int
) -> None:
    def negative(**skips: int) -> torch.Tensor:
        found = bridge.condition("a cat", "ugly", model=pipes[kind], dialect=dialect, **skips)
        return found.negative_prompt_embeds

    by_layers = [negative(negative_clip_skip=skip) for skip in (0, 1)]
    assert not torch.allclose(*by_layers)
    assert torch.allclose(negative(clip_skip=1), by_layers[own], atol=1e-6)
    for skip in (0, 1):
        chosen = negative(clip_skip=2, negative_clip_skip=skip)
        assert torch.allclose(chosen, by_layers[skip], atol=1e-6)


def test_equal_texts_are_encoded_once(pipes: dict[str, Any]) -> None:
    pipe, seen = pipes["sdxl"], []
    handle = pipe.text_encoder.register_forward_hook(
        lambda _module, args, _out: seen.append(args[0].shape)
    )
    found = bridge.condition(["a cat"] * 5 + ["a dog"], "", model=pipe)
    handle.remove()
    assert seen == [(3, 77)]
    assert len(found) == 6
    assert torch.equal(found.prompt_embeds[0], found.prompt_embeds[4])


def test_a_second_prompt_goes_to_the_second_tower(pipes: dict[str, Any]) -> None:
    pipe = pipes["sdxl"]
    more = {"prompt_2": "a dog", "negative_prompt_2": "red"}
    found = bridge.condition("a cat", "ugly", model=pipe, **more)
    for name, wanted in expected_of(pipe, "a cat", "ugly", None, **more).items():
        assert relative(getattr(found, name), wanted) <= TOLERANCE, name
    assert [plan.source for plan in found.plans[0]] == ["a cat", "a dog"]
    # As in diffusers, an empty second prompt means the first.
    same = bridge.condition("a cat", "ugly", model=pipe, prompt_2="")
    assert [plan.source for plan in same.plans[0]] == ["a cat", "a cat"]


def test_a_config_that_asks_for_a_mask_gets_it() -> None:
    pipe = tiny_sd_pipeline()
    plain = bridge.condition("a cat", model=pipe)
    pipe.text_encoder.config.use_attention_mask = True
    masked = bridge.condition("a cat", model=pipe)
    for name, wanted in expected_of(pipe, "a cat", None, None).items():
        assert relative(getattr(masked, name), wanted) <= TOLERANCE, name
    assert not torch.allclose(plain.prompt_embeds, masked.prompt_embeds)


def test_a_concept_of_several_vectors_in_a_live_pipeline() -> None:
    pipe = tiny_sd_pipeline()
    vectors = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    pipe.load_textual_inversion(vectors, token="<toy>")
    # With eos_token_id 2 the pooled state is found by argmax, which added ids would mislead;
    # this recipe has no pooled state, so the token states must agree all the same.
    found = bridge.condition("a <toy> and a cat", "no <toy>", model=pipe)
    for name, wanted in expected_of(pipe, "a <toy> and a cat", "no <toy>", None).items():
        assert relative(getattr(found, name), wanted) <= TOLERANCE, name


def test_the_refiner_has_the_second_tower_only() -> None:
    base = tiny_sdxl_pipeline()
    parts = {**base.components, "text_encoder": None, "tokenizer": None}
    pipe = diffusers.StableDiffusionXLImg2ImgPipeline(
        **parts, requires_aesthetics_score=True, add_watermarker=False
    )
    found = bridge.condition(
        ["a cat", "a dog"], "ugly", model=pipe, clip_skip=1, negative_clip_skip=0
    )
    assert found.recipe.name == "sdxl-refiner"
    for name, wanted in expected_of(pipe, ["a cat", "a dog"], "ugly", 1).items():
        assert relative(getattr(found, name), wanted) <= TOLERANCE, name
    assert found.add_time_ids.tolist() == [[64, 64, 0, 0, 6]] * 2


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_half_precision_pipelines_keep_their_dtype(kind: str) -> None:
    pipe = make(kind).to(torch.bfloat16)
    found = bridge.condition("a cat", "ugly", model=pipe)
    for name, wanted in expected_of(pipe, "a cat", "ugly", None).items():
        assert getattr(found, name).dtype == torch.bfloat16
        # bfloat16 has 8 bits: one unit in the last place is 2**-8 of a number's size.
        assert relative(getattr(found, name), wanted) <= 2**-7, name


# ---------------------------------------------------------------- pictures


def picture(size: int = PICTURE_SIZE, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(values)


def mask_picture() -> Image.Image:
    mask = np.zeros((PICTURE_SIZE, PICTURE_SIZE), dtype=np.uint8)
    mask[16:48, 16:48] = 255
    return Image.fromarray(mask)


def in_family(kind: str, task: str) -> tuple[Any, dict[str, Any]]:
    """A stock pipeline of a family and task, and the pictures its call needs."""
    base = make(kind)
    base.set_progress_bar_config(disable=True)
    family = "StableDiffusionXL" if kind == "sdxl" else "StableDiffusion"
    name = f"{family}{task}Pipeline"
    parts = dict(base.components)
    given: dict[str, Any] = {}
    if "ControlNet" in task:
        parts["controlnet"] = tiny_controlnet(base)
        given["image" if task == "ControlNet" else "control_image"] = picture(seed=1)
    if "Img2Img" in task or "Inpaint" in task:
        given |= {"image": picture(), "strength": 0.7}
    if "Inpaint" in task:
        given["mask_image"] = mask_picture()
    more = {} if kind == "sdxl" else {"requires_safety_checker": False}
    pipe = getattr(diffusers, name)(**parts, **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe, given


TASKS = (
    "",
    "Img2Img",
    "Inpaint",
    "ControlNet",
    "ControlNetImg2Img",
    "ControlNetInpaint",
)


def draw(pipe: Any, **call: Any) -> np.ndarray:
    return pipe(
        num_inference_steps=3,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
        **call,
    ).images


@pytest.mark.parametrize("task", TASKS, ids=[task or "Text2Image" for task in TASKS])
@pytest.mark.parametrize("kind", ["sd15", "sd21", "sdxl"])
def test_stock_pipelines_draw_the_same_picture(kind: str, task: str) -> None:
    pipe, given = in_family(kind, task)
    for negative in ("ugly", None):
        wanted = draw(pipe, prompt="two red apples", negative_prompt=negative, **given)
        cond = bridge.condition("two red apples", negative, model=pipe)
        found = draw(pipe, **cond.kwargs(), **given)
        assert found.shape == wanted.shape
        # Pixels lie in 0..1; below half of 1/255 the saved pictures are the same.
        assert np.abs(found - wanted).max() < 1e-4
    other = draw(pipe, **bridge.condition("a dog", model=pipe).kwargs(), **given)
    assert np.abs(other - wanted).max() > 1e-4


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_batches_and_several_images(kind: str) -> None:
    pipe, _ = in_family(kind, "")
    prompts = ["a cat", "two dogs"]
    wanted = draw(pipe, prompt=prompts, num_images_per_prompt=2)
    cond = bridge.condition(prompts, model=pipe)
    for found in (
        draw(pipe, **cond.kwargs(), num_images_per_prompt=2),
        draw(pipe, **cond.kwargs(num_images=2)),
    ):
        assert found.shape == (4, PICTURE_SIZE, PICTURE_SIZE, 3)
        assert np.abs(found - wanted).max() < 1e-4


def test_sizes_reach_the_pipeline() -> None:
    pipe, _ = in_family("sdxl", "")
    sizes = {
        "original_size": (512, 256),
        "crops_coords_top_left": (8, 16),
        "target_size": (128, 96),
    }
    cond = bridge.condition("a cat", model=pipe, **sizes)
    assert cond.add_time_ids.tolist() == [[512, 256, 8, 16, 128, 96]]
    wanted = draw(pipe, prompt="a cat", **sizes)
    assert np.abs(draw(pipe, **cond.kwargs()) - wanted).max() < 1e-4
    plain = draw(pipe, **bridge.condition("a cat", model=pipe).kwargs())
    assert np.abs(plain - wanted).max() > 1e-4


def test_height_and_width_are_sizes_too() -> None:
    pipe, _ = in_family("sdxl", "")
    cond = bridge.condition("a cat", model=pipe, height=32, width=48)
    assert cond.add_time_ids.tolist() == [[32, 48, 0, 0, 32, 48]]
    wanted = draw(pipe, prompt="a cat", height=32, width=48)
    found = draw(pipe, **cond.kwargs(), height=32, width=48)
    assert np.abs(found - wanted).max() < 1e-4


def test_a_model_of_oblong_pictures_has_its_height_first(tmp_path: Path) -> None:
    pipe = make("sdxl")
    pipe.unet.register_to_config(sample_size=[4, 6])
    pipe.save_pretrained(tmp_path)
    height, width = 4 * pipe.vae_scale_factor, 6 * pipe.vae_scale_factor
    for model in (pipe, tmp_path):
        cond = bridge.condition("a cat", model=model)
        assert cond.add_time_ids.tolist() == [[height, width, 0, 0, height, width]]


def test_add_time_ids_are_those_of_diffusers(pipes: dict[str, Any]) -> None:
    pipe = pipes["sdxl"]
    cond = bridge.condition(["a", "b"], model=pipe, crops_coords_top_left=(3, 4))
    wanted = pipe._get_add_time_ids((64, 64), (3, 4), (64, 64), torch.float32, 40)
    assert torch.equal(cond.add_time_ids, wanted.repeat(2, 1))


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("sized", [False, True])
def test_every_stock_pipeline_of_the_family_takes_the_kwargs(
    pipes: dict[str, Any], kind: str, sized: bool
) -> None:
    import inspect

    cond = bridge.condition("a cat", model=pipes[kind], height=64 if sized else None)
    family = "StableDiffusionXL" if kind == "sdxl" else "StableDiffusion"
    for task in (*TASKS, "InstructPix2Pix"):
        call = getattr(diffusers, f"{family}{task}Pipeline").__call__
        assert set(cond.kwargs()) <= set(inspect.signature(call).parameters), task


# ---------------------------------------------------------------- the result


def test_kwargs_of_sd_and_of_sdxl(pipes: dict[str, Any]) -> None:
    assert set(bridge.condition("a", model=pipes["sd15"]).kwargs()) == set(NAMES[:2])
    assert set(bridge.condition("a", model=pipes["sdxl"]).kwargs()) == set(NAMES)


def test_shapes(pipes: dict[str, Any]) -> None:
    cond = bridge.condition(["a", "b"], model=pipes["sdxl"])
    assert cond.prompt_embeds.shape == cond.negative_prompt_embeds.shape == (2, 77, 80)
    assert cond.pooled_prompt_embeds.shape == cond.negative_pooled_prompt_embeds.shape == (2, 40)
    assert not cond.negative_prompt_embeds.any()
    assert not cond.negative_pooled_prompt_embeds.any()
    assert len(cond) == 2
    single = bridge.condition("a", model=pipes["sd15"])
    assert single.pooled_prompt_embeds is single.add_time_ids is single.sizes is None


def test_repeat_and_to(pipes: dict[str, Any]) -> None:
    cond = bridge.condition(["a cat", "a dog"], model=pipes["sdxl"])
    four = cond.repeat(2)
    assert len(four) == 4
    assert torch.equal(four.prompt_embeds[0], four.prompt_embeds[1])
    assert torch.equal(four.prompt_embeds[2], cond.prompt_embeds[1])
    assert four.add_time_ids.shape == (4, 6)
    half = cond.to(dtype=torch.float16)
    assert half.prompt_embeds.dtype == half.pooled_prompt_embeds.dtype == torch.float16
    assert cond.prompt_embeds.dtype == torch.float32
    with pytest.raises(OptionError, match="num_images"):
        cond.repeat(0)


def test_rows_of_a_repeated_conditioning_know_their_prompt(pipes: dict[str, Any]) -> None:
    pair = bridge.condition(["a cat", "two dogs"], ["", "ugly"], model=pipes["sdxl"])
    for rows, at in (([2, 3], 1), ([1], 0), ([-1], 1)):
        part, whole = pair.repeat(2).take(rows), pair.rows(at, at + 1)
        assert part.plans == whole.plans * len(rows)
        assert part.negative_plans == whole.negative_plans * len(rows)
        assert part.traces == whole.traces * len(rows)
        assert torch.equal(part.prompt_embeds, whole.repeat(len(rows)).prompt_embeds)


def test_a_tower_runs_where_it_lies(pipes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    # As a pipeline on a GPU whose text encoders were left on the CPU, which diffusers runs.
    pipe = pipes["sdxl"]
    monkeypatch.setattr(type(pipe), "_execution_device", torch.device("meta"))
    monkeypatch.setattr(pipe, "vae", copy.deepcopy(pipe.vae).to("meta"))
    found = bridge.condition("a cat", "ugly", model=pipes["sdxl"])
    assert found.prompt_embeds.device.type == "meta"
    assert found.pooled_prompt_embeds is not None
    assert found.prompt_embeds.shape == (1, 77, found.prompt_embeds.shape[2])


def test_a_pipeline_with_offloaded_parts_says_where_it_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe = make("sd15")
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]

    def where() -> torch.device:
        return execution_device(pipe, modules, any(map(is_offloaded, modules)))

    here = pipe._execution_device
    monkeypatch.setattr(type(pipe), "_execution_device", torch.device("meta"))
    assert where() == here
    part = pipe.unet.mid_block
    add_hook_to_module(part, ModelHook())
    assert is_offloaded(pipe.unet)
    assert where().type == "meta"
    remove_hook_from_module(part)
    assert not is_offloaded(pipe.unet)
    assert where() == here
    apply_group_offloading(pipe.unet, onload_device=here, offload_type="leaf_level")
    assert where().type == "meta"


_CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["text_encoder", "unet", "vae"])
@pytest.mark.parametrize(
    "offload",
    [
        lambda part: apply_group_offloading(part, _CPU, offload_type="leaf_level"),
        lambda part: apply_group_offloading(part, _CPU, num_blocks_per_group=1),
        lambda part: cpu_offload(part, _CPU),
        lambda part: cpu_offload_with_hook(part, _CPU),
    ],
    ids=["leaves", "blocks", "sequential", "whole"],
)
def test_offloading_is_seen_of_a_pipeline_in_use(
    offload: Callable[[Any], object], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the way to a part's first tensor, without a walk through all of it at every call."""
    pipe = make("sd15")
    encoder = bridge.Encoder(pipe)
    assert encoder("a cat").prompt_embeds.device.type == "cpu"
    offload(getattr(pipe, name))
    monkeypatch.setattr(type(pipe), "_execution_device", torch.device("meta"))
    where = encoder._open().model().load().device
    assert where.type == "meta"


def test_dtype_and_device_options(pipes: dict[str, Any], folders: dict[str, Path]) -> None:
    for model in (pipes["sdxl"], folders["sdxl"]):
        cond = bridge.condition("a", model=model, dtype="bfloat16", device="cpu")
        assert cond.prompt_embeds.dtype == cond.pooled_prompt_embeds.dtype == torch.bfloat16
    assert pipes["sdxl"].text_encoder.dtype == torch.float32


def test_a_live_pipeline_is_not_changed(pipes: dict[str, Any]) -> None:
    pipe = pipes["sdxl"]
    before = {n: p.clone() for t in towers_of(pipe) for n, p in t.named_parameters()}
    grads = [p.requires_grad for t in towers_of(pipe) for p in t.parameters()]
    cond = bridge.condition("a cat", "ugly", model=pipe, clip_skip=1, dtype="float16")
    assert not cond.prompt_embeds.requires_grad
    assert grads == [p.requires_grad for t in towers_of(pipe) for p in t.parameters()]
    after = {n: p for t in towers_of(pipe) for n, p in t.named_parameters()}
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_report(pipes: dict[str, Any]) -> None:
    with quiet():
        cond = bridge.condition(["a cat", LONG], "<b>", model=pipes["sdxl"], dialect="plain")
    report = cond.report()
    assert [r.is_cut for r in report.prompts] == [False, True]
    assert report.is_cut
    assert [t.name for t in report.prompts[0].towers] == ["text_encoder", "text_encoder_2"]
    assert "prompt 1\ntext_encoder: 77 of 77 tokens" in str(report)
    assert "&lt;" in report.html() and "<b>&lt;" not in report.html()
    assert report.to_dict()["recipe"] == "sdxl"
    assert len(report.negatives) == 2
    assert bridge.condition("a", model=pipes["sdxl"]).report().negatives == ()


def test_cut_text_is_warned_of_once_for_both_towers(pipes: dict[str, Any]) -> None:
    with pytest.warns(TruncationWarning, match="prompt 1: .* tokens do not fit the 77") as seen:
        bridge.condition(["a cat", LONG], model=pipes["sdxl"], long_prompt="truncate")
    assert len(seen) == 1
    assert seen[0].filename == __file__


def test_a_prompt_of_ten_thousand_words(pipes: dict[str, Any]) -> None:
    with pytest.raises(PromptError, match=r"windows of 77 tokens.*truncate"):
        bridge.condition("word " * 10_000, model=pipes["sd15"])
    with quiet():
        cond = bridge.condition("word " * 10_000, model=pipes["sd15"], long_prompt="truncate")
    assert cond.prompt_embeds.shape == (1, 77, 32)
    assert cond.plans[0][0].cut_tokens > 30_000


# ---------------------------------------------------------------- folders and the cache


def test_towers_of_a_folder_are_kept_until_its_files_change(
    folders: dict[str, Path], pipes: dict[str, Any]
) -> None:
    bridge.release()
    first = bridge.condition("a", model=folders["sd15"], device="cpu")
    kit = open_model(folders["sd15"], device=torch.device("cpu"))
    assert kit.load().modules[0] is kit.load().modules[0]
    encoder = tiny_sd_pipeline("sd15", seed=5).text_encoder
    encoder.save_pretrained(folders["sd15"] / "text_encoder")
    second = bridge.condition("a", model=folders["sd15"], device="cpu")
    pipes["sd15"].text_encoder.save_pretrained(folders["sd15"] / "text_encoder")
    assert first.fingerprints != second.fingerprints


def test_tokenizers_of_loads_no_tower(folders: dict[str, Path], pipes: dict[str, Any]) -> None:
    for kind in KINDS:
        names = [name for name, _ in tokenizers_of(folders[kind])]
        assert names == ["text_encoder", "text_encoder_2"][: len(towers_of(pipes[kind]))]
    assert tokenizers_of(pipes["sdxl"])[1][1] is pipes["sdxl"].tokenizer_2
    assert tokenizers_of(folders["sdxl"])[1][1].pad_token_id == 0


def test_text_towers_alone_are_enough_if_the_size_is_given(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    import shutil

    for name in ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"):
        shutil.copytree(folders["sdxl"] / name, tmp_path / name)
    shutil.copy(folders["sdxl"] / "model_index.json", tmp_path)
    with pytest.raises(OptionError, match="give height and width"):
        bridge.condition("a", model=tmp_path, device="cpu")
    cond = bridge.condition("a", model=tmp_path, device="cpu", height=64, width=32)
    assert cond.add_time_ids.tolist() == [[64, 32, 0, 0, 64, 32]]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("text_encoder/config.json", "config.json is missing"),
        ("text_encoder/model.safetensors", "CLIPTextModel in .* cannot be loaded"),
        ("tokenizer_2", "neither tokenizer.json nor vocab.json"),
        ("model_index.json", "no model_index.json"),
    ],
)
def test_an_incomplete_folder(
    folders: dict[str, Path], tmp_path: Path, damage: str, said: str
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folders["sdxl"], copy)
    path = copy / damage
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    kind = UnsupportedModelError if damage == "model_index.json" else WeightsError
    with pytest.raises(kind, match=said):
        bridge.condition("a", model=copy, device="cpu")


def test_a_damaged_tokenizer(folders: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folders["sdxl"], copy)
    (copy / "tokenizer/tokenizer.json").write_text('{"half"')
    with pytest.raises(WeightsError, match=r"tokenizer in .* cannot be read"):
        tokenizers_of(copy)


# ---------------------------------------------------------------- recipes


def test_the_table_is_what_the_pipelines_do(pipes: dict[str, Any]) -> None:
    assert {"sd15", "sd21", "sdxl", "sdxl-refiner"} < set(RECIPES)
    for name, recipe in RECIPES.items():
        assert recipe.name == name
    for kind, pipe in pipes.items():
        assert open_model(pipe).recipe.name == kind.removesuffix("-encoded")


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"unet": "UNet2DConditionModel"},
        {"text_encoder": "CLIPTextModel"},
        {"text_encoder": "CLIPTextModel", "transformer": "FluxTransformer2DModel"},
        {"text_encoder": "T5EncoderModel", "unet": "Kandinsky3UNet"},
        {"text_encoder": "CLIPTextModelWithProjection", "unet": "UNet2DConditionModel"},
        {
            "text_encoder": "CLIPTextModel",
            "text_encoder_2": "T5EncoderModel",
            "unet": "UNet2DConditionModel",
        },
        {"text_encoder": None, "unet": "UNet2DConditionModel"},
    ],
)
def test_parts_without_a_recipe(parts: dict[str, str | None]) -> None:
    with pytest.raises(UnsupportedModelError, match="No recipe for this model"):
        find_recipe(parts, "gelu", "this model")


# ---------------------------------------------------------------- bad input


class Untouchable:
    """A model that must not be looked at: bad prompts are refused before it is."""

    @property
    def components(self) -> dict[str, Any]:
        raise AssertionError("the model was opened before the prompt was judged")


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        ({"prompt": "a\0b"}, PromptError, "NUL character at position 1"),
        ({"prompt": "\ud83d"}, PromptError, "surrogate"),
        ({"prompt": 3}, PromptError, "not int"),
        ({"prompt": None}, PromptError, "not NoneType"),
        ({"prompt": []}, PromptError, "empty list"),
        ({"prompt": ["a", None]}, PromptError, "prompt 1 must be a string"),
        ({"prompt": ["a", "b"], "negative_prompt": ["c"]}, PromptError, "1 texts for 2"),
        ({"prompt": "a", "negative_prompt": "b\0"}, PromptError, "negative_prompt has a NUL"),
        ({"prompt": "a", "negative_prompt": 0}, PromptError, "negative_prompt must be"),
        ({"prompt": "a", "clip_skip": -1}, OptionError, "clip_skip"),
        ({"prompt": "a", "clip_skip": 1.5}, OptionError, "clip_skip"),
        ({"prompt": "a", "clip_skip": True}, OptionError, "clip_skip"),
        ({"prompt": "a", "negative_clip_skip": -1}, OptionError, "negative_clip_skip must"),
        ({"prompt": "a", "height": 0}, OptionError, "height"),
        ({"prompt": "a", "width": "64"}, OptionError, "width"),
        ({"prompt": "a", "original_size": 64}, OptionError, "original_size"),
        ({"prompt": "a", "target_size": (0, 64)}, OptionError, "target_size"),
        ({"prompt": "a", "crops_coords_top_left": (-1, 0)}, OptionError, "crops_coords_top_left"),
        ({"prompt": "a", "dtype": "int8"}, OptionError, "dtype"),
        ({"prompt": "a", "dtype": "nonsense"}, OptionError, "dtype"),
        ({"prompt": "a", "device": "abacus"}, OptionError, "abacus"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_opened(
    call: dict[str, Any], kind: type[BridgeError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        bridge.condition(**call, model=Untouchable())


@pytest.mark.parametrize(
    ("kind", "call", "error", "said"),
    [
        ("sd15", {"clip_skip": 4}, OptionError, "allows 0 to 3"),
        ("sdxl", {"clip_skip": 3}, OptionError, "allows 0 to 2"),
        ("sdxl", {"negative_clip_skip": 3}, OptionError, "negative_clip_skip=3 reaches"),
        ("sd15", {"prompt_2": "b"}, OptionError, "need two towers"),
        ("sd15", {"original_size": (64, 64)}, OptionError, "belong to SDXL"),
        ("sdxl", {"negative_prompt_2": "b"}, PromptError, "give both"),
        ("sdxl", {"revision": "main"}, OptionError, "live pipeline"),
    ],
)
def test_options_without_meaning_for_the_model(
    pipes: dict[str, Any], kind: str, call: dict[str, Any], error: type[BridgeError], said: str
) -> None:
    with count_passes(towers_of(pipes[kind])) as passes, pytest.raises(error, match=said):
        bridge.condition("a", model=pipes[kind], **call)
    assert not any(passes)


def test_the_deepest_clip_skip_still_agrees(pipes: dict[str, Any]) -> None:
    for kind, skip in (("sd15", 3), ("sdxl", 2)):
        found = bridge.condition(
            "a cat", "ugly", model=pipes[kind], clip_skip=skip, dialect="plain"
        )
        for name, wanted in expected_of(pipes[kind], "a cat", "ugly", skip).items():
            assert relative(getattr(found, name), wanted) <= TOLERANCE, name


@pytest.mark.parametrize("model", [3, None, object(), ["sd15"]])
def test_what_is_no_model(model: object) -> None:
    with pytest.raises(UnknownModelError):
        bridge.condition("a", model=model)


def test_a_pipeline_without_its_text_encoder() -> None:
    pipe = tiny_sd_pipeline()
    pipe.text_encoder = None
    with pytest.raises(UnsupportedModelError, match="put it back"):
        bridge.condition("a", model=pipe)
    pipe = tiny_sd_pipeline()
    pipe.tokenizer = None
    with pytest.raises(UnsupportedModelError, match="without tokenizers"):
        bridge.condition("a", model=pipe)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_a_pipeline_whose_unet_cannot_take_what_its_towers_give(kind: str) -> None:
    """As ``from_pretrained`` without a dtype leaves a folder whose towers' configs say float16."""
    pipe = make(kind)
    last = pipe.text_encoder if kind == "sd15" else pipe.text_encoder_2
    for tower in towers_of(pipe):
        tower.to(torch.bfloat16)
    drawn: dict[str, Any] = {"num_inference_steps": 1, "output_type": "latent"}
    pipe.set_progress_bar_config(disable=True)
    own = bridge.condition("a cat", "ugly", model=pipe, dtype="bfloat16")
    with pytest.raises(RuntimeError, match="dtype"):
        pipe(**own.kwargs(), **drawn)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pipe(**bridge.condition("a cat", "ugly", model=pipe).kwargs(), **drawn)
    refusals: list[Callable[[], Any]] = [
        lambda: bridge.condition("a cat", model=pipe),
        lambda: bridge.Encoder(pipe)("a cat"),
        lambda: bridge.compose("a cat AND a dog", model=pipe),
        lambda: bridge.generate("a cat", model=pipe, steps=1),
    ]
    with count_passes([*towers_of(pipe), pipe.unet]) as passes:
        for refused in refusals:
            with pytest.raises(OptionError, match=r"bfloat16 .* float32.*pipe\.to\(torch\.float32"):
                refused()
    assert not any(passes)
    # diffusers casts to its last tower's dtype, so that one counts, and the UNet's after it.
    last.to(torch.float32)
    found = bridge.condition("a cat", "ugly", model=pipe)
    pipe(**found.kwargs(), **drawn)
    pipe.unet.to(torch.bfloat16)
    with pytest.raises(OptionError, match=r"float32 .* bfloat16"):
        bridge.condition("a cat", "ugly", model=pipe)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_without_a_gpu(pipes: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="0 CUDA devices"):
        bridge.condition("a", model=pipes["sd15"], device="cuda")


def test_sizes_default_to_each_other() -> None:
    for high, wide in itertools.product((None, 32), (None, 48)):
        sizes = SizeRequest(high, wide).filled((64, 96))
        assert sizes.target_size == sizes.original_size == (high or 64, wide or 96)
        assert sizes.given == (high is not None or wide is not None)
    named = SizeRequest(original_size=(1, 2), target_size=(3, 4)).filled(None)
    assert named.time_ids() == (1, 2, 0, 0, 3, 4)
