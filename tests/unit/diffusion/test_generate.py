"""bridge.generate on tiny random SD and SDXL pipelines: stock results, seeds, previews, stops."""

from __future__ import annotations

import inspect
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from support.tiny_models import (
    LATENT_SIZE,
    PICTURE_SIZE,
    tiny_sd_pipeline,
    tiny_sdxl_pipeline,
    tiny_vae,
)

import bridge
from bridge.diffusion import (
    Generation,
    StepPreview,
    StopGeneration,
    drawing,
    generate,
    load_pipeline,
)
from bridge.diffusion import preview as preview_module
from bridge.diffusion.options import checked_options
from bridge.diffusion.preview import fit_latent_factors, linear_rgb, render, watch_clean_estimate
from bridge.errors import (
    BridgeError,
    OptionError,
    PromptError,
    UnknownModelError,
    UnsupportedModelError,
    WeightsError,
)
from bridge.towers import TextTower

PROMPT = "two red apples left of a cat"
MAKERS = {
    "sd15": tiny_sd_pipeline,
    "sd21": lambda: tiny_sd_pipeline("sd21"),
    "sdxl": tiny_sdxl_pipeline,
}


@pytest.fixture(scope="module", params=MAKERS)
def pipe(request: pytest.FixtureRequest) -> Any:
    made = MAKERS[request.param]()
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def sd() -> Any:
    return tiny_sd_pipeline()


@pytest.fixture(scope="module")
def sd_folder(sd: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd") / "tiny-sd"
    sd.save_pretrained(folder)
    return folder


def arrays(result: Generation) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=int) for image in result.images])


def seeds(*values: int) -> list[torch.Generator]:
    return [torch.Generator("cpu").manual_seed(value) for value in values]


# -- equal to stock -----------------------------------------------------------------------


@pytest.mark.parametrize("negative", [None, "a dog"])
@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_pictures_equal_the_stock_pipeline(pipe: Any, negative: Any, guidance: float) -> None:
    want = pipe(
        PROMPT,
        negative_prompt=negative,
        num_inference_steps=3,
        guidance_scale=guidance,
        generator=seeds(7),
    ).images[0]
    got = generate(
        PROMPT,
        negative_prompt=negative,
        model=pipe,
        seed=7,
        steps=3,
        guidance_scale=guidance,
    )
    assert got.images[0].size == (PICTURE_SIZE, PICTURE_SIZE)
    assert np.abs(arrays(got)[0] - np.asarray(want, dtype=int)).max() <= 1


def test_guidance_rescale_equals_stock(sd: Any) -> None:
    options = {"guidance_scale": 9.0, "guidance_rescale": 0.7}
    sd.set_progress_bar_config(disable=True)
    want = sd(PROMPT, num_inference_steps=2, generator=seeds(1), **options).images[0]
    got = generate(PROMPT, model=sd, seed=1, steps=2, **options)
    assert np.abs(arrays(got)[0] - np.asarray(want, dtype=int)).max() <= 1
    plain = generate(PROMPT, model=sd, seed=1, steps=2, guidance_scale=9.0)
    assert not np.array_equal(arrays(got), arrays(plain))


def test_another_size_equals_stock(pipe: Any) -> None:
    options = {"height": 48, "width": 80}
    want = pipe(PROMPT, num_inference_steps=2, generator=seeds(1), guidance_scale=4.0, **options)
    got = generate(PROMPT, model=pipe, seed=1, steps=2, guidance_scale=4.0, **options)
    assert got.images[0].size == (80, 48)
    assert np.abs(arrays(got)[0] - np.asarray(want.images[0], dtype=int)).max() <= 1


# -- seeds and batches --------------------------------------------------------------------


def test_a_seed_means_one_picture(pipe: Any) -> None:
    first = generate(PROMPT, model=pipe, seed=3, steps=2)
    again = generate(PROMPT, model=pipe, seed=3, steps=2)
    other = generate(PROMPT, model=pipe, seed=4, steps=2)
    assert np.array_equal(arrays(first), arrays(again))
    assert not np.array_equal(arrays(first), arrays(other))


