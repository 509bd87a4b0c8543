"""The painter's recipe: what it trains on is what the pipeline will feed it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from emoji_world import scenes_at, synthetic_sprites
from tiny_models import tiny_sdxl_pipeline

from bridge.emoji.scenes import CANVAS
from bridge.emoji.train import unet
from bridge.emoji.train.data import pictures
from bridge.emoji.train.loop import Run
from bridge.emoji.train.unet import BATCH, NEW_EVERY_STEP, Painter, Pool

PROMPTS = ["two red apples left of a cat", "a photo of the dog", ""]
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Numbering:
    """Has a Painter's two methods, but numbers the scenes instead of encoding them.

    The number of a scene lies in the first entries of its latents, states and pooled text,
    in two parts that bf16 holds exactly, so a test sees which rows belong together.
    """

    def __init__(self) -> None:
        self.pictures_seen, self.texts_seen = 0, 0

    def latents(self, images: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(len(images), 8, 16, 16, dtype=torch.bfloat16)
        self.pictures_seen = self._number(out[:, 0, 0], self.pictures_seen)
        return out

    def texts(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        states = torch.zeros(len(captions), 77, 416, dtype=torch.bfloat16)
        pooled = torch.zeros(len(captions), 256, dtype=torch.bfloat16)
        if captions == [""]:
            states[:, 0, :2], pooled[:, :2] = -1, -1
            return states, pooled
        self._number(pooled, self.texts_seen)
        self.texts_seen = self._number(states[:, 0], self.texts_seen)
        return states, pooled

    @staticmethod
    def _number(rows: torch.Tensor, start: int) -> int:
        numbers = torch.arange(start, start + len(rows)) + 1
        rows[:, 0], rows[:, 1] = (numbers // 128).bfloat16(), (numbers % 128).bfloat16()
        return start + len(rows)


def number_of(row: torch.Tensor) -> int:
    return int(row[0]) * 128 + int(row[1])


def pool_of(monkeypatch: pytest.MonkeyPatch, seed: int = 31, size: int = 4096) -> Pool:
    monkeypatch.setattr(unet, "POOL", size)
    return Pool(Numbering(), synthetic_sprites(), seed)  # type: ignore[arg-type]


def rows_of(batch: Batch) -> list[tuple[int, int]]:
    """(scene of the latents, scene of the text: 0 zeroed, -129 empty) of each row."""
    latents, states, pooled = batch
    out = []
    for i in range(len(latents)):
        text = number_of(states[i, 0])
        assert number_of(pooled[i]) == text
        if text == 0:
            assert not states[i].any() and not pooled[i].any()
        out.append((number_of(latents[i, 0, 0]), text))
    return out


# ---------------------------------------------------------------- the pool


def test_a_pools_batches_are_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = pool_of(monkeypatch), pool_of(monkeypatch)
    other = pool_of(monkeypatch, seed=32)
    first = [rows_of(one.batch(step)) for step in range(3)]
    assert [rows_of(two.batch(step)) for step in range(3)] == first
    assert [rows_of(other.batch(step)) for step in range(3)] != first


def test_rows_keep_together_and_some_are_unconditional(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_of(monkeypatch)
    zero = empty = total = replayed = 0
    for step in range(60):
        before = pool.filled
        rows = rows_of(pool.batch(step))
        assert len(rows) == BATCH
        grown = NEW_EVERY_STEP + (256 if before < 2048 else 0)
        assert pool.filled == before + grown
        # The step's new scenes come first, the rest is drawn from all that there is.
        fresh = range(pool.filled - NEW_EVERY_STEP + 1, pool.filled + 1)
        assert [picture for picture, _ in rows[:NEW_EVERY_STEP]] == list(fresh)
        assert all(1 <= picture <= pool.filled for picture, _ in rows)
        replayed += sum(picture <= before for picture, _ in rows)
        for picture, text in rows:
            assert text in (picture, 0, -129)
            zero, empty, total = zero + (text == 0), empty + (text == -129), total + 1
    assert zero / total == pytest.approx(unet.DROP_ZERO, abs=0.025)
    assert empty / total == pytest.approx(unet.DROP_EMPTY, abs=0.015)
    assert replayed > total / 3


def test_a_full_pool_reuses_places_and_keeps_rows_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = pool_of(monkeypatch, size=2120)
    for step in range(20):
        for picture, text in rows_of(pool.batch(step)):
            assert text in (picture, 0, -129)
    assert pool.filled <= 2120


def test_dropping_a_row_does_not_reach_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_of(monkeypatch)
    for step in range(5):
        pool.batch(step)
    stored = pool.states[: pool.filled, 0, :2]
    assert [number_of(row) for row in stored] == list(range(1, pool.filled + 1))


# ---------------------------------------------------------------- the painter


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """An SDXL-layout folder with random towers and a small AutoencoderTiny."""
    folder = tmp_path_factory.mktemp("xl")
    pipe = tiny_sdxl_pipeline()
    for name in ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"):
        getattr(pipe, name).save_pretrained(folder / name)
    torch.manual_seed(3)
    vae = AutoencoderTiny(
        latent_channels=8,
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(0, 0, 1, 1),
        num_decoder_blocks=(1, 1, 0, 0),
        scaling_factor=1.7,
    )
    vae.save_pretrained(folder / "vae")
    return folder, pipe


def no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_: contextlib.nullcontext())


def test_the_painters_text_states_are_the_pipelines(
    tiny_folder: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, pipe = tiny_folder
    painter = Painter.load(folder)
    expected, _, expected_pooled, _ = pipe.encode_prompt(
        PROMPTS, do_classifier_free_guidance=False, device="cpu"
    )
    states, pooled = painter.texts(PROMPTS)  # as in training, with bf16 matrix products
    assert states.shape == expected.shape and states.dtype == pooled.dtype == torch.bfloat16
    torch.testing.assert_close(states.float(), expected, atol=0.08, rtol=0.05)
    torch.testing.assert_close(pooled.float(), expected_pooled, atol=0.08, rtol=0.05)
    no_autocast(monkeypatch)
    states, pooled = painter.texts(PROMPTS)
    assert torch.equal(states, expected.bfloat16())
    assert torch.equal(pooled, expected_pooled.bfloat16())


def test_the_painters_latents_are_the_scaled_ones(
    tiny_folder: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    painter = Painter.load(tiny_folder[0])
    images = pictures(scenes_at(1, 2), synthetic_sprites())
    no_autocast(monkeypatch)
    latents = painter.latents(images)
    assert latents.shape == (2, 8, 16, 16) and latents.dtype == torch.bfloat16
    with torch.no_grad():
        plain = painter.vae.encode(images).latents
    assert torch.equal(latents, (plain * 1.7).bfloat16())


def test_the_painter_is_frozen(tiny_folder: tuple[Path, Any]) -> None:
    painter = Painter.load(tiny_folder[0])
    for part in (*painter.towers, painter.vae):
        assert not part.training
        assert not any(p.requires_grad for p in part.parameters())


# ---------------------------------------------------------------- the UNet


def test_the_schedule_ends_in_pure_noise() -> None:
    made = unet.scheduler()
    assert made.alphas_cumprod[-1] < 1e-6 and made.config.prediction_type == "v_prediction"
    made.set_timesteps(20)
    assert made.timesteps[0] == 999


def test_a_step_trains_the_whole_unet_and_it_exports(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(unet, "BATCH", 4)
    monkeypatch.setattr(unet, "NEW_EVERY_STEP", 2)
    monkeypatch.setattr(unet, "POOL", 2100)
    torch.manual_seed(0)
    model = unet.build()
    assert 5e6 < sum(p.numel() for p in model.parameters()) < 2e7
    recipe = unet.recipe(model, Numbering(), synthetic_sprites())  # type: ignore[arg-type]
    seen: dict[str, torch.Tensor] = {}

    def spy(module: Any, args: Any, kwargs: Any) -> None:
        seen.update(kwargs["added_cond_kwargs"], t=args[1])

    model.register_forward_pre_hook(spy, with_kwargs=True)
    loss, figures = recipe.loss(0)
    assert torch.isfinite(loss) and set(figures) == {"v_mse", "v_mse_t700"}
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    # The sizes are those that the pipeline adds for a picture of the canvas' size.
    assert seen["time_ids"].tolist() == 4 * [[CANVAS, CANVAS, 0, 0, CANVAS, CANVAS]]
    assert sorted((seen["t"] // 250).tolist()) == [0, 1, 2, 3]

    run = Run(recipe, tmp_path / "runs")
    for average in run.average.values():
        average.add_(0.01)
    unet.export(run, tmp_path)
    loaded = UNet2DConditionModel.from_pretrained(tmp_path / "unet", torch_dtype=torch.float16)
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, run.average[name].half()), name
    again = DDIMScheduler.from_pretrained(tmp_path / "scheduler")
    assert torch.equal(again.alphas_cumprod, unet.scheduler().alphas_cumprod)
