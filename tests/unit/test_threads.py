"""How threads wait: set before torch loads by app and command, never against the user's word."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from support.places import ROOT

from benchmarks import threads
from benchmarks.table import markdown
from bridge.threads import is_shared, one_core_each, thread_settings

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

LINES = [
    f"{name} = '{value}'"
    for shared in (False, True)
    for name, value in thread_settings({}, shared=shared).items()
]


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
    assert thread_settings(own, shared=False) == thread_settings(own, shared=True) == {}


@pytest.mark.parametrize(
    ("said", "cores", "shared"),
    [
        ("0.00 0.00 0.00 1/90 4711\n", 2, False),  # this process alone
        ("0.00 0.00 0.00 3/90 4711\n", 2, True),
        ("0.00 0.00 0.00 3/90 4711\n", 16, False),
        ("9.99 9.99 9.99 1/90 4711\n", 2, False),  # what was is over
        ("no such words", 2, False),
    ],
)
def test_others_are_counted_as_they_run_now(
    said: str, cores: int, shared: bool, tmp_path: Path
) -> None:
    file = tmp_path / "loadavg"
    file.write_text(said)
    assert is_shared(file, cores) is shared
    assert not is_shared(tmp_path / "absent", cores)


@pytest.mark.skipif(sys.platform != "linux", reason="torch has GNU's OpenMP on Linux alone")
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_it_is_set_when_torch_loads(program: list[str], tmp_path: Path) -> None:
    # By what else the machine does at that moment: one look, since the next may find it otherwise.
    told = openmp_of(program, tmp_path)
    assert any(line in told for line in LINES), told
    own = openmp_of(program, tmp_path, GOMP_SPINCOUNT="77")
    assert "GOMP_SPINCOUNT = '77'" in own and not any(line in own for line in LINES)


def test_the_library_sets_nothing(tmp_path: Path) -> None:
    code = "import bridge, torch; bridge.condition('a cat')"
    told = openmp_of(["-c", code], tmp_path)
    assert not any(line in told for line in LINES)


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
    told = table["notes"]["set_by_bridge"]
    assert told == {"quiet": {"GOMP_SPINCOUNT": "10000"}, "shared": {"GOMP_SPINCOUNT": "0"}}
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


def test_threads_of_one_core_leave_all_others_as_they_were() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with one_core_each(2) as workers:
            both = Barrier(2)  # so that neither thread takes the work of two
            seen = [workers.submit(lambda: (both.wait(), torch.get_num_threads())) for _ in "ab"]
            assert [each.result()[1] for each in seen] == [1, 1]
            with ThreadPoolExecutor(1) as other:
                assert other.submit(torch.get_num_threads).result() == 3
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
