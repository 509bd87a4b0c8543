"""The emoji world is not a part of the library: what ships by name is read from a file."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.places import ROOT

from bridge.embedded import (
    ANSWERING,
    DRAWING,
    EMBEDDED,
    EMBEDDED_TOWERS,
    IMAGE_TOWER,
    STUDY_TOWERS,
    read_catalogue,
    weights_dir,
)
from bridge.errors import WeightsError
from bridge.manifest import read_manifest

SOURCES = sorted(
    path
    for path in (ROOT / "bridge").rglob("*")
    if path.is_file() and not {"__pycache__", "_weights"} & set(path.parts)
)
OUTSIDE = {"benchmarks", "demos", "emoji_world", "tests"}


def test_the_library_imports_nothing_that_stands_beside_it() -> None:
    for path in SOURCES:
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            assert not OUTSIDE & {name.split(".")[0] for name in names}, (path, names)


def test_no_file_of_the_library_speaks_of_the_world() -> None:
    """By content and by name, in any case; data files too."""
    assert len(SOURCES) > 100
    found = [path for path in SOURCES if b"emoji" in path.read_bytes().lower()]
    found += [path for path in SOURCES if "emoji" in str(path.relative_to(ROOT)).lower()]
    assert not found


# ---------------------------------------------------------------- what ships, by name


def test_the_catalogue_names_what_the_manifest_has() -> None:
    folders = {path.split("/")[0] for path in read_manifest()}
    assert set(EMBEDDED) == folders - {"curves"}
    assert {DRAWING, ANSWERING} <= set(EMBEDDED)
    towers = {row["name"] for row in EMBEDDED_TOWERS}
    assert {IMAGE_TOWER, *STUDY_TOWERS} <= towers
    assert {row["source"] for row in EMBEDDED_TOWERS} <= set(EMBEDDED)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "is missing"),
        ("{", "JSON"),
        ("[]", "no JSON object"),
        ("{}", "names no models"),
        ('{"models": [], "defaults": {}, "towers": []}', "names no models"),
        ('{"models": {"a": 3}, "defaults": {}, "towers": []}', "names no a"),
        ('{"models": {}, "defaults": {"drawing": 3}, "towers": []}', "names no drawing"),
    ],
)
def test_a_damaged_catalogue_is_one_clear_error(
    content: str | None, fault: str, tmp_path: Path
) -> None:
    path = tmp_path / "models.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(WeightsError, match=fault) as caught:
        read_catalogue(path)
    assert str(path) in str(caught.value)


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_a_weights_folder_may_bring_names_of_its_own(tmp_path: Path) -> None:
    told = json.loads((weights_dir() / "models.json").read_text(encoding="utf-8"))
    told["models"] = {"painter": {"guidance_scale": 7.5}}
    told["defaults"]["drawing"] = "painter"
    (tmp_path / "models.json").write_text(json.dumps(told))
    code = (
        "import inspect, bridge\n"
        "from bridge.diffusion.options import default_guidance\n"
        "print(inspect.signature(bridge.condition).parameters['model'].default,"
        " default_guidance('painter'), default_guidance('other'))"
    )
    done = run(code, BRIDGE_WEIGHTS=str(tmp_path))
    assert done.stdout == "painter 7.5 5.0\n", done.stderr
    told["towers"][0]["colour"] = "red"
    (tmp_path / "models.json").write_text(json.dumps(told))
    done = run("from bridge.cli import main; main(['towers'])", BRIDGE_WEIGHTS=str(tmp_path))
    assert done.stderr.startswith("bridge: error: ") and "models.json" in done.stderr, done.stderr
    assert "colour" in done.stderr and done.stderr.count("\n") == 1


# ---------------------------------------------------------------- the wheel


def test_the_wheel_has_the_library_and_its_data_alone(tmp_path: Path) -> None:
    built = tmp_path / "lib"
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(built)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    assert {path.name for path in built.iterdir()} == {"bridge"}
    packed = {path.relative_to(built).as_posix() for path in built.rglob("*") if path.is_file()}
    assert {"bridge/_weights/models.json", "bridge/_weights/captions.json"} <= packed
    assert {
        "bridge/page.jinja",
        "bridge/lab/report.jinja",
        "bridge/contrastive/charts.jinja",
    } <= packed
    assert not [name for name in packed if "emoji_world" in name or "npm" in name]
    code = (
        f"import sys; sys.path[:0] = [{str(built)!r}]\n"
        "import bridge\n"
        "from bridge.embedded import weights_dir\n"
        "from bridge.lab.variants import Settings, vary\n"
        "print(weights_dir())\n"
        "(found,) = vary('Two red cats left of a dog.', ['language'], Settings(names=['de']))\n"
        "print(found.text)"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "BRIDGE_WEIGHTS")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    shown = [str(built / "bridge/_weights"), "zwei rot Katze links von Hund"]
    assert done.stdout.splitlines() == shown, done.stderr
