"""bridge.condition against diffusers' pipelines that have a T5 tower, at small size.

The tolerance is 1e-5 of the largest entry, as in test_conditioning.py: both sides run the same
modules in float32, but in batches of another size. Masks are equal.
"""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from support.comparisons import Compared, relative
from support.encoding import LONG, TOLERANCE, count_passes, quiet
from support.tiny_t5 import DRAWS, T5_KINDS, tiny_t5_encoder, tiny_t5_pipeline

import bridge
from bridge.encoding import (
    RECIPES,
    blend,
    find_recipe,
    load_conditioning,
    open_model,
    save_conditioning,
    tokenizers_of,
)
from bridge.errors import BridgeError, OptionError, PromptError, WeightsError
from bridge.prompt import Reader, TruncationWarning, plan_report

DIFFUSERS = f"diffusers {diffusers.__version__}"
EMBEDS, POOLED = ("prompt_embeds", "pooled_prompt_embeds")
NEGATIVES = ("negative_prompt_embeds", "negative_pooled_prompt_embeds")
MASKS = ("prompt_attention_mask", "negative_prompt_attention_mask")
# What each encode_prompt returns, in its order; None is what bridge leaves to the pipeline.
RETURNS: dict[str, tuple[str | None, ...]] = {
    "sd3": (EMBEDS, NEGATIVES[0], POOLED, NEGATIVES[1]),
    "sd3-no-t5": (EMBEDS, NEGATIVES[0], POOLED, NEGATIVES[1]),
    "chroma": (EMBEDS, None, MASKS[0], NEGATIVES[0], None, MASKS[1]),
    "cogview3plus": (EMBEDS, NEGATIVES[0]),
    "cogvideox": (EMBEDS, NEGATIVES[0]),
    "deepfloyd-if": (EMBEDS, NEGATIVES[0]),
    **dict.fromkeys(
        ("pixart-alpha", "pixart-sigma", "ltx", "ltx-condition", "allegro"),
        (EMBEDS, MASKS[0], NEGATIVES[0], MASKS[1]),
    ),
}
CASES = {
    "one": ("two red apples, left of a cat", "ugly"),
    "no negative": ("a cat", None),
    "empty negative": ("a cat", ""),
    "empty": ("", None),
    "batch": (["a cat", "two dogs", LONG], ["ugly", "", LONG]),
    "batch, one negative": (["a cat", "two dogs"], "ugly"),
    "capitals and marks": (
        [" Two CATS (red) \n", "İΣ ΟΔΟΣ"],
        ["[BAD:1.2]", "<unk></s><extra_id_0>"],
    ),
}


def short(kind: str, length: int = 16) -> dict[str, int]:
    """A length that saves time where the default one has nothing to say; IF's is fixed."""
    return {} if kind == "deepfloyd-if" else {"max_sequence_length": length}


@pytest.fixture(scope="module")
def pipes() -> dict[str, Any]:
    return {kind: tiny_t5_pipeline(kind) for kind in T5_KINDS}


