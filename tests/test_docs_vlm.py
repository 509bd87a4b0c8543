"""The walk-through of docs/vlm.md is run as it stands, on a folder of ten emoji."""

from __future__ import annotations

import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import bridge
from bridge.cli import main
from bridge.vlm.projectors import PROJECTORS

ROOT = Path(__file__).resolve().parent.parent
DOC = (ROOT / "docs" / "vlm.md").read_text(encoding="utf-8")
SIDE = 64  # the sample's sprites


def section(title: str) -> str:
    return DOC.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def make_pictures(folder: Path) -> list[str]:
    """One style of the ten sprites, each on white in the middle of 128x128 and with a caption."""
    folder.mkdir()
    with np.load(ROOT / "tests" / "data" / "sprites_sample.npz") as stored:
        atlas = Image.open(io.BytesIO(stored["webp"].tobytes()))
        names = [str(name) for name in stored["names"]]
    for number, name in enumerate(names):
        corner = (number * SIDE, 0)  # the first row is the first style
        sprite = atlas.crop((*corner, corner[0] + SIDE, corner[1] + SIDE))
        picture = Image.new("RGB", (128, 128), "white")
        picture.paste(sprite, (32, 32), sprite)
        picture.save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a {name}\n", encoding="utf-8")
    return names


def test_the_walk_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = make_pictures(tmp_path / "pictures")
    said: dict[str, str] = {}
    steps = section("In ten minutes, on your own pictures")
    for language, code in re.findall(r"```(sh|python)\n(.*?)```", steps, re.S):
        for step in code.strip().splitlines() if language == "sh" else [code]:
            capsys.readouterr()
            if language == "sh":
                program, *arguments = shlex.split(step)
                assert program == "bridge" and main(arguments) == 0, capsys.readouterr().err
            else:
                exec(compile(step, "docs/vlm.md", "exec"), {})
            said[step] = capsys.readouterr().out.strip()
    assert len(said) == 5, "three commands and two programs"
    for folder, falls in (("stage1", 0.3), ("stage2", 1.0), ("stage1-again", 0.9)):
        losses = [row["loss"] for row in json.loads((tmp_path / folder / "log.json").read_text())]
        assert np.mean(losses[-5:]) < falls * np.mean(losses[:5]), (folder, losses)
    answers = said_by(said)
    assert answers["ask"] in {f"a {name}" for name in names}
    assert answers["ask"] == answers["python"][0]
    assert answers["python"][1] == "a cat"
    right = sum(
        bridge.describe(f"pictures/{name}.png", model=str(tmp_path / "stage2")) == f"a {name}"
        for name in names
    )
    assert right >= 8, "ten pictures, seen some 28 times each"


def said_by(said: dict[str, str]) -> dict[str, Any]:
    ask = next(out for step, out in said.items() if step.startswith("bridge ask"))
    python = next(out for step, out in said.items() if "vlm.choose" in step)
    return {"ask": ask, "python": python.splitlines()}


def test_every_projector_is_in_the_table() -> None:
    table = section("Projectors")
    assert all(f"`{name}`" in table for name in PROJECTORS)


def test_what_the_page_names_is_there() -> None:
    for name in re.findall(r"`bridge\.vlm\.(\w+)", DOC):
        assert hasattr(bridge.vlm, name) or (ROOT / "bridge" / "vlm" / f"{name}.py").is_file()
    for test in re.findall(r"`(test_\w+)`", DOC):
        assert any(test in p.read_text(encoding="utf-8") for p in (ROOT / "tests").glob("*.py"))
    for path in re.findall(r"`(tests/[\w.]+)`", DOC):
        assert (ROOT / path).is_file()
