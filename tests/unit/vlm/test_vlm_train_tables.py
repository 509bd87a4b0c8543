"""Line ends inside of values: a caption may hold any of Unicode's, and a quoted one new lines."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from support.tiny_training import coloured

from bridge.vlm.train.data import Picture, read_data

CAPTION = "a cat,\u2028a \x85 and a \u2029dog"


def test_a_line_of_json_may_hold_unicodes_line_ends(tmp_path: Path) -> None:
    coloured(tmp_path / "a.png", "red")
    records = [{"file_name": "a.png", "text": text} for text in (CAPTION, "a key")]
    lines = "\r\n".join(json.dumps(each, ensure_ascii=False) for each in records)
    (tmp_path / "metadata.jsonl").write_bytes(lines.encode())
    rows = read_data(tmp_path)
    assert [row.turns[0][1] for row in rows] == [CAPTION, "a key"]
    assert "line 2" in rows[1].where


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_quoted_field_keeps_its_new_lines(end: str, tmp_path: Path) -> None:
    coloured(tmp_path / "a.png", "red")
    captions = ["a cat\nand a dog\n\nasleep", CAPTION]
    with (tmp_path / "metadata.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator=end)
        table.writerows([("file_name", "text"), *(("a.png", text) for text in captions)])
    assert [row.turns[0][1] for row in read_data(tmp_path)] == captions


def test_a_picture_in_the_home_folder_has_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    coloured(tmp_path / "a.png", "red")
    near, far = (Picture("a", (32, 40), lambda: "~/a.png"), tmp_path / "a.png")
    assert near.key() == Picture("a", (32, 40), lambda: far).key()
    assert np.asarray(near.load()).shape == (32, 40, 3)
