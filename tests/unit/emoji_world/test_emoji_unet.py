"""The painter's recipe: what it trains on is what the pipeline will feed it."""

from __future__ import annotations

import contextlib
import copy
import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from support.tiny_models import tiny_sdxl_pipeline
from support.tiny_world import scenes_at, synthetic_sprites, tiny_vae

from emoji_world import captions
from emoji_world.captions import caption
from emoji_world.scenes import CANVAS, LATTICE
from emoji_world.train import pool as pool_module
from emoji_world.train import unet
from emoji_world.train.data import PatchTruth, pictures
from emoji_world.train.loop import Recipe, Run
from emoji_world.train.pool import Batch, Pool, Stage
from emoji_world.train.prefetch import ON_CPU
from emoji_world.train.unet import SCENES, SPRITES, Painter
from emoji_world.train.views import View, view_truth

PROMPTS = ["two red apples left of a cat", "a photo of the dog", ""]
# A real step takes seconds, and a full pool gigabytes.
SMALL = Stage("unet", side=CANVAS, batch=4, new=2, lr=1e-3, pool=2100)
CLOSE = Stage("sprites", side=64, batch=4, new=2, lr=1e-3, pool=2100)


@pytest.fixture(autouse=True)
def few_first_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool begins with an eighth of what it has in training."""
    monkeypatch.setattr(pool_module, "FIRST", 256)


class Numbering:
    """Has a Painter's methods, but numbers the views instead of encoding them.

    The number of a view lies in the first entries of its latents, states and pooled text,
    in two parts that bf16 holds exactly, so a test sees which rows belong together.
    """

    def __init__(self) -> None:
        self.pictures_seen, self.texts_seen = 0, 0

    def latents(self, images: torch.Tensor) -> torch.Tensor:
        grid = images.shape[-1] // LATTICE
        out = torch.zeros(len(images), 32, grid, grid, dtype=torch.bfloat16)
        self.pictures_seen = self._number(out[:, 0, 0], self.pictures_seen)
        return out

    def ids(self, captions: list[str]) -> torch.Tensor:
        return torch.full((2, len(captions), 77), int(captions != [""]))

    def read(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        count = ids.shape[1]
        states = torch.zeros(count, 77, 416, dtype=torch.bfloat16)
        pooled = torch.zeros(count, 256, dtype=torch.bfloat16)
        if not ids.any():  # the empty text
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


def pool_of(seed: int = 31, size: int = 4096, stage: Stage = SCENES) -> Pool:
    return Pool(Numbering(), synthetic_sprites(), replace(stage, pool=size), seed, ON_CPU)


def rows_of(batch: Batch) -> list[tuple[int, int]]:
    """(view of the latents, view of the text: 0 zeroed, -129 empty) of each row."""
    latents, states, pooled = batch.latents, batch.states, batch.pooled
    assert len(batch.truth.concept) == len(batch.time_ids) == len(batch.told) == len(latents)
    out = []
    for i in range(len(latents)):
        text = number_of(states[i, 0])
        assert number_of(pooled[i]) == text
        assert bool(batch.told[i]) == (text not in (0, -129))
        if text == 0:
            assert not states[i].any() and not pooled[i].any()
        out.append((number_of(latents[i, 0, 0]), text))
    return out


# ---------------------------------------------------------------- the pool


def test_a_pools_batches_are_the_same_again() -> None:
    one, two = pool_of(), pool_of()
    other = pool_of(seed=32)
    first = [rows_of(one.batch(step)) for step in range(3)]
    assert [rows_of(two.batch(step)) for step in range(3)] == first
    assert [rows_of(other.batch(step)) for step in range(3)] != first


@pytest.mark.parametrize("stage", [SCENES, SPRITES], ids=lambda stage: stage.name)
def test_rows_keep_together_and_some_are_unconditional(stage: Stage) -> None:
    pool = pool_of(stage=stage, size=8192)
    zero = empty = total = replayed = 0
    for step in range(60):
        before = pool.filled
        rows = rows_of(pool.batch(step))
        assert len(rows) == stage.batch
        grown = stage.new + (pool_module.FIRST if before == 0 else 0)
        assert pool.filled == before + grown
        # The step's new views come first, the rest is drawn from all that there is.
        fresh = range(pool.filled - stage.new + 1, pool.filled + 1)
        assert [picture for picture, _ in rows[: stage.new]] == list(fresh)
        assert all(1 <= picture <= pool.filled for picture, _ in rows)
        replayed += sum(picture <= before for picture, _ in rows)
        for picture, text in rows:
            assert text in (picture, 0, -129)
            zero, empty, total = zero + (text == 0), empty + (text == -129), total + 1
    assert zero / total == pytest.approx(pool_module.DROP_ZERO, abs=0.025)
    assert empty / total == pytest.approx(pool_module.DROP_EMPTY, abs=0.015)
    assert replayed > total / 3


def test_a_full_pool_reuses_places_and_keeps_rows_together() -> None:
    pool = pool_of(size=408)
    places: list[int] = []
    for step in range(40):
        for picture, text in rows_of(pool.batch(step)):
            assert text in (picture, 0, -129)
        places.append(pool.next)
        # The newest rows lie just before the next place; the oldest are written over.
        newest = pool.latents[pool.next - 1, 0, 0]
        assert number_of(newest) == pool.encoder.pictures_seen  # type: ignore[attr-defined]
    assert pool.filled <= 408
    turns = sum(after < before for before, after in itertools.pairwise(places))
    assert turns == 1 and places[-1] < pool.filled


def test_every_row_has_its_own_view(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dense loss must read what the picture shows, after places were reused as well."""
    pool = pool_of(size=408)
    drawn: list[View] = []
    inner = pool_module.draw_views

    def kept(*args: Any) -> list[View]:
        drawn.extend(made := inner(*args))
        return made

    monkeypatch.setattr(pool_module, "draw_views", kept)
    for step in range(32):
        batch = pool.batch(step)
        views = [drawn[picture - 1] for picture, _ in rows_of(batch)]
        truth = view_truth(views)
        for name in vars(truth):
            assert torch.equal(getattr(batch.truth, name), getattr(truth, name)), name
        assert batch.time_ids.tolist() == [list(view.time_ids) for view in views]


