"""The benchmark of the field's lore: its runs, captions, figures and file."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import clip_lore, long_captions, stored_heads
from benchmarks.results import Row
from benchmarks.retrieval import make_scenes
from benchmarks.stored_heads import Outcome, OutOfTime, Points, Recipe, Side, States
from bridge.contrastive import CLIP
from bridge.contrastive.losses import InfoNCE, PooledPairs

RECIPE = Recipe("infonce", batch=16, samples=1024, rate=1e-2, seed=1, scenes=64)
OUTCOME = Outcome("0122", 0.5, 20.0, 21.0, -10.0, 0.1, 2.0)


def pairs(count: int, seed: int = 0) -> PooledPairs:
    draws = torch.Generator().manual_seed(seed)
    return PooledPairs(*(torch.randn(count, 8, generator=draws) for _ in range(2)))


def synthetic_states() -> States:
    """Both sides are two linear views of what a scene is, with a little noise."""
    draws = torch.Generator().manual_seed(0)
    views = [torch.randn(6, width, generator=draws) for width in (24, 12)]

    def side(count: int, captions: int) -> Side:
        what = torch.randn(count, 6, generator=draws)
        image = what @ views[0] + 0.05 * torch.randn(count, 24, generator=draws)
        text = (what @ views[1])[:, None].repeat(1, captions, 1)
        return Side(image, text + 0.05 * torch.randn(text.shape, generator=draws))

    return States(side(64, 2), side(40, 1), side(40, 1))


# ---------------------------------------------------------------- runs


def test_quarters_are_the_means_of_a_pictures_quarters() -> None:
    patches = torch.arange(16.0).reshape(1, 16, 1)  # a grid of 4 x 4
    found = stored_heads.quarters(patches, (4, 4))
    assert found.tolist() == [[2.5, 4.5, 10.5, 12.5]]


def test_standardising_is_by_the_training_side_alone() -> None:
    draws = torch.Generator().manual_seed(0)
    stored = {
        f"{part}.{kind}": 3 + 2 * torch.randn(*shape, generator=draws)
        for part, count in (("train", 500), ("validation", 9), ("test", 9))
        for kind, shape in (("image", (count, 4)), ("text", (count, 2, 3)))
    }
    found = stored_heads.standardised(stored)
    flat = found.train.text.flatten(0, 1)
    assert flat.mean(0).abs().max() < 1e-5 and (flat.std(0) - 1).abs().max() < 1e-4
    middle, spread = stored["train.image"].mean(0), stored["train.image"].std(0)
    torch.testing.assert_close(found.test.image, (stored["test.image"] - middle) / spread)


def test_every_scene_comes_once_before_any_comes_again() -> None:
    some = list(islice(stored_heads.batches(RECIPE), 8))
    for half in (some[:4], some[4:]):
        assert sorted(torch.cat([rows for rows, _ in half]).tolist()) == list(range(64))
    assert {int(each) for _, which in some for each in which} == {0, 1}
    rows, which = next(stored_heads.batches(replace(RECIPE, twins=True)))
    assert rows[:8].tolist() == rows[8:].tolist() and which.tolist() == [0] * 8 + [1] * 8


def test_the_free_loss_is_the_librarys_up_to_its_limit() -> None:
    some = pairs(6)
    for scale in (1.0, 30.0, 100.0):
        log = torch.tensor(scale).log()
        torch.testing.assert_close(stored_heads.free_info_nce(some, log), InfoNCE()(some, log))
    beyond, limit = torch.tensor(1000.0).log(), torch.tensor(100.0).log()
    torch.testing.assert_close(InfoNCE()(some, beyond), InfoNCE()(some, limit))
    assert stored_heads.free_info_nce(some, beyond) > 5 * InfoNCE()(some, beyond)


@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
def test_a_run_learns_and_is_the_same_again(loss: str) -> None:
    states = synthetic_states()
    found = stored_heads.train(states, replace(RECIPE, loss=loss))
    assert found == stored_heads.train(states, replace(RECIPE, loss=loss))
    assert found != stored_heads.train(states, replace(RECIPE, loss=loss, seed=2))
    assert found.validation > 0.5  # one in 40 by chance
    assert stored_heads.hits_of([found]).mean() > 0.5
    assert (found.bias != -10) == (loss == "sigmoid")


def test_who_holds_the_scale() -> None:
    states = synthetic_states()
    above = replace(RECIPE, start=math.log(300), samples=160)
    assert stored_heads.train(states, above).scale <= 100.001
    assert stored_heads.train(states, replace(above, scale="free")).peak > 250
    fixed = stored_heads.train(states, replace(above, scale="fixed"))
    assert fixed.scale == pytest.approx(300) == fixed.peak


def test_points_are_kept_and_time_ends(tmp_path: Path) -> None:
    asked = []

    def work(recipe: Recipe) -> Outcome:
        asked.append(recipe)
        return OUTCOME

    path = tmp_path / "deep" / "points.json"
    assert Points(path, work, lambda: False).get(RECIPE) == OUTCOME
    later = Points(path, work, lambda: True)
    assert later.get(RECIPE) == OUTCOME and asked == [RECIPE]
    with pytest.raises(OutOfTime):
        later.get(replace(RECIPE, seed=2))


def test_the_best_rate_is_climbed_to_by_the_validation_side(tmp_path: Path) -> None:
    best = 3e-4

    def work(recipe: Recipe) -> Outcome:
        assert recipe.seed == 0
        return replace(OUTCOME, validation=1 - abs(math.log10(recipe.rate / best)) / 10)

    for batch in clip_lore.BATCHES:
        points = Points(tmp_path / f"{batch}.json", work, lambda: False)
        assert clip_lore.best_rate(points, "infonce", batch) == best


def test_intervals_hold_scenes_and_seeds() -> None:
    rng = np.random.default_rng(1)
    hits = (rng.random((3, 400)) < 0.5).astype(float)
    row = clip_lore.crossed_row("x", hits)
    assert row.low < row.value < row.high and row.n == 1200
    assert row.value == pytest.approx(100 * hits.mean(), abs=0.01)
    apart = hits.copy()
    apart[0] = 1  # a seed that is otherwise widens it
    wide = clip_lore.crossed_row("x", apart)
    assert wide.high - wide.low > 2 * (row.high - row.low)
    same = clip_lore.crossed_row("x", np.ones((3, 5)))
    assert (same.value, same.low, same.high) == (100, 100, 100)


# ---------------------------------------------------------------- lengths


def test_a_long_vector_comes_first_by_the_plain_product_alone() -> None:
    images = torch.eye(4) + 0.3
    images[2] *= 10
    rows = {row.name: row.value for row in clip_lore.length_rows("x", images, torch.eye(4))}
    assert rows["x/text_to_image/cosine/r_at_1"] == 100
    assert rows["x/text_to_image/plain/r_at_1"] == 25
    assert rows["x/text_to_image/lost"] == 75
    assert rows["x/text_to_image/other_first_1"] == 75
    # Of equally long texts each picture still finds its own.
    assert rows["x/image_to_text/plain/r_at_1"] == 100
    assert rows["x/image_to_text/lost"] == 0
    assert rows["x/one_threshold/cosine"] == rows["x/one_threshold/pictures_only"] == 100
    assert rows["x/one_threshold/plain"] == 25


# ---------------------------------------------------------------- long captions


def test_what_decides_stands_where_it_should() -> None:
    for decides, scene in make_scenes(5, 40).items():
        early, late, spread = (
            long_captions.long_caption(scene, where, random.Random(1), decides)
            for where in long_captions.PLACES
        )
        assert early == [decides, *late[:-1]] and late[-1] == decides
        assert len(set(late[:-1])) == long_captions.FILLERS
        facts = long_captions.facts_of(scene)
        assert len(facts) == len(scene.groups) and decides not in spread
        assert set(facts) <= set(spread) and len(spread) == long_captions.FILLERS + len(facts)


def test_sentences_are_packed_and_chosen_by_what_fits() -> None:
    words = ["a", "b", "c", "d"]
    assert long_captions.packed(words, [3, 3, 4, 9], 6) == [["a", "b"], ["c"], ["d"]]
    assert long_captions.best_that_fit([1, 4, 2, 3], [3, 3, 1, 9], 6) == [1, 2]
    assert long_captions.best_that_fit([1, 2], [5, 9], 6) == [1]  # one at least, which is cut


def test_recall_counts_both_directions() -> None:
    own = torch.eye(5)
    assert long_captions.recall_row("x", [own], own).value == 100
    assert long_captions.recall_row("x", [own.roll(1, 0)], own).value == 0


@pytest.mark.models
def test_late_captions_lose_what_decides_and_shards_keep_it() -> None:
    clip = CLIP("emoji-1")
    context = clip.text.spec.context
    given = long_captions.held_out("late", 6)
    texts = long_captions.LongTexts.of(clip, given)
    for lengths, tokens in zip(texts.lengths, texts.tokens(), strict=True):
        assert context < sum(lengths[:-1]) < tokens < long_captions.LONG
    cut = texts.cut(clip)
    others = [[*each[:-1], "a cat"] for each in given]
    torch.testing.assert_close(cut, long_captions.LongTexts.of(clip, others).cut(clip))
    for found in (
        texts.mean_of_shards(clip), texts.mean_of_sentences(), texts.mean_of_centred(),
        texts.central(clip), texts.informative(clip),
    ):  # fmt: skip
        assert found.shape == cut.shape and (found - cut).abs().max() > 1e-3
        torch.testing.assert_close(found.norm(dim=1), torch.ones(6))
    longer = long_captions.with_text(
        clip, long_captions.with_positions(clip.text.module, long_captions.LONG)
    )
    assert (texts.cut(longer) - cut).abs().max() > 1e-3
    assert clip.text.spec.context == context


# ---------------------------------------------------------------- the file and its pictures


def row(name: str, value: float = 50.0) -> Row:
    return Row(name, value, value - 5, value + 5, 100, "%")


def test_a_part_takes_the_place_of_its_old_rows(tmp_path: Path) -> None:
    path = tmp_path / clip_lore.FILE
    clip_lore.merge(path, "long", [row("long/a"), row("long/b")])
    clip_lore.merge(path, "batch", [row("batch/a")])
    clip_lore.merge(path, "long", [row("long/c")])
    table = json.loads(path.read_text())
    assert [each["name"] for each in table["rows"]] == ["batch/a", "long/c"]
    assert set(table["notes"]) == {"batch", "long"}
    assert "clip_lore long" in table["notes"]["long"]


def test_charts_are_small(tmp_path: Path) -> None:
    batches = [
        row(f"batch/{batch}/{loss}/r_at_1", 40 + 3 * at)
        for loss in ("infonce", "sigmoid")
        for at, batch in enumerate(clip_lore.BATCHES)
    ]
    scales = [row(f"temperature/fixed_{scale}/r_at_1", 60) for scale in clip_lore.FIXED]
    scales += [row("temperature/usual/clamped/r_at_1", 80), row("temperature/usual/clamped/scale")]
    clip_lore.draw_batches(batches, tmp_path / "batch.webp")
    clip_lore.draw_temperatures(scales, tmp_path / "temperature.webp")
    for path in tmp_path.iterdir():
        assert 2_000 < path.stat().st_size < 25_000


def test_parts_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        clip_lore.main(["lenghts"])
    assert "lenghts is not a part" in capsys.readouterr().err
