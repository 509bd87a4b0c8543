"""The doors of bridge where its core dependencies alone are installed, and what the others say.

The environment is a virtual one, made afresh, in whose site-packages is what pip would put there:
the files of every distribution that the requirements of pyproject.toml reach, by the metadata of
those that are installed here; as links, since copies of torch take minutes. Its Python starts with
no other path (``-I`` leaves PYTHONPATH, the user's site and the folder it stands in out), so a
package that nothing asks for cannot be imported, found by ``find_spec`` or named by
``importlib.metadata``, just as in an environment that was installed. What this does not see is
whether pip finds those versions; that is for constraints.txt and CI's own installing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name
from support.places import ROOT
from support.requirements import closure

WORKS = {
    "import bridge": "assert {'generate', 'vlm'} <= set(dir(bridge))",
    "Encoder": "bridge.Encoder('emoji-xl')('a (red:1.3) cat', 'blurry').kwargs()",
    "tokens": "str(bridge.Encoder('emoji-xl').tokens('a (red:1.3) cat'))",
    "condition": "str(bridge.condition('a (cafÃ©:1.3)', dialect='comfy', clean='ftfy').report())",
    "generate": "bridge.generate('a cat', seed=1, steps=1).images[0].save('cat.png')",
    "describe": "assert bridge.describe('cat.png', 'what is it?')",
    "CLIP": "clip = bridge.CLIP('emoji-1'); clip.probabilities(clip.encode_image('cat.png'), "
    "clip.encode_text(['a cat', 'a dog']))",
    "load_vlm": "bridge.load_vlm('emoji-llava').choose('cat.png', 'what is it?', ['cat', 'dog'])",
}
"""What runs in one process, where ``bridge`` is imported."""

NAMES_ITS_EXTRA = {
    "study": ("bridge.study('a cat', variants=['case'])", "lab", "pandas"),
    "a study's measures": (
        "from bridge.lab.measures import scipy_stats; scipy_stats()", "lab", "scipy",
    ),
    "charts": (
        "from bridge.pictures import draw_curve; from pathlib import Path; "
        "draw_curve([{'minutes': 1, 'loss': 2}], Path('curve.png'), 'a curve')",
        "train", "matplotlib",
    ),
    "app": ("import demos.app", "app", "gradio"),
    "a packaged language model": ("bridge.load_vlm('emoji-gemma')", "gemma", "gguf"),
}  # fmt: skip

PROGRAM = """
import bridge, json, sys, traceback
found = {}
for door, code in json.load(sys.stdin).items():
    try:
        exec(compile(code, door, "exec"))
        found[door] = None
    except BaseException as error:
        shown = "".join(traceback.format_exception(error))
        found[door] = (type(error).__name__, str(error), shown)
print(json.dumps(found))
"""


def link(names: frozenset[str], site: Path) -> None:
    """The installed files of distributions into another site-packages.

    A package, or what tells of a distribution, is linked whole. A folder that several may share
    (protobuf's `google`) is made, and what is in it linked.
    """
    for name in names:
        for file in metadata.files(name) or ():
            if ".." not in file.parts:  # else a program, in bin/
                link_first(Path(str(file.locate())), site, file.parts)


def link_first(file: Path, site: Path, parts: Sequence[str]) -> None:
    """The outermost of a file's folders that is a package, else the file."""
    for depth in range(1, len(parts) + 1):
        here = file.parents[len(parts) - 1].joinpath(*parts[:depth])
        there = site.joinpath(*parts[:depth])
        if there.is_symlink() or not here.exists():
            return
        if here.is_file() or (here / "__init__.py").exists():
            return there.symlink_to(here)
        there.mkdir(exist_ok=True)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has the core dependencies and bridge."""
    place = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True, timeout=60)
    (site,) = place.glob("lib/python*/site-packages")
    link(closure(), site)
    (site / "bridge.pth").write_text(f"{ROOT}\n")  # as `pip install -e` leaves it
    return place / "bin" / "python"


def run_all(python: Path, code: Mapping[str, str], place: Path) -> dict[str, list[str] | None]:
    """What became of each door: None, or the error's type, its text and its traceback."""
    done = subprocess.run(
        [python, "-I", "-c", PROGRAM],
        input=json.dumps(code),
        env={"HOME": str(place), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"},
        cwd=place,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, list[str] | None] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def outcomes(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str] | None]:
    code = WORKS | {door: code for door, (code, _, _) in NAMES_ITS_EXTRA.items()}
    return run_all(bare, code, tmp_path_factory.mktemp("home"))


@pytest.mark.models
@pytest.mark.parametrize("door", WORKS)
def test_a_door_works_with_the_core_dependencies_alone(
    door: str, outcomes: dict[str, list[str] | None]
) -> None:
    assert outcomes[door] is None, (outcomes[door] or ["", "", ""])[2]


@pytest.mark.parametrize("door", NAMES_ITS_EXTRA)
def test_a_further_door_names_its_extra(door: str, outcomes: dict[str, list[str] | None]) -> None:
    _, extra, package = NAMES_ITS_EXTRA[door]
    kind, text, traceback = outcomes[door] or ("nothing", "was raised", "")
    assert kind == "MissingDependencyError", traceback
    assert package in text and f"pip install 'bridge[{extra}]'" in text


def test_the_environment_has_no_other_package(bare: Path) -> None:
    code = "from importlib.metadata import distributions; import json; "
    code += "print(json.dumps([each.name for each in distributions()]))"
    told = subprocess.run([bare, "-I", "-c", code], capture_output=True, text=True, check=True)
    found = {canonicalize_name(name) for name in json.loads(told.stdout)}
    assert found - {"bridge"} == closure()
    assert not {"gradio", "pandas", "scipy", "matplotlib", "compel", "pytest"} & found


def test_the_app_says_so_in_a_line(bare: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [bare, "-I", ROOT / "demos" / "app.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("bridge: the app needs the package gradio")
    assert "pip install 'bridge[app]'" in done.stderr
