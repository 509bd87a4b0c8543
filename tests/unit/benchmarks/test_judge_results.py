"""Intervals, tables, grids, answers and ranks: what turns outcomes into committed figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import results
from benchmarks.ask import ask_rows, make_questions, normal
from benchmarks.compositional import COMMANDS, parser
from benchmarks.draw import describe, draw_rows
from benchmarks.grids import RIGHT, WRONG, Cell, grid, save_grid
from benchmarks.results import Row, grouped_share_row, median_row, report, save, share_row, wilson
from benchmarks.retrieval import first_ranks
from benchmarks.table import FIGURES, markdown
from benchmarks.tasks import interleaved, judge_task
from emoji_world.judge import ObjectMatch, PictureContent
from emoji_world.questions import KINDS
from emoji_world.scenes import is_held_out


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # published values: Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=5.1e-5)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_share(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="no share"):
        wilson(successes, n)


def test_outcomes_of_a_group_do_not_count_as_many() -> None:
    """Twenty prompts of eight equal outcomes each say no more than twenty outcomes."""
    rng = np.random.default_rng(1)
    right = (rng.random(40) < 0.5).tolist()
    alike = grouped_share_row("x", [[ok] * 8 for ok in right])
    apart, single = share_row("x", [ok for ok in right for _ in range(8)]), share_row("x", right)
    assert (alike.value, alike.n, alike.unit) == (apart.value, 320, "%")
    assert alike.high - alike.low == pytest.approx(single.high - single.low, rel=0.1)
    assert alike.high - alike.low > 2 * (apart.high - apart.low)
    assert alike.low < alike.value < alike.high
    assert alike == grouped_share_row("x", [[ok] * 8 for ok in right])


def test_groups_of_other_sizes_weigh_by_their_outcomes() -> None:
    row = grouped_share_row("x", [[True] * 3, [False], [True, False], [True] * 4])
    assert (row.value, row.n) == (80.0, 10)
    assert row.low < 80 < row.high


@pytest.mark.parametrize(
    ("groups", "right"),
    [([[True] * 5] * 12, 12), ([[False] * 5] * 12, 0), ([[True]] * 7 + [[False]] * 5, 7)],
)
def test_groups_without_a_spread_of_their_own_have_wilsons_interval(
    groups: list[list[bool]], right: int
) -> None:
    row = grouped_share_row("x", groups)
    assert (row.low, row.high) == tuple(round(100 * end, 2) for end in wilson(right, 12))
    assert row.n == sum(map(len, groups))


def test_a_group_of_nothing_says_nothing() -> None:
    groups = [[True, False], [True]]
    assert grouped_share_row("x", [[], *groups]) == grouped_share_row("x", groups)
    for none in ([], [[]]):
        with pytest.raises(ValueError, match="no outcomes"):
            grouped_share_row("x", none)


def test_rows_and_tables_have_the_projects_format(tmp_path: Path) -> None:
    rows = [share_row("draw/x", [True, True, False, True]), median_row("s", [3.0, 1.0, 2.0], "s")]
    assert rows[0] == Row("draw/x", 75.0, rows[0].low, rows[0].high, 4, "%")
    assert (rows[1].value, rows[1].low, rows[1].high, rows[1].n) == (2.0, 1.0, 3.0, 3)
    path = tmp_path / "new" / "t.json"
    save(path, report("python x", rows, setting=1))
    table = json.loads(path.read_text())
    assert set(table) == {"command", "machine", "versions", "commit", "notes", "rows"}
    assert set(table["rows"][0]) == {"name", "value", "low", "high", "n", "unit"}
    assert table["versions"]["numpy"] == np.__version__
    assert [p.name for p in path.parent.iterdir()] == ["t.json"]


def test_the_machine_names_the_gpu_only_where_it_was_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"H100 at {device}")
    for on in ("cpu", torch.device("cpu")):
        assert "H100" not in report("x", [], on)["machine"]
    assert "H100" not in report("x", [])["machine"]
    assert results.machine("cuda:0").endswith("torch threads, H100 at cuda:0")
    assert results.machine(torch.device("cuda")).endswith("H100 at cuda")


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.json"
    results.write_whole(path, b"old")
    monkeypatch.setattr(Path, "replace", _fail)
    with pytest.raises(OSError, match="disk"):
        results.write_whole(path, b"new")
    assert path.read_bytes() == b"old"


def _fail(*_: object) -> None:
    raise OSError("disk full")


def test_committed_tables_have_the_format() -> None:
    for path in results.RESULTS.glob("*.json"):
        table = json.loads(path.read_text(encoding="utf-8"))
        assert {"command", "machine", "versions", "commit", "rows"} <= set(table), path
        for row in table["rows"]:
            assert set(row) == {"name", "value", "low", "high", "n", "unit"}, path
            assert row["low"] <= row["value"] <= row["high"], (path, row)


def test_grid_frames_say_right_and_wrong(tmp_path: Path) -> None:
    picture = Image.new("RGB", (128, 128), "white")
    cells = [Cell(picture, "a cat in a picture", True), Cell(picture, "two dogs " * 12, False)]
    sheet = grid(cells, "title")
    colours = {colour for _, colour in sheet.getcolors(1 << 20) or []}
    assert {RIGHT, WRONG} <= colours
    for name in ("g.png", "g.webp"):
        save_grid(tmp_path / name, cells, "title")
    png, webp = (Image.open(tmp_path / name) for name in ("g.png", "g.webp"))
    assert (png.format, webp.format) == ("PNG", "WEBP")
    assert png.size == sheet.size and png.convert("RGB").tobytes() == webp.tobytes()
    assert grid([], "nothing drawn").width == sheet.width
    assert grid(cells, "a row each", columns=1).width < sheet.width / 4
    assert grid(cells, "a row each", columns=1).height > 1.5 * sheet.height


def test_answers_are_compared_without_article_case_and_stop() -> None:
    assert normal("A Cat.") == normal("cat") == normal(" the  cat ")
    assert normal("An apple") == "apple"
    assert normal("two cats") != normal("a cat")


def test_questions_are_held_out_and_as_many_of_each_kind() -> None:
    asked = make_questions(10)
    assert asked == make_questions(10)
    assert [one.question.kind for one in asked[: len(KINDS)]] == list(KINDS)
    assert len(asked) == 10 * len(KINDS)
    assert all(is_held_out(one.scene) for one in asked)
    rows = {row.name: row for row in ask_rows(asked, [True] * len(asked))}
    assert rows["ask/overall"].n == 10 * len(KINDS)
    assert rows["ask/overall_short"].n == 10 * (len(KINDS) - 1)
    assert {f"ask/{kind}" for kind in KINDS} <= set(rows)


def test_questions_about_one_scene_are_no_independent_trials() -> None:
    asked = make_questions(60)
    scenes = list(dict.fromkeys(one.scene for one in asked))
    right = [scenes.index(one.scene) % 2 == 0 for one in asked]
    row = ask_rows(asked, right)[0]
    assert row.n == len(asked) > len(scenes)
    pooled = share_row("x", right)
    assert row.value == pooled.value and row.high - row.low > pooled.high - pooled.low


def test_first_ranks_of_both_directions() -> None:
    similarity = np.array([[3.0, 0.0, 4.0], [1.0, 2.0, 0.0], [0.0, 0.0, 5.0]])
    to_image, to_text = first_ranks(similarity)
    assert to_image == [True, True, True]
    assert to_text == [False, True, True]


def test_draw_rows_count_by_kind() -> None:
    seen = PictureContent("white", None, (), 1)
    scored = [
        (task, np.zeros((128, 128, 3), dtype=np.uint8), seen, judge_task(task, seen))
        for task in interleaved(5)
    ]
    rows = {row.name: row for row in draw_rows(scored)}
    assert rows["draw/binding"].value == 0 and rows["draw/binding"].n == 5
    assert rows["draw/all_six"].n == 30
    assert rows["draw/something_unrecognised"].value == 100


def test_what_was_seen_in_words() -> None:
    things = (ObjectMatch(0, "noto", "small", "red", 8, 16, 32, 1.0, 1.0),)
    assert describe(PictureContent("blue", "noto", things, 2)) == (
        "small red monkey (8,16); 2 unrecognised; noto, blue"
    )


def test_every_command_is_offered() -> None:
    for name in COMMANDS:
        assert parser().parse_args([name]).what == name
    with pytest.raises(SystemExit):
        parser().parse_args(["nonsense"])


def test_the_table_says_what_is_reached_missed_and_not_measured(tmp_path: Path) -> None:
    draw = [Row("draw/single_object", 90.0, 80.0, 95.0, 200, "%")]
    speed = [Row("speed/picture/bridge", 11.0, 10.0, 12.0, 7, "s")]
    save(tmp_path / "draw.json", report("python draw", draw))
    save(tmp_path / "speed.json", report("python speed", speed))
    lines = markdown(tmp_path).splitlines()
    assert "| single object right | 90 % [80, 95] | 200 | 85 %: reached | 97 %: missed |" in lines
    assert any("| 11 s [10, 12] | 7 | under 10 s: missed | under 4 s: missed |" in x for x in lines)
    assert sum("not measured" in line for line in lines) == len(FIGURES) - 2