def learnt(pool: Pool, places: list[int], t: list[int], error: list[float]) -> list[float]:
    """The hardness of some places after one batch of them, all of which are told their text."""
    none = torch.empty(0)
    told = torch.ones(len(places), dtype=torch.bool)
    batch = Batch(*(none,) * 4, PatchTruth(*(none,) * 4), told, torch.tensor(places))
    pool.learn(batch, torch.tensor(t), torch.tensor(error))
    return pool.hardness[places].tolist()


def test_a_views_error_is_compared_with_those_of_its_time() -> None:
    pool = pool_of()
    assert learnt(pool, [0, 1], [0, 999], [5.0, 0.1]) == [1, 1]  # the first of either time
    # 0 to 49 is one bin; of few errors the usual one is the plain mean.
    assert learnt(pool, [2, 3], [49, 50], [10.0, 3.0]) == pytest.approx([10 / 7.5, 1])
    for _ in range(200):
        learnt(pool, [4], [0], [2.0])
    hard, easy = learnt(pool, [5, 6], [0, 0], [1000.0, 0.001])
    assert (hard, easy) == (pool_module.HARDEST, 1 / pool_module.HARDEST)
    assert pool.hardness[0] == 1  # what is not in the batch stays


def test_rows_without_their_text_teach_nothing_of_hardness(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool_module, "DROP_ZERO", 0.5)
    pool = pool_of()
    batch = pool.batch(0)
    pool.hardness[batch.places] = 2.0
    size = len(batch.told)
    pool.learn(batch, torch.zeros(size, dtype=torch.long), torch.rand(size))
    told, untold = batch.places[batch.told], batch.places[~batch.told]
    untold = [place for place in untold.tolist() if place not in told.tolist()]
    assert untold and (pool.hardness[untold] == 2).all() and (pool.hardness[told] != 2).all()


