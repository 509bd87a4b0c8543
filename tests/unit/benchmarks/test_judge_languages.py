"""The benchmark of languages: what it counts, what it writes, and that a good tower wins in it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import languages
from benchmarks.results import report, save, wilson
from benchmarks.retrieval import make_scenes
from bridge.lab.variants.vocabulary import LANGUAGES
from bridge.towers import open_text_tower


def outcomes(right: int, n: int = 100) -> list[bool]:
    return [at < right for at in range(n)]


def found(english: int, foreign: int) -> dict[str, list[bool]]:
    return {"en": outcomes(english)} | {language: outcomes(foreign) for language in LANGUAGES}


def test_the_share_of_the_gap_is_what_it_says() -> None:
    english, multilingual = found(80, 20), found(70, 65)
    row = languages.gap_row("x", english, multilingual, ["de"])
    assert row.value == pytest.approx(100 * (65 - 20) / (80 - 20))
    assert row.low < row.value < row.high <= 100 and row.n == 100
    assert languages.gap_row("x", english, english, ["de", "fr"]).value == 0
    with pytest.raises(ValueError, match="as much"):
        languages.gap_row("x", found(20, 20), multilingual, ["de"])


def test_rows_are_shares_with_wilsons_intervals() -> None:
    english, multilingual = found(80, 20), found(70, 65)
    english["en-gb"] = outcomes(75)  # hardly a gap: no share of it is told
    rows = {row.name: row for row in languages.rows_of(english, multilingual)}
    row = rows["languages/ja/multilingual_tower"]
    assert (row.value, row.n) == (65, 100)
    assert (row.low, row.high) == tuple(round(100 * end, 2) for end in wilson(65, 100))
    assert rows["languages/en/english_tower"].value == 80
    assert "languages/gap_closed" in rows and "languages/de/gap_closed" in rows
    assert "languages/en-gb/gap_closed" not in rows and "languages/en/gap_closed" not in rows


def test_captions_are_of_the_seed_and_all_different() -> None:
    scenes = list(make_scenes(0, 60).values())
    for language in ("de", "hi", "zh"):
        texts = languages.captions_in(language, scenes, 0)
        assert texts == languages.captions_in(language, scenes, 0)
        assert texts != languages.captions_in(language, scenes, 1)
        assert len(set(texts)) == len(scenes)


@pytest.mark.models
def test_a_tower_finds_the_pictures_of_its_own_states() -> None:
    """Where the pictures' states are the texts', each finds its own; the next one's, none."""
    tower = open_text_tower("emoji-1", device="cpu")
    texts = list(make_scenes(0, 12))
    states = tower.encode(texts).pooled
    assert states is not None
    own = states.float().numpy()
    assert all(languages.finds(tower, texts, own))
    assert not any(languages.finds(tower, texts, np.roll(own, 1, axis=0)))


def test_the_chart_is_small(tmp_path: Path) -> None:
    rows = languages.rows_of(found(80, 20), found(70, 65))
    languages.draw_chart(rows, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size <= 40_000
    assert Image.open(tmp_path / "chart.png").width > 300
    save(tmp_path / "languages.json", report("x", rows))
    assert len(json.loads((tmp_path / "languages.json").read_text())["rows"]) == len(rows)
