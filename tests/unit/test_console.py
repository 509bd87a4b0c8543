"""A reader that leaves early, as head does, ends a command and is no fault."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.places import ROOT


@pytest.mark.parametrize(
    "command", [["bridge.manifest", "check"], ["bridge", "towers"], ["bridge", "models", "--json"]]
)
@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_reader_that_has_gone(command: list[str], buffered: str) -> None:
    running = subprocess.Popen(
        [sys.executable, "-m", *command],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": buffered},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None and running.stderr is not None
    running.stdout.close()  # long before Python has started
    said = running.stderr.read()
    assert (running.wait(300), said) == (0, "")
    running.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
@pytest.mark.parametrize(
    ("command", "buffered"),
    [
        (["bridge", "towers"], ""),
        (["bridge", "towers"], "1"),
        (["bridge", "towers", "--debug"], "1"),
        (["bridge.manifest", "check"], ""),
        (["bridge.manifest", "check"], "1"),
    ],
)
def test_a_full_disk_is_said_in_a_line(command: list[str], buffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", *command],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": buffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and "No space left" in line