def test_hard_views_are_replayed_more_often_and_new_ones_begin_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool_module, "FIRST", 2048)  # both thousands are there from the start
    pool = pool_of(size=2200)
    for step in range(9):
        pool.batch(step)
    pool.hardness[:1000], pool.hardness[1000:2000] = pool_module.HARDEST, 1 / pool_module.HARDEST
    replayed: list[int] = []
    for step in range(9, 29):
        replayed += pool.batch(step).places[SCENES.new :].tolist()
    hard = sum(place < 1000 for place in replayed)
    easy = sum(1000 <= place < 2000 for place in replayed)
    assert easy < hard / 6
    start = 0 if pool.next + SCENES.new > 2200 else pool.next
    pool.hardness[start : start + SCENES.new] = 3.0
    fresh = pool.batch(29).places[: SCENES.new]
    assert fresh.tolist() == list(range(start, start + SCENES.new))
    assert (pool.hardness[fresh] == 1).all()


@pytest.mark.parametrize("times", [1, 32, 80])
def test_a_batch_holds_no_view_twice_however_large(times: int) -> None:
    """From the first step on, when little more than a batch has been made."""
    stage = replace(SCENES, batch=SCENES.batch * times, new=SCENES.new * times)
    pool = pool_of(size=4096, stage=stage)
    for step in range(2):
        places = pool.batch(step).places
        assert len(places) == stage.batch == len(places.unique())


def test_dropping_a_row_does_not_reach_the_pool() -> None:
    pool = pool_of()
    for step in range(5):
        pool.batch(step)
    stored = pool.states[: pool.filled, 0, :2]
    assert [number_of(row) for row in stored] == list(range(1, pool.filled + 1))


# ---------------------------------------------------------------- the painter


@pytest.fixture(scope="module")
def painter(embedded: Callable[[str], Path]) -> Painter:
    """The shipped towers and autoencoder."""
    return Painter.load(embedded("emoji-xl"))


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """An SDXL-layout folder with random towers and a small AutoencoderTiny."""
    folder = tmp_path_factory.mktemp("xl")
    pipe = tiny_sdxl_pipeline()
    for name in ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"):
        getattr(pipe, name).save_pretrained(folder / name)
    tiny_vae().save_pretrained(folder / "vae")
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


def recipe_of(model: UNet2DConditionModel, stage: Stage = SMALL) -> Recipe:
    return unet.recipe(model, Numbering(), synthetic_sprites(), stage)  # type: ignore[arg-type]


# The phrasings that the shipped painter's projection was set by; many more came later.
EARLY = {
    "FRAMES": (
        *(2 * ("{what}{bg}{style}",)),
        "a picture of {what}{bg}{style}",
        "{there} {what}{bg}{style}",
        "an emoji of {what}{bg}{style}",
        "{Style}{what}{bg}",
    ),
    "RELATIONS": {
        "left": (
            "{a} left of {b}",
            "{a} to the left of {b}",
            "{b} right of {a}",
            "{b} to the right of {a}",
            "{a} on the left and {b} on the right",
        ),
        "above": (
            "{a} above {b}",
            "{a} over {b}",
            "{b} below {a}",
            "{b} under {a}",
            "{a} at the top and {b} at the bottom",
        ),
    },
    "BACKGROUND": (" on {a} background", ", {c} background", " on {c}"),
    "STYLE": (" in {} style", ", {} style", ", {}"),
}


@pytest.fixture
def early_phrasings(monkeypatch: pytest.MonkeyPatch) -> None:
    for table, value in EARLY.items():
        monkeypatch.setattr(captions, table, value)


def text_tokens(painter: Painter, seed: int, count: int) -> tuple[torch.Tensor, list[str]]:
    """States (N, 416) of captions' tokens up to the end of text, and the captions."""
    rng = random.Random(seed)
    texts = [caption(scene, rng) for scene in scenes_at(seed, count)]
    states = painter.texts(texts)[0].float()
    ids = painter.tokenizers[0](texts, padding="max_length", return_tensors="pt").input_ids
    end = (ids == painter.tokenizers[0].eos_token_id).int().argmax(1)
    return torch.cat([row[: last + 1] for row, last in zip(states, end, strict=True)]), texts