def test_a_picture_of_a_batch_equals_its_single_run(pipe: Any) -> None:
    batch = generate(PROMPT, model=pipe, seed=10, steps=2, num_images=3)
    assert batch.seeds == (10, 11, 12)
    for index, seed in enumerate(batch.seeds):
        single = generate(PROMPT, model=pipe, seed=seed, steps=2)
        assert np.abs(arrays(batch)[index] - arrays(single)[0]).max() <= 1


def test_several_prompts_with_their_negatives(pipe: Any) -> None:
    prompts, negatives = ["a cat", "the dog in red"], ["dog", ""]
    batch = generate(
        prompts, negative_prompt=negatives, model=pipe, seed=[5, 9, 5, 9], steps=2, num_images=2
    )
    assert batch.seeds == (5, 9, 5, 9)
    for index in range(4):
        single = generate(
            prompts[index // 2],
            negative_prompt=negatives[index // 2],
            model=pipe,
            seed=batch.seeds[index],
            steps=2,
        )
        assert np.abs(arrays(batch)[index] - arrays(single)[0]).max() <= 1


def test_no_seed_picks_one_and_reports_it(sd: Any) -> None:
    first = generate(PROMPT, model=sd, steps=1)
    assert first.seeds != generate(PROMPT, model=sd, steps=1).seeds
    again = generate(PROMPT, model=sd, steps=1, seed=first.seeds[0])
    assert np.array_equal(arrays(first), arrays(again))


def test_the_live_pipeline_is_left_as_it_was(sd: Any) -> None:
    scheduler, config = sd.scheduler, dict(getattr(sd, "_progress_bar_config", {}))
    before = dict(vars(scheduler))
    generate(PROMPT, model=sd, seed=0, steps=2, on_step=lambda preview: False)
    assert sd.scheduler is scheduler
    assert scheduler.step.__func__ is type(scheduler).step
    assert set(vars(scheduler)) == set(before)
    assert dict(getattr(sd, "_progress_bar_config", {})) == config
    assert not getattr(sd, "_interrupt", False)


def test_two_threads_draw_with_one_pipeline(sd: Any) -> None:
    want = {seed: arrays(generate(PROMPT, model=sd, seed=seed, steps=4)) for seed in (1, 2)}
    got: dict[int, np.ndarray] = {}

    def work(seed: int) -> None:
        got[seed] = arrays(generate(PROMPT, model=sd, seed=seed, steps=4))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in want]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in want:
        assert np.abs(got[seed] - want[seed]).max() <= 1


def test_no_bars_on_the_terminal(sd: Any, capfd: pytest.CaptureFixture[str]) -> None:
    generate(PROMPT, model=sd, seed=0, steps=2)
    assert capfd.readouterr().err == ""
    generate(PROMPT, model=sd, seed=0, steps=2, progress=True)
    assert "2/2" in capfd.readouterr().err


# -- previews and stopping ----------------------------------------------------------------


def test_previews_come_every_step_and_end_at_the_picture(pipe: Any) -> None:
    seen: list[StepPreview] = []
    result = generate(PROMPT, model=pipe, seed=2, steps=4, num_images=2, on_step=seen.append)
    assert [(p.step, p.steps) for p in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for preview in seen:
        assert preview.latents.shape == (2, 4, LATENT_SIZE, LATENT_SIZE)
        assert [image.size for image in preview.images] == [(PICTURE_SIZE, PICTURE_SIZE)] * 2
        assert all(image.mode == "RGB" for image in preview.images)
    # The last estimate of the clean picture is all but the picture.
    last = np.stack([np.asarray(image, dtype=int) for image in seen[-1].images])
    first = np.stack([np.asarray(image, dtype=int) for image in seen[0].images])
    assert np.abs(last - arrays(result)).mean() < np.abs(first - arrays(result)).mean()
    assert np.abs(last - arrays(result)).mean() < 4
    assert (result.steps_done, result.stopped) == (4, False)


def test_watching_does_not_change_the_picture(pipe: Any) -> None:
    watched = generate(PROMPT, model=pipe, seed=2, steps=3, on_step=lambda p: p.images)
    plain = generate(PROMPT, model=pipe, seed=2, steps=3)
    assert np.array_equal(arrays(watched), arrays(plain))


def _stop_by_value(preview: StepPreview) -> bool:
    return preview.step < 2


def _stop_by_exception(preview: StepPreview) -> None:
    if preview.step == 2:
        raise StopGeneration


@pytest.mark.parametrize("on_step", [_stop_by_value, _stop_by_exception])
def test_stopping_early_gives_the_picture_so_far(pipe: Any, on_step: Any) -> None:
    last: list[StepPreview] = []

    def step(preview: StepPreview) -> object:
        last.append(preview)
        return on_step(preview)

    result = generate(PROMPT, model=pipe, seed=2, steps=9, on_step=step)
    assert (result.steps_done, result.stopped) == (2, True)
    shown = np.asarray(last[-1].images[0], dtype=int)
    assert np.abs(arrays(result)[0] - shown).max() <= 1


def test_stopping_at_the_last_step_is_no_stop(sd: Any) -> None:
    result = generate(PROMPT, model=sd, seed=2, steps=2, on_step=lambda p: p.step < 2)
    assert (result.steps_done, result.stopped) == (2, False)
    assert np.array_equal(arrays(result), arrays(generate(PROMPT, model=sd, seed=2, steps=2)))


def test_an_error_in_on_step_passes_through(sd: Any) -> None:
    def breaks(preview: StepPreview) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        generate(PROMPT, model=sd, seed=2, steps=2, on_step=breaks)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_clean_estimate_without_the_schedulers_help(prediction: str) -> None:
    """DPMSolver reports no pred_original_sample; fed the truth, the estimate is the truth."""
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(prediction_type=prediction)
    scheduler.set_timesteps(10)
    estimate = watch_clean_estimate(scheduler)
    clean, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t = scheduler.timesteps[3]
    alpha = scheduler.alphas_cumprod[t]
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    output = {
        "epsilon": noise,
        "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * clean,
        "sample": clean,
    }[prediction]
    assert estimate() is None
    scheduler.step(output, t, noisy, return_dict=False)
    found = estimate()
    assert found is not None
    assert torch.allclose(found, clean, atol=1e-4)


def test_an_unscaled_sampler_without_estimates_falls_back_to_its_latents() -> None:
    from diffusers import KDPM2DiscreteScheduler

    pipe = tiny_sd_pipeline()
    pipe.scheduler = KDPM2DiscreteScheduler.from_config(pipe.scheduler.config)
    seen: list[StepPreview] = []
    generate(PROMPT, model=pipe, seed=0, steps=2, on_step=seen.append)
    assert seen[-1].step == seen[-1].steps
    assert seen[-1].images[0].size == (PICTURE_SIZE, PICTURE_SIZE)


def test_linear_preview_of_a_big_vae(sd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview_module, "_SMALL_VAE", 0)
    images = render(sd, torch.randn(3, 4, 8, 8))
    assert [image.size for image in images] == [(PICTURE_SIZE, PICTURE_SIZE)] * 3


@pytest.mark.parametrize("small", [20_000_000, 0])
def test_an_autoencoder_tiny_previews_and_equals_stock(
    small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedded models' kind of VAE: no latent distribution, no post_quant_conv."""
    from diffusers import AutoencoderTiny

    monkeypatch.setattr(preview_module, "_SMALL_VAE", small)
    pipe = tiny_sd_pipeline()
    torch.manual_seed(0)
    blocks = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    pipe.vae = AutoencoderTiny(**blocks, scaling_factor=3.5).eval()
    pipe.set_progress_bar_config(disable=True)
    seen: list[StepPreview] = []
    got = generate(PROMPT, model=pipe, seed=0, steps=2, on_step=seen.append)
    want = pipe(PROMPT, num_inference_steps=2, guidance_scale=5.0, generator=seeds(0)).images[0]
    assert np.abs(arrays(got)[0] - np.asarray(want, dtype=int)).max() <= 1
    assert [image.size for image in seen[-1].images] == [(PICTURE_SIZE, PICTURE_SIZE)]


def test_without_a_guidance_scale_the_model_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_sd_pipeline()
    pipe.set_progress_bar_config(disable=True)
    got = generate(PROMPT, model=pipe, seed=1, steps=2)
    five = generate(PROMPT, model=pipe, seed=1, steps=2, guidance_scale=5)
    three = generate(PROMPT, model=pipe, seed=1, steps=2, guidance_scale=3)
    assert np.array_equal(arrays(got), arrays(five)) and (arrays(got) != arrays(three)).any()
    # An embedded name, here of the same pipeline, has its own.
    monkeypatch.setattr(drawing, "_named", lambda *_: pipe)
    assert np.array_equal(arrays(generate(PROMPT, seed=1, steps=2)), arrays(three))


def test_linear_factors_find_a_linear_vae() -> None:
    """With an encoder that is itself linear in the mean colour, the fit inverts it."""
    mixing = torch.tensor([[1.0, 0.2, 0.0], [0.0, 1.0, 0.3], [0.5, 0.0, 1.0], [0.3, -0.4, 0.1]])

    class Linear(torch.nn.Module):
        config = type("Config", (), {"block_out_channels": (1, 1, 1, 1)})()
        device, dtype = torch.device("cpu"), torch.float32

        def encode(self, rgb: torch.Tensor) -> Any:
            pooled = torch.nn.functional.avg_pool2d(rgb, 8)
            latents = torch.einsum("brhw,cr->bchw", pooled, mixing) + 0.25
            return type("Out", (), {"latents": latents})()

    vae = Linear()
    factors = fit_latent_factors(vae)
    assert factors.shape == (5, 3)
    rgb = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 1.6 - 0.8
    back = linear_rgb(vae.encode(rgb).latents, factors)
    assert (back - torch.nn.functional.avg_pool2d(rgb, 8)).abs().max() < 0.1


def test_factors_are_fitted_once_and_the_same_each_time() -> None:
    torch.manual_seed(0)
    vae = tiny_vae().eval()
    first = preview_module.latent_factors(vae)
    assert preview_module.latent_factors(vae) is first
    assert torch.equal(first, fit_latent_factors(vae))


# -- loading ------------------------------------------------------------------------------


def test_a_folder_draws_what_its_pipeline_draws_and_stays_loaded(sd: Any, sd_folder: Path) -> None:
    from bridge.diffusion.drawing import _loaded

    before = _loaded.cache_info()
    first = generate(PROMPT, model=sd_folder, seed=1, steps=2, device="cpu")
    again = generate(PROMPT, model=str(sd_folder), seed=1, steps=2, device="cpu")
    after = _loaded.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 1)
    assert np.array_equal(arrays(first), arrays(again))
    live = generate(PROMPT, model=sd, seed=1, steps=2)
    assert np.abs(arrays(first) - arrays(live)).max() <= 1


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_a_part_that_lacks_a_tensor_is_not_made_up(
    sd_folder: Path, tmp_path: Path, part: str
) -> None:
    folder = shutil.copytree(sd_folder, tmp_path / "model")
    (file,) = (folder / part).glob("*.safetensors")
    tensors = load_file(file)
    lost = next(name for name in tensors if name.endswith((".fc1.weight", ".conv1.weight")))
    del tensors[lost]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(WeightsError, match=rf"{part} lacks 1 of its tensors .{lost}"):
        load_pipeline(folder, device="cpu")


def test_load_pipeline_gives_the_stock_class(sd_folder: Path, tmp_path: Path) -> None:
    pipe = load_pipeline(sd_folder, device="cpu", dtype="bfloat16")
    assert type(pipe).__name__ == "StableDiffusionPipeline"
    assert pipe.unet.dtype == torch.bfloat16
    folder = tmp_path / "xl"
    tiny_sdxl_pipeline().save_pretrained(folder)
    assert type(load_pipeline(folder)).__name__ == "StableDiffusionXLPipeline"


def test_half_precision_draws(sd_folder: Path) -> None:
    result = generate(PROMPT, model=sd_folder, seed=1, steps=2, device="cpu", dtype="bfloat16")
    assert result.images[0].size == (PICTURE_SIZE, PICTURE_SIZE)


def test_unknown_unsupported_and_damaged_models(sd_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError):
        generate(PROMPT, model="emoji-xxl")
    with pytest.raises(UnsupportedModelError, match=r"model_index\.json"):
        generate(PROMPT, model=tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(UnsupportedModelError, match="FluxPipeline"):
        load_pipeline(other)
    (other / "model_index.json").write_text("{")
    with pytest.raises(WeightsError, match="JSON"):
        load_pipeline(other)
    with pytest.raises(UnsupportedModelError, match="model is a dict"):
        generate(PROMPT, model={})  # type: ignore[arg-type]
    cut = tmp_path / "cut"
    shutil.copytree(sd_folder, cut)
    file = cut / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="cannot load"):
        generate(PROMPT, model=cut)
    file.unlink()
    with pytest.raises(WeightsError, match="cannot load"):
        load_pipeline(cut)


def test_size_is_judged_before_a_folder_loads(sd_folder: Path, tmp_path: Path) -> None:
    """A folder of configs alone is enough to refuse a size."""
    for name in ("model_index.json", "vae/config.json"):
        target = tmp_path / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes((sd_folder / name).read_bytes())
    with pytest.raises(OptionError, match="width 100 is no multiple of 8; 96 would do"):
        generate(PROMPT, model=tmp_path, width=100)


# -- bad options --------------------------------------------------------------------------

BAD = {
    "steps": [0, -1, 1001, 2.5, True, "20"],
    "num_inference_steps": [0, 1001, "20"],
    "generator": [7, "7", [], [torch.Generator()] * 2, [torch.Generator(), 7]],
    "guidance_scale": [-0.1, float("nan"), float("inf"), "5", True],
    "guidance_rescale": [-0.1, 1.1, float("nan"), "0.5", True],
    "num_images": [0, 65, 1.0, True],
    "seed": [-1, 2**63, 1.5, True, "7", [1, 2], [-1]],
    "height": [0, -8, 5000, 64.0],
    "width": [0, "64", True],
}


def test_another_tower_draws_as_a_pipeline_that_has_it(sd: Any) -> None:
    other = tiny_sd_pipeline(seed=3)
    swapped = StableDiffusionPipeline(**{**sd.components, "text_encoder": other.text_encoder})
    tower = TextTower.from_modules(other.text_encoder, other.tokenizer)
    call: dict[str, Any] = {"seed": 5, "steps": 2}
    found = generate(PROMPT, model=sd, towers=tower, **call)
    assert (arrays(found) == arrays(generate(PROMPT, model=swapped, **call))).all()
    assert (arrays(found) != arrays(generate(PROMPT, model=sd, **call))).any()


def test_the_names_that_diffusers_has(sd: Any) -> None:
    """Noise of a generator is that of diffusers' own call, one for all pictures or one for each."""
    cond = bridge.condition(PROMPT, model=sd)
    one = torch.Generator().manual_seed(5)
    wanted = sd(
        **cond.kwargs(2), num_inference_steps=3, guidance_scale=4.0,
        generator=torch.Generator().manual_seed(5), output_type="np",
    ).images  # fmt: skip
    drawn = generate(
        PROMPT, model=sd, num_inference_steps=3, generator=one, guidance_scale=4.0, num_images=2
    )
    assert (arrays(drawn) == (wanted * 255).round().astype("uint8")).all()
    assert drawn.steps_done == 3 and drawn.seeds == ()
    each = [torch.Generator().manual_seed(seed) for seed in (8, 9)]
    listed = generate(PROMPT, model=sd, steps=2, generator=each, num_images=2)
    seeded = generate(PROMPT, model=sd, steps=2, seed=8, num_images=2)
    assert (arrays(listed) == arrays(seeded)).all() and seeded.seeds == (8, 9)


def test_an_option_by_both_of_its_names(sd: Any) -> None:
    for call in (generate, bridge.schedule, bridge.Encoder(sd).schedule):
        both: Any = {"steps": 3, "num_inference_steps": 3}
        with pytest.raises(OptionError, match="steps and num_inference_steps say the same"):
            call("a cat", **both)
    with pytest.raises(OptionError, match="seed and generator say the same; give one"):
        generate("a cat", model="/no/such", seed=1, generator=torch.Generator())
    with pytest.raises(OptionError, match="steps and num_inference_steps say the same"):
        bridge.study("a cat", model="/no/such", steps=3, num_inference_steps=4)
    with pytest.raises(OptionError, match="schedule needs steps, the num_inference_steps"):
        bridge.schedule("a cat", model="/no/such")
    plan = bridge.schedule("a [cat:dog:0.5]", model=sd, num_inference_steps=4)
    assert plan.last_steps == bridge.schedule("a [cat:dog:0.5]", model=sd, steps=4).last_steps
    with pytest.raises(OptionError, match="not 7; a number goes in as seed"):
        generate("a cat", model="/no/such", generator=7)  # type: ignore[arg-type]


def test_options_of_the_wording_are_those_of_schedule(sd: Any) -> None:
    """What generate passes on, and what it has itself, is all that schedule takes."""
    options = dict(inspect.signature(bridge.schedule).parameters)
    assert inspect.signature(generate).parameters.keys() >= options.keys() - {"revision"}
    found = generate("a (cat:1.3)", model=sd, seed=1, steps=1, dialect="plain", clip_skip=1)
    want = bridge.condition("a (cat:1.3)", model=sd, dialect="plain", clip_skip=1)
    assert torch.equal(found.conditioning.prompt_embeds, want.prompt_embeds)
    with pytest.raises(TypeError, match="unexpected keyword argument 'guidance'"):
        generate("a cat", model="/no/such/model", guidance=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD.items() for value in values]
)
def test_bad_options_before_any_model_loads(name: str, value: Any) -> None:
    with pytest.raises(OptionError):
        generate(PROMPT, model="/no/such/model", **{name: value})


def test_too_many_pictures_in_all() -> None:
    with pytest.raises(OptionError, match="130 pictures"):
        generate(["a cat"] * 13, model="/no/such/model", num_images=10)


@pytest.mark.parametrize("prompt", ["", "  \n", "a\0b", None, 5, b"cat", [], ["a cat", " "]])
def test_bad_prompts_before_any_model_loads(prompt: Any) -> None:
    with pytest.raises(PromptError):
        generate(prompt, model="/no/such/model")


def test_bad_negative_prompts_before_any_model_loads() -> None:
    with pytest.raises(PromptError):
        generate(PROMPT, negative_prompt="a\0b", model="/no/such/model")
    with pytest.raises(PromptError):
        generate(PROMPT, negative_prompt=["a", "b"], model="/no/such/model")


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ({"dialect": "a1112"}, OptionError),
        ({"emphasis": "loud"}, OptionError),
        ({"long_prompt": "fold"}, OptionError),
        ({"clip_skip": -1}, OptionError),
        ({"max_sequence_length": 0}, OptionError),
        ({"loras": "missing.safetensors"}, BridgeError),
        ({"textual_inversions": "missing.safetensors"}, BridgeError),
        ({"adapter": "missing.safetensors"}, BridgeError),
    ],
)
def test_bad_wording_before_any_model_loads(
    option: dict[str, Any], error: type[BridgeError]
) -> None:
    with pytest.raises(error) as caught:
        generate(PROMPT, model="/no/such/model", **option)
    assert "/no/such/model" not in str(caught.value)


