"""benchmarks.adapt_clip: scenes that do not tell, figures by hand, and parts that are kept."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from support.tiny_world import synthetic_sprites

from benchmarks import adapt_clip
from benchmarks.adapt_clip import Outcomes, Part
from emoji_world.art import HELD_OUT_STYLE, Sprites
from emoji_world.scenes import STYLES, is_held_out, sample_scene


def outcomes(new: list[int], old: list[int]) -> Outcomes:
    """The same answers to every question of a style."""
    names = ("to_image", "to_text", "of_10", "of_320")
    return {style: dict.fromkeys(names, new if style == HELD_OUT_STYLE else old)
            for style in (HELD_OUT_STYLE, *STYLES)}  # fmt: skip


def test_what_is_learnt_and_what_is_asked_share_no_combination_and_name_no_style() -> None:
    learnt = list(adapt_clip.training_scenes(60, 0))
    asked = adapt_clip.asked_scenes("test", 40)
    assert not any(is_held_out(scene) for scene, _ in learnt)
    assert len(asked) == 40 and all(is_held_out(scene) for scene in asked.values())
    for text in [text for _, text in learnt] + list(asked):
        assert not any(style in text.lower() for style in (HELD_OUT_STYLE, *STYLES))


def test_each_seed_has_scenes_of_its_own_and_more_pairs_begin_with_the_same() -> None:
    few, many, other = (
        [text for _, text in adapt_clip.training_scenes(count, seed)]
        for count, seed in ((10, 0), (20, 0), (10, 1))
    )
    assert many[:10] == few and other != few


def test_a_scene_is_drawn_with_the_sprites_of_the_style(monkeypatch: pytest.MonkeyPatch) -> None:
    made = synthetic_sprites()
    red = {name: np.full_like(images[:1], 255) for name, images in made.images.items()}
    for images in red.values():
        images[..., 1:3] = 0
    own = {HELD_OUT_STYLE: Sprites(red, (HELD_OUT_STYLE,))}
    monkeypatch.setattr(adapt_clip, "_sprites", lambda style: own.get(style, made))
    scene = sample_scene(random.Random(3))
    thing = scene.objects[0]
    pictures = {style: adapt_clip.drawn(scene, style) for style in (HELD_OUT_STYLE, *STYLES)}
    middle = (thing.x + thing.side // 2, thing.y + thing.side // 2)
    if thing.tint is None:
        assert pictures[HELD_OUT_STYLE].getpixel(middle) == (255, 0, 0)
    assert len({picture.tobytes() for picture in pictures.values()}) == 4


def test_of_ten_counts_a_name_that_scores_above_nine_others() -> None:
    assert adapt_clip.of_ten(np.eye(30)) == [True] * 30
    assert adapt_clip.of_ten(-np.eye(30)) == [False] * 30
    assert adapt_clip.of_ten(np.zeros((30, 30))) == [False] * 30  # a draw is no find


def test_gained_forgotten_and_the_way_by_hand() -> None:
    before = outcomes([1, 0, 0, 0], [1, 1, 1, 0])  # 25 and 75 %
    best = [outcomes([1, 1, 1, 1], [1, 1, 0, 0])] * 3
    some = [outcomes([1, 1, 0, 0], [1, 1, 1, 1]), outcomes([1, 1, 1, 0], [1, 1, 1, 1])]
    rows = {r.name: r for r in adapt_clip.rows_of(before, {"lora/500": some, "full/3000": best})}
    assert rows["before/new/r_at_1"].value == 25 and rows["before/old/of_320"].value == 75
    assert rows["lora/500/new/r_at_1"].value == 62.5
    # (62.5 - 25) of (100 - 25)
    assert rows["lora/500/of_the_way_to_full/3000"].value == 50
    assert rows["full/3000/of_the_way_to_full/3000"].value == 100
    assert rows["lora/500/forgotten"].value == -25 and rows["full/3000/forgotten"].value == 25
    for row in rows.values():
        assert row.low <= row.value <= row.high


def test_intervals_narrow_with_scenes_and_not_with_seeds() -> None:
    rng = random.Random(0)
    few = [rng.randrange(2) for _ in range(50)]
    zero = outcomes([0] * 50, [1] * 50)
    one, three = (
        {r.name: r for r in adapt_clip.rows_of(zero, {"lora/500": [outcomes(few, few)] * seeds})}
        for seeds in (1, 3)
    )
    name = "lora/500/forgotten"
    assert (one[name].low, one[name].high) == (three[name].low, three[name].high)
    assert one[name].high - one[name].low > 10


def test_every_mode_and_size_is_a_cell_of_three_seeds_and_the_figure_to_reach_is_first() -> None:
    every = adapt_clip.parts()
    assert every[0].cell == "lora/500" and len(set(every)) == len(every)
    cells: dict[str, set[int]] = {}
    for part in every:
        cells.setdefault(part.cell, set()).add(part.seed)
    assert set(cells) >= {f"{m}/{n}" for m in adapt_clip.MODES for n in adapt_clip.STEPS}
    assert all(seeds == {0, 1, 2} for seeds in cells.values())


def test_a_part_that_was_measured_is_not_done_again_and_the_table_is_of_whole_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = [Part("probe", 100, seed, 1.0) for seed in range(adapt_clip.SEEDS)] + [
        Part("lora", 500, 0, 0.5)
    ]
    monkeypatch.setattr(adapt_clip, "parts", lambda seeds: two)
    done: list[Part | None] = []

    def work(part: Part | None, folder: Path) -> None:
        done.append(part)
        told = outcomes([1, 0], [1, 1]) if part is None else outcomes([1, 1], [0, 1])
        adapt_clip.outcomes_file(part, folder).write_text(json.dumps(told))

    monkeypatch.setattr(adapt_clip, "work", work)
    place = ["adapt_clip", "--cache", str(tmp_path / "kept"), "--out", str(tmp_path)]
    for _ in range(2):
        monkeypatch.setattr("sys.argv", place)
        adapt_clip.main()
    assert done == [None, *two]
    table = json.loads((tmp_path / "adapt-clip.json").read_text())
    values = {row["name"]: row["value"] for row in table["rows"]}
    assert values["probe/100/forgotten"] == 50
    assert not any("lora" in name for name in values)  # one seed of three
    assert 1000 < (tmp_path / "adapt-clip.webp").stat().st_size < 25_000