def assert_white(tokens: torch.Tensor, white: torch.Tensor, slack: float, largest: float) -> None:
    """``white`` is ``tokens`` decorrelated, a hundredth of the mean variance let through."""
    values = eigenvalues(tokens)
    expected = (values / (values + 0.01 * values.mean())).mean().item()
    covariance = torch.cov(white.T.double())
    assert covariance.diagonal().mean().item() == pytest.approx(expected, abs=slack)
    assert torch.linalg.eigvalsh(covariance).max() < largest
    assert white.mean(0).square().mean().sqrt() < slack
    assert_whitening_is_needed(tokens)


def eigenvalues(states: torch.Tensor) -> torch.Tensor:
    return torch.linalg.eigvalsh(torch.cov(states.T.double()))


def assert_whitening_is_needed(tokens: torch.Tensor) -> None:
    """A large constant part, and directions of very unequal size."""
    values = eigenvalues(tokens)
    assert tokens.mean(0).square().sum() > values.sum() * 0.25
    assert values[-1] > 50 * values.median()


@pytest.mark.usefixtures("early_phrasings")
def test_whitened_text_has_no_mean_and_unit_variance(painter: Painter) -> None:
    tokens, texts = text_tokens(painter, 11, 160)
    torch.manual_seed(0)
    model = unet.build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    unet.whiten_text(model, painter, texts)
    projection = model.encoder_hid_proj
    with torch.no_grad():
        white = projection(tokens)
    assert_white(tokens, white, slack=0.01, largest=1.05)
    # Turned back to the axes it came in: each axis stays most like itself.
    assert (projection.weight.diagonal() > 0).all()
    torch.testing.assert_close(projection.weight, projection.weight.T, atol=1e-3, rtol=1e-3)
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {"encoder_hid_proj.weight", "encoder_hid_proj.bias"}