@pytest.mark.parametrize("option", [{"device": "gpu9"}, {"device": "cuda:99"}, {"dtype": "int8"}])
def test_bad_device_and_dtype(sd_folder: Path, option: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        generate(PROMPT, model=sd_folder, **option)


@pytest.mark.parametrize("device", ["mps", "meta"])
def test_a_device_that_cannot_compute_here(sd: Any, sd_folder: Path, device: str) -> None:
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine computes on mps")
    with pytest.raises(OptionError, match="cannot be computed on"):
        generate(PROMPT, model=sd_folder, device=device)
    with pytest.raises(OptionError, match="cannot be computed on"):
        bridge.condition(PROMPT, model=sd, device=device)


def test_a_pipeline_may_be_given_as_the_model(sd: Any) -> None:
    """As `bridge.condition` takes it; what is neither a name nor a pipeline is refused."""
    one = generate(PROMPT, model=sd, seed=3, steps=1)
    two = generate(PROMPT, model=sd, seed=3, steps=1)
    assert one.images[0].tobytes() == two.images[0].tobytes()
    for wrong in (None, 3, sd.unet):
        with pytest.raises(UnsupportedModelError, match="bridge draws with"):
            generate(PROMPT, model=wrong)


def test_a_result_is_shown_in_a_line_or_two(sd: Any) -> None:
    """At a prompt the result is echoed; tensors and token plans would run over pages."""
    made = generate(PROMPT, model=sd, seed=3, steps=1)
    assert len(repr(made)) < 300 and "seeds=(3,)" in repr(made)
    assert repr(made.conditioning).startswith("Conditioning(sd15, prompt_embeds (1, 77, ")


def test_on_step_must_be_a_function() -> None:
    with pytest.raises(OptionError, match="on_step"):
        generate(PROMPT, model="/no/such/model", on_step=3)  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers() -> None:
    options = checked_options(
        PROMPT, None, seed=np.int64(7), steps=np.int32(3), guidance_scale=np.float32(2.5),
        num_images=1,
    )  # fmt: skip
    assert (options.seeds, options.steps, options.guidance_scale) == ((7,), 3, 2.5)
    assert type(options.seeds[0]) is type(options.steps) is int


def test_another_kind_of_model_is_refused_before_its_weights_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[list[str]] = []

    def only_small_files(repo: str, *, allow_patterns: list[str], **_: Any) -> str:
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", only_small_files)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(UnsupportedModelError, match="FluxPipeline"):
        generate(PROMPT, model="owner/name")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UnsupportedModelError, match="'bert'"):
        bridge.load_vlm("owner/name")
    assert asked == [["model_index.json"], ["config.json"]]


def test_unusual_prompts_draw(sd: Any) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for prompt in ("🐈 🍎", "חתול אדום", "cat " * 200):
            assert generate(prompt, model=sd, seed=0, steps=1).images[0].mode == "RGB"
    with pytest.raises(PromptError, match="windows of 77 tokens"):
        generate("cat " * 10_000, model=sd, seed=0, steps=1)


def test_options_spell_out_seeds() -> None:
    made = checked_options(
        ["a", "b"],
        None,
        seed=2**63 - 1,
        steps=1,
        guidance_scale=0,
        num_images=1,
    )
    assert made.seeds == (2**63 - 1, 0)
    assert made.prompts == ("a", "b")


def test_every_error_is_a_bridge_error() -> None:
    with pytest.raises(BridgeError):
        generate("", model="/no/such/model")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_seed_means_the_same_picture_on_cuda(sd_folder: Path) -> None:
    here = generate(PROMPT, model=sd_folder, seed=1, steps=4, device="cpu")
    there = generate(PROMPT, model=sd_folder, seed=1, steps=4)
    assert np.abs(arrays(here) - arrays(there)).mean() < 2
    assert isinstance(there.images[0], Image.Image)
