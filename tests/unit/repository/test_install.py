"""Installing, with stubs in the place of Python and pip: what is made, asked for and repeated."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.places import ROOT
from support.requirements import closure

# Notes its arguments; as $INSTALLED it has a torch, and beside a file "pip" it has a pip.
PYTHON = """#!/bin/sh
printf '%s\\n' "$*" >> "$LOG"
case "$*" in
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && touch "$3/bin/pip" ;;
    "-m pip --version") test -e "$(dirname "$0")/pip" ;;
    *'version("torch")'*) echo "$INSTALLED" ;;
esac
"""


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A repository of the files that install, and a stub of Python."""
    for name in ("Makefile", "constraints.txt", "tools/install.sh"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("pyproject.toml", "setup.py"):
        (tmp_path / name).touch()
    program(tmp_path / "python", PYTHON)
    return tmp_path


def noted(copy: Path, *command: str, **environment: str) -> list[str]:
    """Run a command in the copy; the lines that its stubs noted."""
    log = copy / "log"
    log.write_text("")
    # Without MAKEFLAGS and the rest of what a `make test` around this hands down.
    place = {"PATH": os.environ["PATH"], "PYTHON": str(copy / "python"), "LOG": str(log)}
    subprocess.run(command, cwd=copy, env=place | environment, check=True, timeout=60)
    return log.read_text().splitlines()


def test_an_environment_without_pip_is_finished(copy: Path) -> None:
    program(copy / ".venv/bin/python", PYTHON)  # as Ctrl-C leaves it
    command = ("tools/install.sh", ".venv")
    assert "-m venv .venv" in noted(copy, *command, BRIDGE_TORCH="cuda", INSTALLED="")
    assert "-m venv .venv" not in noted(copy, *command, BRIDGE_TORCH="cuda", INSTALLED="")


def test_the_cpu_build_is_not_taken_for_the_cuda_build(copy: Path) -> None:
    constraints = (copy / "constraints.txt").read_text().splitlines()
    (version,) = (line[len("torch==") :] for line in constraints if line.startswith("torch=="))
    lines = noted(
        copy, "tools/install.sh", ".venv", BRIDGE_TORCH="cuda", INSTALLED=f"{version}+cpu"
    )
    (asked,) = (line.split()[-1] for line in lines if " torch==" in line)
    wanted = Requirement(asked).specifier
    assert [wanted.contains(version + build) for build in ("", "+cu130", "+cpu")] == [1, 1, 0]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_installs_again_for_another_build_of_torch_only(copy: Path) -> None:
    program(copy / "tools/install.sh", 'echo install >> "$LOG"; mkdir -p "$1"\n')
    program(copy / ".venv/bin/python", PYTHON)
    wishes = ["cpu", "cpu", "cuda", "cuda", "cpu", "", ""]
    found = ["install" in noted(copy, "make", "app", BRIDGE_TORCH=wish) for wish in wishes]
    assert found == [True, False, True, False, True, True, False]


def test_every_package_that_is_installed_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(line.partition("==")[0]) for line in lines if "==" in line}
    found = closure("test")
    assert len(found) > 60 and found <= pins, found - pins