def test_realigned_text_lies_where_it_lay_as_far_as_it_can(painter: Painter) -> None:
    old, texts = text_tokens(painter, 14, 120)
    model = unet.build()
    unet.whiten_text(model, painter, texts)
    with torch.no_grad():
        wanted = model.encoder_hid_proj(old)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    # The same towers: nothing to turn.
    assert unet.realign_text(model, painter, painter, texts) > 0.99
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {"encoder_hid_proj.weight", "encoder_hid_proj.bias"}

    # Towers that have moved: the better the closer, and no direction is lost.
    explained = []
    for much in (0.003, 0.03):
        torch.manual_seed(2)
        moved = copy.deepcopy(painter)
        for tower in moved.towers:
            for parameter in tower.parameters():
                parameter.add_(much * torch.randn_like(parameter))
        model.load_state_dict(before)
        new, _ = text_tokens(moved, 14, 120)
        with torch.no_grad():
            blind = (
                1
                - (
                    (model.encoder_hid_proj(new) - wanted).square().sum()
                    / (wanted - wanted.mean(0)).square().sum()
                ).item()
            )
            explained.append(unet.realign_text(model, painter, moved, texts))
            read = model.encoder_hid_proj(new)
        assert explained[-1] > blind
        torch.testing.assert_close(read.mean(0), wanted.mean(0), atol=1e-2, rtol=0)
        # Whitening floors the faintest directions at a tenth of a deviation, of which 0.3 is kept.
        assert eigenvalues(read)[len(read.T) // 10].sqrt() > 0.1
    assert explained == sorted(explained, reverse=True)


def test_the_shipped_painters_text_has_no_constant_and_no_loud_direction(
    painter: Painter, embedded: Callable[[str], Path]
) -> None:
    """In half precision, and on other captions than it was set by."""
    shipped = UNet2DConditionModel.from_pretrained(
        embedded("emoji-xl") / "unet", torch_dtype=torch.float32
    )
    tokens, _ = text_tokens(painter, 12, 240)
    with torch.no_grad():
        read = shipped.encoder_hid_proj(tokens)
    assert read.mean(0).square().mean().sqrt() < 0.3
    assert 0.1 < read.var(0).mean() < 2
    assert eigenvalues(read).max() < 40 * read.var(0).mean()
    assert_whitening_is_needed(tokens)


def test_the_text_projection_stays_fixed_and_exact() -> None:
    torch.manual_seed(0)
    model = unet.build()
    plain = torch.nn.Linear(416, 416)
    plain.load_state_dict(model.encoder_hid_proj.state_dict())
    unet._keep_text_projection(model)
    assert not any(p.requires_grad for p in model.encoder_hid_proj.parameters())
    states = 30 + torch.randn(2, 77, 416)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        kept, rounded = model.encoder_hid_proj(states), plain(states)
    with torch.no_grad():
        expected = plain(states)
    assert kept.dtype == torch.float32 and torch.equal(kept, expected)
    assert not torch.equal(rounded.float(), expected)  # what it is kept from


def test_rows_without_text_weigh_less_and_the_dense_loss_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool_module, "DROP_ZERO", 0.45)
    monkeypatch.setattr(unet, "PICTURE_SHARE", 0.0)  # every time weighs the same
    told: list[torch.Tensor] = []
    batch_of = Pool.batch

    def kept(pool: Pool, step: int) -> Batch:
        batch = batch_of(pool, step)
        told.append(batch.told)
        return batch

    monkeypatch.setattr(Pool, "batch", kept)

    def loss_with(weight: float, dense: float) -> tuple[float, float]:
        monkeypatch.setattr(unet, "UNCONDITIONAL_WEIGHT", weight)
        monkeypatch.setattr(unet, "DENSE_WEIGHT", dense)
        torch.manual_seed(0)
        recipe = recipe_of(unet.build(), replace(SMALL, batch=12, new=12))
        loss, figures = recipe.loss(0)
        return loss.item(), figures["v_mse"]

    of_told, v_mse = loss_with(0, 0)
    share = told[0].float().mean().item()
    assert 0 < share < 1
    assert of_told == pytest.approx(share * v_mse, rel=1e-4)
    monkeypatch.setattr(unet, "PICTURE_SHARE", 0.75)
    assert 0.25 * of_told < loss_with(0, 0)[0] < 0.99 * of_told  # nearly clean times weigh less
    monkeypatch.setattr(unet, "PICTURE_SHARE", 0.0)
    alike, half = loss_with(1, 0)[0], loss_with(0.5, 0)[0]
    assert of_told < half < alike and half == pytest.approx((of_told + alike) / 2, rel=1e-4)
    assert loss_with(0, 0.04)[0] > of_told + 0.1


