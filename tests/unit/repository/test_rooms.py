"""The house: a room imports those below it, never one above (docs/architecture.md)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.places import ROOT

HOME = ROOT / "bridge"
# What each room may import besides what all use. The encoder takes other towers and adapters from
# the adapters' room, and adapters are fitted on an encoder's rows: those two are one floor.
ROOMS = {
    "prompt": set(),
    "towers": set(),
    "training": {"towers"},
    "contrastive": {"towers", "training"},
    "vlm": {"prompt", "towers", "training"},
    "adapters": {"prompt", "towers", "encoding"},
    "encoding": {"prompt", "towers", "adapters"},
    "diffusion": {"prompt", "towers", "adapters", "encoding"},
    "lab": {"prompt", "towers", "adapters", "encoding", "diffusion"},
}  # type: dict[str, set[str]]
# Files beside the rooms that are made of them; no room may need one.
MADE_OF_ROOMS = {"cli", "comfyui"}


def imported(path: Path) -> Iterator[str]:
    """What of bridge a file imports, at its top or within a function: the name after ``bridge``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            module = node.module or ""
            of_bridge = [f"bridge.{alias.name}" for alias in node.names]
            names = of_bridge if module == "bridge" else [module]
        else:
            continue
        for name in names:
            if name.startswith("bridge."):
                yield name.split(".")[1]


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_imports_no_room_above_it(room: str) -> None:
    paths = sorted((HOME / room).rglob("*.py"))
    assert paths
    for path in paths:
        above = {*imported(path)} & ({*ROOMS} - ROOMS[room] - {room} | MADE_OF_ROOMS)
        assert not above, (path, above)


def test_what_all_use_imports_no_room() -> None:
    made = {*MADE_OF_ROOMS, "__init__", "__main__"}
    for path in sorted(HOME.glob("*.py")):
        if path.stem not in made:
            assert not {*imported(path)} & {*ROOMS}, path


def test_every_folder_is_a_room() -> None:
    folders = {path.name for path in HOME.iterdir() if any(path.glob("*.py"))}
    assert folders == {*ROOMS}


def test_the_check_can_fail() -> None:
    assert {"encoding", "prompt"} <= {*imported(HOME / "diffusion" / "drawing.py")}
