"""How threads wait: set before torch loads by app and command, never against the user's word."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import threads
from benchmarks.table import markdown
from bridge.threads import thread_settings

ROOT = Path(__file__).resolve().parent.parent
OWN = [
    {"OMP_NUM_THREADS": "2"},
    {"OMP_WAIT_POLICY": "ACTIVE"},
    {"GOMP_SPINCOUNT": "7"},
    {"KMP_BLOCKTIME": "0"},
    {"MKL_NUM_THREADS": "1"},
]
PROGRAMS = {
    "command": ["-m", "bridge", "tokens", "a cat"],
    "app": [str(ROOT / "demos" / "app.py"), "--help"],
}


def openmp_of(program: list[str], folder: Path, **own: str) -> str:
    """What GNU's OpenMP was told when torch loaded it, in its own words."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(threads._STRIPPED)}
    done = subprocess.run(
        [sys.executable, *program],
        cwd=folder,
        env={**plain, "PYTHONPATH": str(ROOT), "OMP_DISPLAY_ENV": "VERBOSE", **own},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("own", OWN, ids=lambda own: next(iter(own)))
def test_the_users_own_setting_stands(own: dict[str, str]) -> None:
    assert thread_settings(own) == {}


@pytest.mark.skipif(sys.platform != "linux", reason="torch has GNU's OpenMP on Linux alone")
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_it_is_set_when_torch_loads(program: list[str], tmp_path: Path) -> None:
    (turns,) = thread_settings({}).values()
    assert f"GOMP_SPINCOUNT = '{turns}'" in openmp_of(program, tmp_path)
    own = openmp_of(program, tmp_path, OMP_WAIT_POLICY="PASSIVE")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in own and f"'{turns}'" not in own


def test_the_library_sets_nothing(tmp_path: Path) -> None:
    (turns,) = thread_settings({}).values()
    code = "import bridge, torch; bridge.condition('a cat')"
    assert f"GOMP_SPINCOUNT = '{turns}'" not in openmp_of(["-c", code], tmp_path)


def test_the_benchmark_measures_both_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = {threads.DEFAULT: {"OMP_NUM_THREADS": "1"}, "passive": {"OMP_WAIT_POLICY": "PASSIVE"}}
    monkeypatch.setattr(threads, "SETTINGS", some)
    options = ["--rounds", "1", "--draws", "1", "--steps", "1", "--out", str(tmp_path)]
    assert threads.main(options) == 0
    table = json.loads((tmp_path / "threads.json").read_text())
    names = {row["name"] for row in table["rows"]}
    assert names == {
        f"threads/{part}/{name}"
        for part in ("quiet", "shared", "quiet_over_torch", "shared_over_best")
        for name in some
    }
    assert all(row["value"] > 0 for row in table["rows"])
    assert table["notes"]["set_by_bridge"] == thread_settings({})
    assert "threads/shared/passive" in markdown(tmp_path)


def test_ratios_are_of_one_round() -> None:
    seconds = {
        (load, name): [base * factor for base in (1.0, 2.0, 4.0)]
        for load in threads.LOADS
        for name, factor in zip(threads.SETTINGS, (1.0, 1.25, 3, 4, 5, 6, 7), strict=True)
    }
    found = {row.name: row.value for row in threads.rows_of(seconds)}
    assert found["threads/quiet_over_torch/passive"] == 1.25
    assert found["threads/shared_over_best/torch"] == 1.0
    assert found["threads/shared/passive"] == 2.5
