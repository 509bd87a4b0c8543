"""The decoder's lesson on painted latents: they are the pipeline's, and keep their scenes."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionXLPipeline, UNet2DConditionModel
from emoji_world import synthetic_sprites

from bridge.emoji.scenes import Scene
from bridge.emoji.train import polish
from bridge.emoji.train.data import pictures
from bridge.emoji.train.loop import Recipe
from bridge.emoji.train.unet import Painter


@pytest.fixture(scope="module")
def folder(embedded: Callable[[str], Path]) -> Path:
    return embedded("emoji-xl")


@pytest.fixture(scope="module")
def painter(folder: Path) -> Painter:
    return Painter.load(folder)


@pytest.fixture
def unet(folder: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32).eval()


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of four, from a pool of six."""
    for name, value in {"BATCH": 4, "PAINTED": 2, "NEW": 2, "FIRST": 4, "POOL": 6}.items():
        monkeypatch.setattr(polish, name, value)


def recipe_of(folder: Path, painter: Painter, unet: UNet2DConditionModel) -> Recipe:
    vae = AutoencoderTiny.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    return polish.recipe(vae, unet, painter, synthetic_sprites())


def test_what_is_painted_from_noise_is_what_the_stock_pipeline_paints(
    folder: Path,
    painter: Painter,
    unet: UNet2DConditionModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    prompts = ["two red apples left of a cat", "a dog on blue, noto"]
    torch.manual_seed(5)
    painted = polish.paint(unet, painter, prompts, torch.zeros(2, 32, 8, 8), 0)
    torch.manual_seed(5)
    noise = torch.randn(2, 32, 8, 8)
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    states, pooled = (part.float() for part in painter.texts(prompts))
    expected = pipe(
        prompt_embeds=states,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=torch.zeros_like(states),
        negative_pooled_prompt_embeds=torch.zeros_like(pooled),
        num_inference_steps=polish.STEPS,
        guidance_scale=polish.GUIDANCE,
        latents=noise,
        output_type="latent",
    ).images
    torch.testing.assert_close(painted, expected, atol=1e-3, rtol=1e-3)


def test_a_later_start_stays_nearer_to_the_scene(
    painter: Painter, unet: UNet2DConditionModel
) -> None:
    """Under less noise the layout shows through, whatever the caption says."""
    clean = painter.latents(pictures([_scene(1)], synthetic_sprites())).float()
    far = []
    for start in (0, polish.STEPS - 1):
        torch.manual_seed(1)
        painted = polish.paint(unet, painter, ["a cat"], clean, start)
        far.append((painted - clean).square().mean().item())
    assert far[1] < far[0] / 2


def _scene(seed: int) -> Scene:
    return polish.draw_views(random.Random(seed), 1, polish.CANVAS)[0].scene


@pytest.mark.usefixtures("few")
def test_a_painting_is_compared_with_its_own_scene(
    folder: Path, painter: Painter, unet: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a painter that paints the truth, painted latents decode as well as encoded ones."""
    monkeypatch.setattr(polish, "paint", lambda _unet, _painter, _texts, clean, _start: clean)
    recipe = recipe_of(folder, painter, unet)
    with torch.no_grad():
        _, figures = recipe.loss(0)
        for step in range(1, 9):  # beyond the pool's size, where old paintings go
            _, figures = recipe.loss(step)
            assert figures["psnr_painted"] > 17, figures  # another scene's gives about 10
    monkeypatch.setattr(polish, "paint", lambda _unet, _painter, _texts, clean, _: clean.flip(0))
    with torch.no_grad():
        wrong = recipe_of(folder, painter, unet).loss(0)[1]["psnr_painted"]
    assert wrong < 15


@pytest.mark.usefixtures("few")
def test_a_step_trains_the_decoder_alone(
    folder: Path, painter: Painter, unet: UNet2DConditionModel
) -> None:
    recipe = recipe_of(folder, painter, unet)
    loss, figures = recipe.loss(0)
    assert torch.isfinite(loss) and set(figures) == {"psnr", "psnr_painted"}
    loss.backward()
    for name, parameter in recipe.module.named_parameters():
        assert (parameter.grad is not None) == name.startswith("decoder."), name
    assert all(parameter.grad is None for parameter in unet.parameters())
    assert recipe.muon and all(name.startswith("decoder.") for name in recipe.muon)