@pytest.mark.parametrize("stage", [SMALL, CLOSE], ids=lambda stage: stage.name)
def test_a_step_trains_the_whole_unet_and_it_exports(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = unet.build()
    assert 5e6 < sum(p.numel() for p in model.parameters()) < 2e7
    recipe = recipe_of(model, stage)
    assert recipe.name == stage.name
    seen: dict[str, torch.Tensor] = {}
    truths: list[PatchTruth] = []
    heads = recipe.module["heads"]  # type: ignore[index]
    heads.register_forward_pre_hook(lambda _module, args: truths.append(args[1]))
    batches: list[Batch] = []
    batch_of = Pool.batch
    monkeypatch.setattr(
        Pool, "batch", lambda *args: batches.append(made := batch_of(*args)) or made
    )

    def spy(module: Any, args: Any, kwargs: Any) -> None:
        seen.update(kwargs["added_cond_kwargs"], t=args[1])

    model.register_forward_pre_hook(spy, with_kwargs=True)
    loss, figures = recipe.loss(0)
    assert torch.isfinite(loss) and set(figures) == {"v_mse", "v_mse_t700", "concept", "tint"}
    assert truths == [batches[0].truth] and len(truths[0].concept) == 4
    loss.backward()
    for name, parameter in recipe.module.named_parameters():
        if "encoder_hid_proj" in name:
            assert not parameter.requires_grad and parameter.grad is None, name
            continue
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    assert torch.equal(seen["time_ids"], batches[0].time_ids)
    # One time in each quarter of the draw, whose square makes noisy times likelier.
    edges = [1000 * (1 - (1 - i / 4) ** 2) for i in range(5)]
    for t, low, high in zip(sorted(seen["t"].tolist()), edges[:-1], edges[1:], strict=True):
        assert int(low) <= t <= high
    matrices = {n for n, p in recipe.module.named_parameters() if n in recipe.muon}
    assert matrices == recipe.muon and matrices
    assert all(n.startswith("unet.") and ".attentions." in n for n in matrices)

    run = Run(recipe, tmp_path / "runs")
    for average in run.average.values():
        average.add_(0.01)
    unet.export(run, tmp_path)
    loaded = UNet2DConditionModel.from_pretrained(tmp_path / "unet", torch_dtype=torch.float16)
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, run.average[f"unet.{name}"].half()), name
    assert not any("heads" in name for name in loaded.state_dict())
    again = DDIMScheduler.from_pretrained(tmp_path / "scheduler")
    assert torch.equal(again.alphas_cumprod, unet.scheduler().alphas_cumprod)


def test_the_exported_unet_draws_in_the_stock_pipeline_as_it_was_trained(
    painter: Painter, embedded: Callable[[str], Path], tmp_path: Path
) -> None:
    """Projection, towers and UNet together: stock code computes what the recipe computed."""
    torch.manual_seed(1)
    model = unet.build()
    _, texts = text_tokens(painter, 13, 64)
    unet.whiten_text(model, painter, texts)
    recipe = recipe_of(model)
    unet.export(Run(recipe, tmp_path / "runs"), tmp_path)

    shipped = embedded("emoji-xl")
    parts = ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "vae")
    for name in (*parts, "model_index.json"):
        (tmp_path / name).symlink_to(shipped / name)
    pipe = StableDiffusionXLPipeline.from_pretrained(
        tmp_path, torch_dtype=torch.float32, add_watermarker=False
    )
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.unet.encoder_hid_proj, torch.nn.Linear)

    with torch.no_grad():  # the trained one, rounded as the export rounds
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())
    states, _, pooled, _ = pipe.encode_prompt(
        texts[:2], do_classifier_free_guidance=False, device="cpu"
    )
    sizes = torch.tensor([CANVAS, CANVAS, 0, 0, CANVAS, CANVAS]).repeat(2, 1)
    told = {"text_embeds": pooled, "time_ids": sizes}
    x, t = torch.randn(2, 32, 8, 8), torch.tensor([999, 300])
    with torch.no_grad():
        expected = model(x, t, states, added_cond_kwargs=told).sample
        found = pipe.unet(x, t, states, added_cond_kwargs=told).sample
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)

    def draw() -> np.ndarray:
        return pipe(
            texts[0],
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(0),
            height=CANVAS,
            width=CANVAS,
            output_type="np",
        ).images

    drawn = draw()
    assert drawn.shape == (1, CANVAS, CANVAS, 3) and np.isfinite(drawn).all()
    with torch.no_grad():
        pipe.unet.encoder_hid_proj.weight.zero_()
    assert not np.array_equal(draw(), drawn)  # the pipeline's text does pass through it


def test_a_step_is_the_same_again_after_a_restart() -> None:
    """Times and noise come from the step's seed, which the loop sets; scenes from its number."""

    def told() -> tuple[list[torch.Tensor], float]:
        torch.manual_seed(3)
        model = unet.build()
        recipe = recipe_of(model)
        seen: list[torch.Tensor] = []
        model.register_forward_pre_hook(lambda _module, args: seen.extend(args[:2]))
        torch.manual_seed(17)
        with torch.no_grad():
            loss, _ = recipe.loss(17)
        return seen, loss.item()

    (first, loss), (second, again) = told(), told()
    assert len(first) == 2 and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert loss == again
