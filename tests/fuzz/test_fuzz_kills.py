"""Killed at any moment, a writer leaves the old or the new, and the next run tidies up; a training
run goes on to the same losses.

The killed are forks of this process that write one version after another; all of them, and the
run that comes after, have the process id 1, as in a container.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fuzz_support import Fuzz, Run
from support.small_writers import Writer, writers
from support.tiny_folders import KINDS
from support.two_processes import run_script

_RUNS = 30  # a program, which has ten minutes
ROW = "kills after which something is half-written or a later run fails"


@pytest.fixture(scope="module")
def all_writers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Writer]]:
    found = writers(tmp_path_factory.mktemp("writers"))
    for each in found:  # what is slow is slow once: libraries load, models open
        each.write(tmp_path_factory.mktemp("first"), 1)
    yield found


@pytest.fixture
def pid_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)


@pytest.mark.usefixtures("pid_one")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded")
def test_kills_at_random_moments(fuzz: Fuzz, all_writers: list[Writer], tmp_path: Path) -> None:
    with fuzz(ROW, 40) as run:
        for rng in run.draws():
            (writer,) = rng.choices(all_writers, [each.share for each in all_writers])
            folder = tmp_path / f"{run.seed}"
            folder.mkdir()
            with run.within(60):
                _kill_once_or_more(writer, folder, rng)
                _check(run, writer, folder)


def test_training_runs_killed_at_random_moments(fuzz: Fuzz, tmp_path: Path) -> None:
    """CLIP's trainer, whose loop is the VLM's too. A checkpoint is written after each step."""
    KINDS["clip"].make(tmp_path / "clip")
    with fuzz("training runs that were killed and do not go on to the same losses", 2) as run:
        seeds = [run.seed for _ in run.draws()]
        amid = 0
        for at in range(0, len(seeds), _RUNS):
            folder = tmp_path / f"{at}"
            folder.mkdir()
            some = seeds[at : at + _RUNS]
            told = run_script("killed_runs.py", tmp_path / "clip", folder, *some)
            for seed, found in json.loads(told.splitlines()[-1]).items():
                run.seed = int(seed)
                run.expect(not found["wrong"], f"other than of a straight run: {found['wrong']}")
                amid += found["amid"]
        # Of few, all may have come to their end just before.
        run.expect(len(seeds) < _RUNS or amid >= len(seeds) / 3, f"{amid} were killed in training")


def _kill_once_or_more(writer: Writer, folder: Path, rng: random.Random) -> None:
    for first in range(rng.choice((1, 1, 2, 3))):
        fork = multiprocessing.get_context("fork")
        ready = fork.Event()
        process = fork.Process(target=_write_on, args=(writer, folder, 1000 * first, ready))
        process.start()
        ready.wait(30)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        process.close()


def _write_on(writer: Writer, folder: Path, version: int, ready: object) -> None:
    torch.set_num_threads(1)  # the threads of the parent's pool are not in its fork
    ready.set()  # type: ignore[attr-defined]
    while True:
        version += 1
        writer.write(folder, version)


def _check(run: Run, writer: Writer, folder: Path) -> None:
    try:
        writer.read(folder)
        writer.write(folder, 9000)
        found = writer.read(folder)
        run.expect(found == 9000, f"{writer.name}: {found} is there, 9000 was written")
    except Exception as error:
        run.fail(f"{writer.name}: {error!r}")
    left = [path for path in folder.rglob("*") if path.name.startswith(".")]
    run.expect(not left, f"{writer.name} left {left}")
