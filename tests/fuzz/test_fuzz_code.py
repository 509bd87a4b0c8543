"""Model folders with code in them, opened by every door, with "y" on standard input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from fuzz_support import FIRST, TIMES, Fuzz
from support.places import ROOT, TESTS

PROGRAM = TESTS / "support" / "hostile_code.py"
ROW = 'hostile model folders that ran their code (stdin says "y")'
# Of the four hundred ways; `make fuzz` tries them all.
SHARE = 116


def test_no_folder_runs_its_code(fuzz: Fuzz, tmp_path: Path) -> None:
    """All in one process, since starting one costs more than opening many folders."""
    work = tmp_path / "work"
    work.mkdir()
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(ROOT)])
    done = subprocess.run(
        [
            sys.executable,
            PROGRAM,
            work,
            str(SHARE * TIMES),
            str(FIRST),
        ],
        input="y\n" * 10_000,
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["mark"], "code that does run leaves no mark: this test sees nothing"
    assert "Do you wish to run" not in done.stdout + done.stderr
    with fuzz(ROW, 0) as run:
        run.tried = told["tried"]
        assert run.tried >= 115
        for what in told["ran"]:
            run.fail(what)
