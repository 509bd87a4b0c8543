"""The table of towers: names, what is at hand, and that every row's family is proved equal."""

from __future__ import annotations

import ast
import json

import pytest
from support.places import ROOT, TESTS

from bridge.cli import main
from bridge.embedded import EMBEDDED
from bridge.errors import HubError, WeightsError
from bridge.towers import IMAGE_FAMILIES, TEXT_FAMILIES, open_image_tower, open_text_tower, towers
from bridge.towers.registry import ROWS, find_row, markdown_lines

# Family -> the test that compares it with its reference.
PROVED = {
    "clip": "test_shipped_towers.test_an_embedded_tower_is_transformers_clip_model",
    "open_clip": "test_towers_open_clip.test_open_clip",
    "open_clip_words": "test_open_clip_sides."
    "test_words_of_transformers_are_cleaned_and_filled_as_open_clip_does",
    "open_clip_hf": "test_towers_open_clip.test_open_clip_over_xlm_roberta",
    "clip_relatives": "test_clip_relatives.test_clip_relatives",
    "vision_models": "test_clip_relatives.test_vision_models",
    "coca": "test_towers_open_clip.test_coca",
    "siglip": "test_towers_families.test_siglip",
    "align": "test_towers_families.test_align",
    "blip2": "test_towers_families.test_blip_2_for_retrieval",
    "multilingual_clip": "test_towers_families.test_multilingual_clip",
    "t5": "test_towers_families.test_t5",
    "language_model": "test_towers_families.test_language_models",
}


def test_every_family_has_its_exactness_test() -> None:
    assert set(PROVED) == {*TEXT_FAMILIES, *IMAGE_FAMILIES}
    for family, place in PROVED.items():
        module, _, name = place.partition(".")
        (path,) = TESTS.rglob(f"{module}.py")
        text = path.read_text(encoding="utf-8")
        (test,) = (node for node in ast.parse(text).body if getattr(node, "name", "") == name)
        # By name it is that family's: the tower that is compared says so there.
        assert f'"{family}"' in str(ast.get_source_segment(text, test)), (family, place)


def test_rows_are_whole() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    for row in ROWS:
        assert find_row(row.name) is row
        assert row.family in {*TEXT_FAMILIES, *IMAGE_FAMILIES}
        assert row.source in EMBEDDED or row.source.count("/") == 1
        assert (row.text_width > 0) == (row.context > 0) == (row.layers > 0)
        assert (row.image_width > 0) == (row.patch > 0) == (row.image_size > 0)
        assert row.text_width or row.image_width
        assert row.licence
        if row.image_width:
            assert row.family in IMAGE_FAMILIES


def test_embedded_towers_are_at_hand_and_others_are_not() -> None:
    at_hand = {row["name"] for row in towers() if row["at_hand"]}
    assert {"emoji-1", "emoji-2"} <= at_hand
    assert "openclip-bigg" not in at_hand


def test_a_row_that_is_not_at_hand_asks_for_the_hub() -> None:
    for open_tower in (open_text_tower, open_image_tower):
        with pytest.raises(HubError, match="openai/clip-vit-large-patch14"):
            open_tower("clip-l", device="cpu")


def test_a_pickle_is_not_fetched() -> None:
    with pytest.raises(WeightsError, match=r"hf download M-CLIP/LABSE-Vit-L-14.*allow_pickle"):
        open_text_tower("mclip-labse-l14", device="cpu")


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["towers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(ROWS) + 1
    assert lines[0].split()[:3] == ["name", "family", "text"]
    first = lines[1].split()
    assert first[:6] == ["emoji-1", "clip", "192", "192", "77", "4"]
    assert first[6:] == ["192/16@128", "yes", "emoji-clip"]
    assert main(["towers", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["towers"]
    assert [row["name"] for row in rows] == [row.name for row in ROWS]


def test_the_documentation_has_every_row() -> None:
    text = (ROOT / "docs/towers.md").read_text(encoding="utf-8")
    for line in markdown_lines([{**row, "at_hand": row["source"] in EMBEDDED} for row in towers()]):
        assert line in text
