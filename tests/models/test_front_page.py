"""The pictures of the README, and the command that draws them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image
from support.places import ROOT

from benchmarks.front_page import LARGEST, WIDTH, main

NAMES = {"prompt.webp", "answer.webp", "study.webp"}


def check(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == NAMES
    for path in folder.iterdir():
        with Image.open(path) as picture:
            assert picture.width == WIDTH and picture.mode == "RGBA", path
            corner, middle = (0, 0), (WIDTH // 2, 8)
            assert picture.getpixel(corner)[3] == 0 and picture.getpixel(middle)[3] == 255
        assert path.stat().st_size <= LARGEST


def test_the_pictures_that_are_kept() -> None:
    check(ROOT / "docs" / "pictures")


@pytest.mark.slow
@pytest.mark.models
def test_the_command_draws_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["front_page", "--out", str(tmp_path / "drawn")])
    main()
    check(tmp_path / "drawn")
