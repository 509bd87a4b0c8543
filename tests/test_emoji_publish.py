"""What the stages write, put together, is a folder that stock pipelines open and run."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionXLPipeline
from emoji_world import synthetic_sprites
from tiny_models import tiny_clip_tokenizer

from bridge.emoji.train import __main__ as stages
from bridge.emoji.train import clip, publish, unet, vae
from bridge.emoji.train.loop import Run


@pytest.fixture
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two scenes where the autoencoder takes a batch: its kernels are slow on one core."""
    inner = vae.scene_batch
    monkeypatch.setattr(vae, "scene_batch", lambda rng, size: inner(rng, min(size, 2)))


def write_parts(weights: Path, runs: Path) -> None:
    """Every part of emoji-xl from the recipes' own exports, untrained."""
    torch.manual_seed(0)
    xl = weights / "emoji-xl"
    sprites = synthetic_sprites()
    for number, pad in (("", "<|endoftext|>"), ("_2", "!")):
        words = tiny_clip_tokenizer(pad)
        words.save_pretrained(xl / f"tokenizer{number}")
        second = number == "_2"
        clip.export(clip.build(words, second=second), words, weights, second=second)
    vae.export(Run(vae.recipe(vae.build(), sprites), runs), sprites, xl)
    unet.build().half().save_pretrained(xl / "unet")
    unet.scheduler().save_pretrained(xl / "scheduler")


@pytest.mark.usefixtures("few_scenes")
def test_the_published_folder_draws_with_the_stock_pipeline(tmp_path: Path) -> None:
    weights, runs = tmp_path / "weights", tmp_path / "runs"
    write_parts(weights, runs)
    (runs / "clip").mkdir()
    (runs / "clip" / "log.json").write_text("[]")
    (runs / "clip" / "loss.png").write_bytes(b"curve")
    (runs / "unfinished").mkdir()
    publish.publish(weights, runs)

    curves = {p.name: p.read_bytes() for p in (weights / "curves").iterdir()}
    assert curves == {"clip.json": b"[]", "clip.png": b"curve"}
    manifest = json.loads((weights / "manifest.json").read_text())["files"]
    for name in (
        "emoji-xl/model_index.json",
        "emoji-xl/unet/diffusion_pytorch_model.safetensors",
        "emoji-xl/text_encoder_2/model.safetensors",
        "emoji-clip/vision.safetensors",
        "emoji-clip-2/model.safetensors.index.json",
    ):
        data = (weights / name).read_bytes()
        assert manifest[name] == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    assert not list(weights.rglob("*.part"))

    pipe = StableDiffusionXLPipeline.from_pretrained(
        weights / "emoji-xl", torch_dtype=torch.float32, add_watermarker=False
    )
    index = json.loads((weights / "emoji-xl" / "model_index.json").read_text())
    assert pipe.config["_class_name"] if "_class_name" in pipe.config else index["_class_name"]
    for name, part in pipe.components.items():
        if part is not None:
            assert index[name][1] == type(part).__name__, name
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe("a cat", num_inference_steps=1, height=128, width=128, output_type="np").images
    assert drawn.shape == (1, 128, 128, 3)


# ---------------------------------------------------------------- the autoencoder


@pytest.mark.usefixtures("few_scenes")
def test_the_autoencoders_recipe_trains_it_all_and_scales_to_unit_variance(tmp_path: Path) -> None:
    torch.manual_seed(1)
    sprites = synthetic_sprites()
    recipe = vae.recipe(vae.build(), sprites)
    loss, figures = recipe.loss(0)
    assert torch.isfinite(loss) and set(figures) == {"l1", "psnr", "latent_std"}
    loss.backward()
    assert all(p.grad is not None for p in recipe.module.parameters())
    run = Run(recipe, tmp_path)
    vae.export(run, sprites, tmp_path)
    loaded = AutoencoderTiny.from_pretrained(tmp_path / "vae", torch_dtype=torch.float32)
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, run.average[name].half().float()), name
    x = vae.pictures(vae.scene_batch(vae.scene_rng(12, 0), 2), sprites)
    with torch.no_grad():
        z = loaded.encode(x).latents
        assert z.shape == (2, 8, 16, 16)
        assert (z * loaded.config.scaling_factor).std().item() == pytest.approx(1, abs=0.02)
        assert loaded.decode(z).sample.shape == x.shape


@pytest.mark.usefixtures("few_scenes")
def test_the_decoder_trains_on_with_the_encoder_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(2)
    part = vae.build()
    before = {k: v.clone() for k, v in part.encoder.state_dict().items()}
    recipe = vae.recipe_decoder(part, synthetic_sprites())
    loss, _ = recipe.loss(0)
    loss.backward()
    for name, parameter in part.named_parameters():
        assert (parameter.grad is not None) == name.startswith("decoder."), name
    run = Run(recipe, tmp_path)
    for name, average in run.average.items():
        if name.startswith("decoder."):
            average.add_(0.01)
    part.register_to_config(scaling_factor=1.25)
    vae.export_decoder(run, part, tmp_path)
    loaded = AutoencoderTiny.from_pretrained(tmp_path / "vae", torch_dtype=torch.float16)
    assert loaded.config.scaling_factor == 1.25
    for name, tensor in loaded.encoder.state_dict().items():
        assert torch.equal(tensor, before[name].half()), name
    for name, parameter in loaded.decoder.named_parameters():
        assert torch.equal(parameter, run.average[f"decoder.{name}"].half()), name


# ---------------------------------------------------------------- the command


def test_help_names_every_stage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "--help"])
    with pytest.raises(SystemExit) as left:
        stages.main()
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert all(f"``{stage}``" in text for stage in stages.STAGES)
    assert set(stages.MINUTES) == set(stages.STAGES) - {"tokenizer", "publish"}


def test_an_unknown_stage_is_refused_before_anything_loads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "unett"])
    with pytest.raises(SystemExit) as left:
        stages.main()
    assert left.value.code == 2
    assert "invalid choice: 'unett'" in capsys.readouterr().err
