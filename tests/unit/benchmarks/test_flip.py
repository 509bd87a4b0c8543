"""benchmarks.flip: which runs there are, for how long, and what is lost by hand."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import flip
from benchmarks.adapt_clip import STEPS, Outcomes, Part, outcomes_file
from benchmarks.flip import Masked
from benchmarks.results import Row
from emoji_world.art import HELD_OUT_STYLE
from emoji_world.scenes import STYLES


def outcomes(new: list[int]) -> Outcomes:
    told = {"to_image": new, "to_text": new}
    return {HELD_OUT_STYLE: told, **{style: {k: [1, 1] for k in told} for style in STYLES}}


def test_equal_samples_are_as_many_steps_and_equal_time_is_as_long() -> None:
    whole = STEPS[flip.PAIRS]
    for run in flip.runs([0]):
        if run.equal == "samples":
            assert run.steps == whole
            continue
        masked = round(run.steps * (1 - run.unmasked))
        took = masked / flip.FASTER[run.share] + (run.steps - masked)
        assert took == pytest.approx(whole, rel=0.02) and run.steps > whole


def test_each_seed_has_every_way_and_no_two_runs_one_file() -> None:
    runs = flip.runs([0, 1])
    assert len({run.file for run in runs}) == len(runs) == 2 * len({run.cell for run in runs})
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)


def test_what_is_lost_by_hand() -> None:
    rows = {
        row.name: row.value
        for row in flip.rows_of({"50%/a": [outcomes([1, 0]), outcomes([0, 0])]}, [outcomes([1, 1])])
    }
    assert rows == {
        "whole/new/r_at_1": 100,
        "50%/a/new/r_at_1": 25,
        "50%/a/new/lost": 75,
        "50%/a/old/lost": 0,
    }


def test_the_table_needs_whole_pictures_and_the_speed_and_says_what_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for run in flip.runs([0]):
        (tmp_path / f"{run.file}.json").write_text(json.dumps(outcomes([1, 0])))
    monkeypatch.setattr(flip, "work", lambda *_: pytest.fail("it was measured"))
    place = ["flip", "--seeds", "1", "--cache", str(tmp_path), "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", place)
    with pytest.raises(SystemExit, match=r"benchmarks\.adapt_clip.*benchmarks\.flip speed"):
        flip.main()
    whole = outcomes_file(Part("full", flip.PAIRS, 0, 1.0), tmp_path)
    whole.write_text(json.dumps(outcomes([1, 1])))
    speed = [asdict(Row("faster/50%", 1.5, 1.4, 1.6, 5, "x"))]
    (tmp_path / "flip-speed.json").write_text(json.dumps(speed))
    flip.main()
    rows = {r["name"]: r for r in json.loads((tmp_path / "flip.json").read_text())["rows"]}
    assert rows["faster/50%"]["value"] == 1.5
    assert rows["75%/equal_time/then_whole/new/lost"]["value"] == 50


def test_steps_are_named_by_share() -> None:
    assert Masked(0.75, 0.0, "samples", 0).cell == "75%/equal_samples/masked_to_the_end"
