"""Where tests stand: below tests/unit as the source is laid out, and no test imports another."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from support.places import ROOT, TESTS

KINDS = {"unit", "parity", "models", "browser", "fuzz"}
BESIDE = {"repository", "emoji_world", "benchmarks", "demos"}
FILES = sorted(TESTS.rglob("*.py"))
SUITES = [path for path in FILES if path.stem.startswith("test_")]


def imported(text: str) -> Iterator[str]:
    """The modules that a file names in an import, at its top or within a function."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def suites_in(text: str) -> set[str]:
    parts = {part for name in imported(text) for part in name.split(".")}
    return parts & {path.stem for path in SUITES}


def test_no_file_imports_a_test() -> None:
    found = {path: suites_in(path.read_text(encoding="utf-8")) for path in FILES}
    assert not {path: names for path, names in found.items() if names}


def test_the_check_can_fail() -> None:
    assert suites_in("def f():\n    from test_rooms import ROOMS") == {"test_rooms"}
    assert suites_in("import unit.repository.test_docs as docs") == {"test_docs"}
    assert suites_in("from unit.repository import test_docs") == {"test_docs"}


def test_every_test_is_of_a_kind() -> None:
    assert {path.relative_to(TESTS).parts[0] for path in SUITES} == KINDS


def test_every_folder_of_unit_tests_is_a_room_or_stands_beside_the_library() -> None:
    rooms = {path.name for path in (ROOT / "bridge").iterdir() if any(path.glob("*.py"))}
    folders = {path.name for path in (TESTS / "unit").iterdir() if any(path.rglob("*.py"))}
    assert folders == rooms | BESIDE


def test_names_of_files_are_their_own() -> None:
    """pytest imports a test by its name alone, as no folder of tests is a package."""
    names = [path.stem for path in SUITES]
    assert len(set(names)) == len(names)