@pytest.fixture(scope="module")
def folders(pipes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    # Names that say nothing: the recipe must come from the parts.
    found = {kind: root / f"model-{i}" for i, kind in enumerate(T5_KINDS)}
    for kind, folder in found.items():
        pipes[kind].save_pretrained(folder)
    return found


def towers_of(pipe: Any) -> list[Any]:
    names = ("text_encoder", "text_encoder_2", "text_encoder_3")
    return [t for name in names if (t := getattr(pipe, name, None)) is not None]


@torch.no_grad()
def expected_of(
    kind: str, pipe: Any, prompt: Any, negative: Any = None, **more: Any
) -> dict[str, torch.Tensor | None]:
    """``encode_prompt``, with its negatives broadcast as bridge does."""
    prompts = [prompt] if isinstance(prompt, str) else prompt
    negatives = [negative] * len(prompts) if isinstance(negative, str) else negative
    if kind == "flux":
        positive, pooled, _ = pipe.encode_prompt(prompts, more.pop("prompt_2", None), **more)
        found = {EMBEDS: positive, POOLED: pooled, **dict.fromkeys(NEGATIVES)}
        if negatives is not None:
            found |= dict(zip(NEGATIVES, pipe.encode_prompt(negatives, **more)[:2], strict=True))
        return found
    if kind.startswith("sd3"):
        more = {"prompt_2": None, "prompt_3": None, **more}
    if negatives is None and kind in ("pixart-alpha", "pixart-sigma", "allegro"):
        negatives = ""
    out = pipe.encode_prompt(prompts, negative_prompt=negatives, **more)
    return {name: t for name, t in zip(RETURNS[kind], out, strict=True) if name is not None}


def check(
    feature: str, found: Any, wanted: dict[str, torch.Tensor | None], compared: Compared
) -> None:
    for name, tensor in wanted.items():
        ours = getattr(found, name)
        if tensor is None:
            assert ours is None, name
        elif name in MASKS:
            assert ours.dtype == tensor.dtype, name
            assert torch.equal(ours, tensor), name
        else:
            compared(feature, DIFFUSERS, ours, tensor, TOLERANCE)
    for name in {EMBEDS, POOLED, *NEGATIVES, *MASKS} - wanted.keys():
        assert getattr(found, name) is None, name


# ---------------------------------------------------------------- equal to diffusers


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", T5_KINDS)
def test_equals_encode_prompt_in_one_pass(
    pipes: dict[str, Any], kind: str, case: str, compared: Compared
) -> None:
    pipe, (prompt, negative) = pipes[kind], CASES[case]
    with count_passes(towers_of(pipe)) as passes, quiet():
        found = bridge.condition(prompt, negative, model=pipe, dialect="plain", **short(kind))
    assert passes == [1] * len(passes)
    wanted = expected_of(kind, pipe, prompt, negative, **short(kind))
    check(found.recipe.name, found, wanted, compared)


@pytest.mark.parametrize("kind", T5_KINDS)
def test_equals_encode_prompt_at_the_length_of_the_pipeline(
    pipes: dict[str, Any], kind: str, compared: Compared
) -> None:
    prompt, negative = "two dogs", LONG * 5
    with quiet():
        found = bridge.condition(prompt, negative, model=pipes[kind], dialect="plain")
    wanted = expected_of(kind, pipes[kind], prompt, negative)
    check(found.recipe.name, found, wanted, compared)
    plan = found.negative_plans[0][-1]
    assert plan.tower == open_model(pipes[kind]).recipe.towers[-1].component
    assert plan.cut


@pytest.mark.parametrize("negative", ["ugly", None])
@pytest.mark.parametrize("kind", T5_KINDS)
def test_a_folder_equals_its_pipeline(
    pipes: dict[str, Any],
    folders: dict[str, Path],
    kind: str,
    negative: str | None,
    compared: Compared,
) -> None:
    prompt, more = ["a cat", "Two dogs"], short(kind)
    found = bridge.condition(prompt, negative, model=folders[kind], device="cpu", **more)
    assert found.recipe.name == kind.removesuffix("-no-t5")
    wanted = expected_of(kind, pipes[kind], prompt, negative, **more)
    check(found.recipe.name, found, wanted, compared)
    live = bridge.condition(prompt, negative, model=pipes[kind], **more)
    assert found.fingerprints == live.fingerprints
    assert found.negative_plans == live.negative_plans
    assert [plan.tower for plan in found.plans[0]] == list(found.fingerprints)


@pytest.mark.parametrize("length", [1, 7])
@pytest.mark.parametrize("kind", ["sd3", "sd3-no-t5", "flux", "pixart-alpha", "chroma"])
def test_max_sequence_length(
    pipes: dict[str, Any], kind: str, length: int, compared: Compared
) -> None:
    prompt, negative = ["two red apples and a cat", "a"], "a dog, a dog, a dog"
    with quiet():
        found = bridge.condition(
            prompt, negative, model=pipes[kind], dialect="plain", max_sequence_length=length
        )
    wanted = expected_of(kind, pipes[kind], prompt, negative, max_sequence_length=length)
    check(found.recipe.name, found, wanted, compared)


@pytest.mark.parametrize("clip_skip", [0, 1, 2])
@pytest.mark.parametrize("kind", ["sd3", "sd3-no-t5"])
def test_clip_skip_of_sd3(
    pipes: dict[str, Any], kind: str, clip_skip: int, compared: Compared
) -> None:
    more = short(kind)
    more["dialect"] = "plain"
    found = bridge.condition("a cat", "ugly", model=pipes[kind], clip_skip=clip_skip, **more)
    wanted = expected_of(kind, pipes[kind], "a cat", "ugly", clip_skip=clip_skip, **short(kind))
    check("sd3, clip-skip", found, wanted, compared)
    plain = bridge.condition("a cat", "ugly", model=pipes[kind], **more)
    assert torch.equal(plain.prompt_embeds, found.prompt_embeds) == (clip_skip == 0)
    # T5's states come after those of the CLIP towers and skip nothing.
    assert torch.allclose(plain.prompt_embeds[:, 77:], found.prompt_embeds[:, 77:], atol=1e-6)
    assert torch.allclose(plain.negative_prompt_embeds, found.negative_prompt_embeds, atol=1e-6)


@pytest.mark.parametrize(
    "more",
    [
        {"prompt_2": "two dogs"},
        {"prompt_3": "red"},
        {"prompt_2": "two dogs", "prompt_3": "red", "negative_prompt_3": "apples"},
        {"negative_prompt_2": "apples", "negative_prompt_3": "of"},
        {"prompt_2": "", "prompt_3": ""},
    ],
)
def test_texts_of_the_later_towers_own(
    pipes: dict[str, Any], more: dict[str, str], compared: Compared
) -> None:
    for negative in ("ugly", None):
        found = bridge.condition("a cat", negative, model=pipes["sd3"], **more, **short("sd3"))
        theirs = {name: [text] if "negative" in name else text for name, text in more.items()}
        wanted = expected_of("sd3", pipes["sd3"], "a cat", negative, **theirs, **short("sd3"))
        check("sd3, prompt_2 and prompt_3", found, wanted, compared)
    own = [plan.source for plan in found.plans[0]]
    assert own == ["a cat", more.get("prompt_2") or "a cat", more.get("prompt_3") or "a cat"]


def test_a_second_prompt_for_flux(pipes: dict[str, Any], compared: Compared) -> None:
    more = {"prompt_2": "two dogs", **short("flux")}
    found = bridge.condition("a cat", model=pipes["flux"], **more)
    wanted = expected_of("flux", pipes["flux"], "a cat", **more)
    check("flux, prompt_2", found, wanted, compared)
    assert found.negative_plans == ()
    assert set(found.kwargs()) == {EMBEDS, POOLED}


@pytest.mark.parametrize("kind", ["sd3", "flux", "pixart-alpha", "chroma"])
def test_half_precision(kind: str, folders: dict[str, Path]) -> None:
    pipe = tiny_t5_pipeline(kind).to(torch.bfloat16)
    found = bridge.condition("a cat", "ugly", model=pipe, **short(kind))
    for name, wanted in expected_of(kind, pipe, "a cat", "ugly", **short(kind)).items():
        ours = getattr(found, name)
        assert ours.dtype == wanted.dtype, name
        # bfloat16 has 8 bits; three layers of T5 add up a few units in the last place.
        assert relative(ours.float(), wanted.float()) <= 2**-6, name
    more = {"model": folders[kind], "device": "cpu", **short(kind)}
    loaded = bridge.condition("a cat", dtype="bfloat16", **more)
    assert loaded.prompt_embeds.dtype == torch.bfloat16
    cast = bridge.condition("a cat", **more).to(dtype=torch.float16)
    assert cast.prompt_embeds.dtype == torch.float16
    if kind == "pixart-alpha":
        assert cast.prompt_attention_mask.dtype == torch.int64


def test_towers_of_two_dtypes() -> None:
    """T5 in bfloat16 beside CLIP in float32, as people run FLUX.1 and SD 3 to save memory."""
    for kind in ("sd3", "flux"):
        pipe = tiny_t5_pipeline(kind)
        t5 = towers_of(pipe)[-1].to(torch.bfloat16)
        found = bridge.condition("a cat", "ugly", model=pipe, **short(kind))
        assert t5.dtype == torch.bfloat16
        for name, wanted in expected_of(kind, pipe, "a cat", "ugly", **short(kind)).items():
            assert getattr(found, name).dtype == wanted.dtype, (kind, name)
            assert relative(getattr(found, name), wanted) <= 2**-6, (kind, name)


def test_equal_texts_are_encoded_once(pipes: dict[str, Any]) -> None:
    pipe, seen = pipes["sd3"], []
    hooks = [
        tower.register_forward_hook(lambda _m, args, _out: seen.append(tuple(args[0].shape)))
        for tower in towers_of(pipe)
    ]
    found = bridge.condition(["a cat"] * 5 + ["a dog"], "", model=pipe)
    for hook in hooks:
        hook.remove()
    assert seen == [(3, 77), (3, 77), (3, 256)]
    assert torch.equal(found.prompt_embeds[0], found.prompt_embeds[4])


# ---------------------------------------------------------------- pictures


def draw(pipe: Any, **call: Any) -> np.ndarray:
    name = type(pipe).__name__
    if "PixArt" in name:
        call |= {"use_resolution_binning": False, "clean_caption": False}
    if name == "FluxPipeline":
        call |= {"true_cfg_scale": 4.0}
    return pipe(
        num_inference_steps=3,
        guidance_scale=4.0,
        height=32,
        width=32,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
        **call,
    ).images


@pytest.mark.parametrize("kind", DRAWS)
def test_stock_pipelines_draw_the_same_picture(pipes: dict[str, Any], kind: str) -> None:
    pipe = pipes[kind]
    for negative in ("ugly", None):
        # PixArt's own default is the empty text.
        theirs = "" if negative is None and "pixart" in kind else negative
        wanted = draw(pipe, prompt="two red Apples", negative_prompt=theirs, **short(kind))
        cond = bridge.condition(
            "two red Apples", negative, model=pipe, dialect="plain", **short(kind)
        )
        found = draw(pipe, **cond.kwargs())
        assert found.shape == wanted.shape == (1, 32, 32, 3)
        assert np.isfinite(wanted).all()
        # Pixels lie in 0..1; below half of 1/255 the saved pictures are the same.
        assert np.abs(found - wanted).max() < 1e-4
    other = draw(pipe, **bridge.condition("a dog", model=pipe, **short(kind)).kwargs())
    assert np.abs(other - wanted).max() > 1e-4


def test_batches_and_several_images(pipes: dict[str, Any]) -> None:
    pipe, prompts = pipes["pixart-alpha"], ["a cat", "two dogs, two dogs"]
    wanted = draw(pipe, prompt=prompts, num_images_per_prompt=2)
    cond = bridge.condition(prompts, model=pipe)
    for found in (
        draw(pipe, **cond.kwargs(), num_images_per_prompt=2),
        draw(pipe, **cond.kwargs(num_images=2)),
    ):
        assert found.shape == (4, 32, 32, 3)
        assert np.abs(found - wanted).max() < 1e-4


@pytest.mark.parametrize("kind", T5_KINDS)
def test_every_call_takes_the_kwargs(pipes: dict[str, Any], kind: str) -> None:
    import inspect

    call = type(pipes[kind]).__call__
    cond = bridge.condition("a cat", "ugly", model=pipes[kind], **short(kind))
    assert set(cond.kwargs()) <= set(inspect.signature(call).parameters)
    if kind == "flux":
        # These have no negatives at all.
        for name in ("FluxFillPipeline", "FluxControlPipeline", "FluxImg2ImgPipeline"):
            taken = inspect.signature(getattr(diffusers, name).__call__).parameters
            assert set(bridge.condition("a cat", model=pipes[kind]).kwargs()) <= set(taken)


# ---------------------------------------------------------------- schedules


def test_a_schedule_changes_states_and_pooled_of_sd3(pipes: dict[str, Any]) -> None:
    pipe, seen = pipes["sd3"], []
    plan = bridge.schedule("a [cat:dog:1]", "ugly", steps=3, model=pipe)
    assert len(plan.conditionings) == 2

    def note(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        seen.append((kwargs["encoder_hidden_states"], kwargs["pooled_projections"]))

    hook = pipe.transformer.register_forward_pre_hook(note, with_kwargs=True)
    draw(pipe, **plan.kwargs())
    hook.remove()
    for step, (states, pooled) in enumerate(seen, 1):
        here = plan.at(step)
        assert torch.equal(states, torch.cat([here.negative_prompt_embeds, here.prompt_embeds]))
        both = [here.negative_pooled_prompt_embeds, here.pooled_prompt_embeds]
        assert torch.equal(pooled, torch.cat(both))
    assert not torch.equal(seen[1][1], seen[2][1])
    assert len(seen) == 3


def test_a_schedule_where_the_pipeline_cannot_follow(pipes: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="flux lets no callback"):
        bridge.schedule("a [cat:dog:0.5]", steps=4, model=pipes["flux"])
    still = bridge.schedule("a cat", steps=4, model=pipes["flux"])
    assert set(still.kwargs()) == {EMBEDS, POOLED}


# ---------------------------------------------------------------- the result


@pytest.mark.parametrize("kind", ["sd3", "sd3-no-t5", "flux", "pixart-sigma", "ltx"])
def test_save_and_load(pipes: dict[str, Any], kind: str, tmp_path: Path) -> None:
    for negative in ("ugly", None):
        cond = bridge.condition(["Two cats", "a dog"], negative, model=pipes[kind], **short(kind))
        path = save_conditioning(cond, tmp_path / "cond.safetensors")
        back = load_conditioning(path, model=pipes[kind])
        assert back.recipe.name == cond.recipe.name
        assert back.plans == cond.plans
        assert back.kwargs().keys() == cond.kwargs().keys()
        for name, value in cond.kwargs().items():
            same = back.kwargs()[name]
            assert same is None if value is None else torch.equal(same, value), name


def test_rows_and_repeats_keep_their_masks(pipes: dict[str, Any]) -> None:
    cond = bridge.condition(["a cat", "two red dogs"], model=pipes["pixart-alpha"])
    assert torch.equal(cond.rows(1, 2).prompt_attention_mask, cond.prompt_attention_mask[1:])
    assert torch.equal(cond.repeat(2).prompt_attention_mask[2], cond.prompt_attention_mask[1])


def test_parts_of_a_prompt_have_their_masks(pipes: dict[str, Any]) -> None:
    def of(prompt: str, negative: str = "") -> Any:
        return bridge.condition(prompt, negative, model=pipes["pixart-alpha"], dialect="compel")

    one, two = of("a cat"), of("two red dogs")
    both = of('("a cat", "two red dogs").and()', "ugly")
    ends = torch.cat([one.prompt_attention_mask, two.prompt_attention_mask], dim=1)
    assert torch.equal(both.prompt_attention_mask, ends)
    empty = torch.cat([of("ugly").prompt_attention_mask, of("").prompt_attention_mask], dim=1)
    assert torch.equal(both.negative_prompt_attention_mask, empty)
    assert both.prompt_embeds.shape[1] == both.prompt_attention_mask.shape[1] == 240
    mixed = of('("a cat", "two red dogs").blend(0.5, 0.5)')
    assert torch.equal(mixed.prompt_attention_mask, two.prompt_attention_mask)


def test_masks_follow_their_states_through_arithmetic(pipes: dict[str, Any]) -> None:
    options: dict[str, Any] = {"model": pipes["pixart-alpha"], **short("pixart-alpha")}
    one = bridge.condition("a cat", "two red dogs", **options)
    two = bridge.condition("two red dogs", "", **options)
    for name in MASKS:
        a, b = getattr(one, name), getattr(two, name)
        assert not torch.equal(a, b)
        for mixed in (blend([one, two], [1, 1]), one.interpolate(two, 0.5)):
            assert torch.equal(getattr(mixed, name), torch.maximum(a, b)), name
        ends = getattr(one.concatenate(two), name)
        assert torch.equal(ends, torch.cat([a, b], 1)), name


# ---------------------------------------------------------------- recipes


def test_the_table_names_each_kind(pipes: dict[str, Any]) -> None:
    for kind, pipe in pipes.items():
        assert open_model(pipe).recipe.name == kind.removesuffix("-no-t5")
    assert {kind.removesuffix("-no-t5") for kind in T5_KINDS} < set(RECIPES)
    assert all(name == recipe.name for name, recipe in RECIPES.items())


def test_pixart_folders_of_old_name_another_class() -> None:
    parts = {"text_encoder": "T5EncoderModel", "transformer": "Transformer2DModel"}
    assert find_recipe(parts, "", "it").name == "pixart-alpha"
    assert find_recipe(parts, "", "it", ["PixArtSigmaPAGPipeline"]).name == "pixart-sigma"


@pytest.mark.parametrize(
    "parts",
    [
        {"text_encoder": "T5EncoderModel", "transformer": "MochiTransformer3DModel"},
        {"text_encoder": "T5EncoderModel", "transformer": "FluxTransformer2DModel"},
        {"text_encoder": "CLIPTextModel", "transformer": "SD3Transformer2DModel"},
        {"text_encoder_2": "T5EncoderModel", "transformer": "FluxTransformer2DModel"},
    ],
)
def test_parts_without_a_recipe(parts: dict[str, str]) -> None:
    with pytest.raises(BridgeError, match=r"No recipe for this model: .*Transformer"):
        find_recipe(parts, "quick_gelu", "this model")


# ---------------------------------------------------------------- the token report


def test_the_report_covers_t5(pipes: dict[str, Any]) -> None:
    cond = bridge.condition("a (Two cats:1.5), 🎈", model=pipes["flux"])
    clip, t5 = cond.report().prompts[0].towers
    assert (clip.limit, t5.limit, t5.windows) == (77, 256, 1)
    rows = [row for row in t5.rows if not row.special]
    assert "".join(row.text for row in rows if row.part == 1) == "aTwocats,🎈"
    source = "a (Two cats:1.5), 🎈"
    assert all(source[row.start : row.end] == row.text for row in rows)
    assert {row.weight for row in rows if row.text in ("cat", "s")} == {1.5}
    pairs = tokenizers_of(pipes["flux"])
    assert plan_report(source, pairs).towers[1] == t5


def test_tokenizers_of_t5_say_how_they_are_read(pipes: dict[str, Any]) -> None:
    ((name, reader),) = tokenizers_of(pipes["pixart-sigma"])
    assert name == "text_encoder"
    assert reader == Reader(pipes["pixart-sigma"].tokenizer, 300, lower=True)


def test_text_that_t5_cuts_off(pipes: dict[str, Any]) -> None:
    with pytest.warns(
        TruncationWarning, match="4 tokens do not fit the 9 of text_encoder_2 .*', a dog'"
    ) as seen:
        cond = bridge.condition(
            "a (Two:1.2) red cat, a dog", model=pipes["flux"], max_sequence_length=9
        )
    assert len(seen) == 1
    assert cond.report().is_cut


def test_long_prompts_fill_windows_of_clip_and_one_of_t5(pipes: dict[str, Any]) -> None:
    words = "red cat, " * 60
    with quiet():
        cond = bridge.condition(words + " BREAK two dogs", "ugly", model=pipes["sd3"])
    windows = [len(plan.windows) for plan in cond.plans[0]]
    # 180 tokens of text fill three windows of 75, what follows BREAK the fourth.
    assert windows == [4, 4, 1]
    assert cond.prompt_embeds.shape[1] == 77 * 4 + 256
    assert cond.negative_prompt_embeds.shape == cond.prompt_embeds.shape


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("length", [0, -1, 513, 1.5, "256", True])
def test_a_length_out_of_range_is_refused_before_the_model_is_opened(length: Any) -> None:
    with pytest.raises(OptionError, match="max_sequence_length must be a whole number from 1"):
        bridge.condition("a", model=object(), max_sequence_length=length)


@pytest.mark.parametrize(
    ("kind", "call", "error", "said"),
    [
        ("flux", {"clip_skip": 1}, OptionError, "clip_skip needs a CLIP tower"),
        ("pixart-alpha", {"clip_skip": 1}, OptionError, "clip_skip needs a CLIP tower"),
        ("sd3", {"clip_skip": 3}, OptionError, "allows 0 to 2"),
        ("pixart-alpha", {"prompt_2": "b"}, OptionError, "need two towers; pixart-alpha has one"),
        ("flux", {"prompt_3": "b"}, OptionError, "need three towers; flux has two"),
        ("sd3-no-t5", {"prompt_3": "b"}, OptionError, "need three towers; sd3 has two"),
        ("flux", {"negative_prompt_2": "b"}, PromptError, "give both"),
        ("sd3", {"original_size": (64, 64)}, OptionError, "belong to SDXL"),
    ],
)
def test_options_without_meaning_for_the_model(
    pipes: dict[str, Any], kind: str, call: dict[str, Any], error: type[BridgeError], said: str
) -> None:
    with count_passes(towers_of(pipes[kind])) as passes, pytest.raises(error, match=said):
        bridge.condition("a", model=pipes[kind], **call)
    assert not any(passes)


def test_max_sequence_length_without_t5() -> None:
    from support.tiny_models import tiny_sd_pipeline

    with pytest.raises(OptionError, match="belongs to T5; sd15 has no such tower"):
        bridge.condition("a", model=tiny_sd_pipeline(), max_sequence_length=77)


def test_a_tokenizer_without_files_or_with_damaged_ones(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folders["ltx"], copy)
    (copy / "tokenizer/tokenizer.json").unlink()
    with pytest.raises(BridgeError, match=r"neither tokenizer.json nor spiece.model"):
        tokenizers_of(copy)
    (copy / "tokenizer/spiece.model").write_bytes(b"no model")
    with pytest.raises(WeightsError, match=r"tokenizer in .* cannot be read"):
        tokenizers_of(copy)


def test_no_warning_where_nothing_is_cut(pipes: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", TruncationWarning)
        for kind in T5_KINDS:
            bridge.condition("a cat", model=pipes[kind], **short(kind))


def test_layers_of_t5() -> None:
    """Any layer can be had, with or without the final norm; transformers' last one is normed."""
    from bridge.towers import TEXT_TOWERS, Layer

    encoder = tiny_t5_encoder()
    ids = torch.tensor([[5, 6, 7, 1]])
    wanted = encoder(ids, output_hidden_states=True).hidden_states
    layers = tuple(Layer(i, norm) for i, norm in itertools.product((-2, -3), (False, True)))
    out = TEXT_TOWERS["T5EncoderModel"](encoder, ids, (Layer(), *layers))
    assert out.pooled is None
    assert torch.equal(out.hidden[0], wanted[-1])
    assert torch.equal(out.hidden[1], wanted[-2])
    assert torch.equal(out.hidden[2], encoder.encoder.final_layer_norm(wanted[-2]))
    assert torch.equal(out.hidden[3], wanted[-3])
    with pytest.raises(OptionError, match="with its norm only"):
        TEXT_TOWERS["T5EncoderModel"](encoder, ids, (Layer(-1, False),))
