"""How torch's threads should wait: seconds a drawing, on a quiet machine and on a shared one.

    python benchmarks/threads.py                 # 7 rounds, some 20 minutes on two cores

Each round starts a fresh process for every setting, in an order of its own; the process draws
while nothing else runs, and again beside processes that do nothing but spin (two of them). All
settings are so measured in one run, in turn, and what else the machine does falls on all alike.
Take ratios from one run only.

Writes benchmarks/results/threads.json: the seconds of each setting in both loads, by how much each
is slower than torch's own default when quiet, and than the best setting when shared. What
`bridge.threads` sets in each case is to lose 5 % at most in the first and to stay within 1.5 in the
second.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

# Run as a script, Python looks for modules beside this file, not in the repository's root.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.results import (
    RESULTS,
    ROOT,
    Row,
    command_of,
    commit,
    median_row,
    report,
    save,
    show,
)
from bridge.errors import BridgeError
from bridge.threads import thread_settings

DEFAULT = "torch"
SETTINGS: dict[str, dict[str, str]] = {
    DEFAULT: {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    **{f"spin_{turns}": {"GOMP_SPINCOUNT": str(turns)} for turns in (100, 1000, 3000, 10_000)},
    "one_thread": {"OMP_NUM_THREADS": "1"},
}
LOADS = ("quiet", "shared")
_STRIPPED = ("OMP_", "GOMP_", "KMP_", "MKL_")

# Draws once to warm up; then, for each number that it is sent, so many times, and answers with the
# seconds of each.
_WORKER = """
import json, sys, time
import bridge
def draw():
    begun = time.perf_counter()
    bridge.generate("two red apples left of a cat", seed=1, steps=int(sys.argv[1]), device="cpu")
    return time.perf_counter() - begun
draw()
print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps([draw() for _ in range(int(line))]), flush=True)
"""

Seconds = dict[tuple[str, str], list[float]]
"""By load and setting, the median drawing of each round."""


def measured(rounds: int, draws: int, steps: int, spinners: int) -> Seconds:
    """All settings in all loads, round by round. Raises BridgeError when a process ends."""
    found: Seconds = {(load, name): [] for load in LOADS for name in SETTINGS}
    for number in range(rounds):
        names = list(SETTINGS)
        random.Random(number).shuffle(names)
        for name in names:
            with worker(SETTINGS[name], steps) as process:
                for load in LOADS:
                    with spinning(spinners if load == "shared" else 0):
                        times = sorted(ask(process, draws))
                    found[load, name].append(times[len(times) // 2])
            both = ", ".join(f"{load} {found[load, name][-1]:.2f} s" for load in LOADS)
            print(f"round {number + 1} of {rounds}: {name}: {both}", flush=True)
    return found


@contextmanager
def worker(settings: Mapping[str, str], steps: int) -> Iterator[subprocess.Popen[str]]:
    """A fresh process that draws, with ``settings`` and no others of OpenMP's."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(_STRIPPED)}
    process = subprocess.Popen(
        [sys.executable, "-c", _WORKER, str(steps)],
        cwd=ROOT,
        env={**plain, "PYTHONPATH": str(ROOT), **settings},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        if _line(process).strip() != "ready":
            raise BridgeError("the process that draws did not start; try bridge.generate yourself")
        yield process
    finally:
        process.kill()
        process.communicate()


def ask(process: subprocess.Popen[str], draws: int) -> list[float]:
    """The seconds of some drawings. Raises BridgeError when the process has ended."""
    assert process.stdin is not None
    process.stdin.write(f"{draws}\n")
    process.stdin.flush()
    times: list[float] = json.loads(_line(process))
    return times


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise BridgeError(f"the process that draws ended with status {process.wait()}")
    return line


@contextmanager
def spinning(count: int) -> Iterator[None]:
    """Processes that compute without end beside the block."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        if others:
            time.sleep(0.5)  # until they spin
        yield
    finally:
        for each in others:
            each.kill()
            each.wait()


def rows_of(found: Seconds) -> list[Row]:
    """Both tables: the seconds, and the ratios within each round."""
    rows = [
        median_row(f"threads/{load}/{name}", found[load, name], "s")
        for load in LOADS
        for name in SETTINGS
    ]
    shared = {name: median_row(name, found["shared", name], "s").value for name in SETTINGS}
    against = {"quiet": DEFAULT, "shared": min(shared, key=shared.__getitem__)}
    words = {"quiet": "over_torch", "shared": "over_best"}
    return rows + [
        median_row(f"threads/{load}_{words[load]}/{name}", _ratios(found, load, name, base), "x")
        for load, base in against.items()
        for name in SETTINGS
    ]


def _ratios(found: Seconds, load: str, name: str, base: str) -> list[float]:
    return [a / b for a, b in zip(found[load, name], found[load, base], strict=True)]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python benchmarks/threads.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--rounds", type=int, default=7)
    made.add_argument("--draws", type=int, default=3, help="in each load of a round")
    made.add_argument("--steps", type=int, default=20)
    made.add_argument("--spinners", type=int, default=2, help="processes that share the machine")
    made.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    commit()
    load = round(os.getloadavg()[0], 2)
    try:
        found = measured(args.rounds, args.draws, args.steps, args.spinners)
    except BridgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    rows = rows_of(found)
    show(rows)
    command = command_of(parser(), args, ("rounds", "draws", "steps", "spinners"))
    set_by_bridge = {name: thread_settings({}, shared=name == "shared") for name in LOADS}
    notes = {"load_average_before": load, "set_by_bridge": set_by_bridge}
    save(args.out / "threads.json", report(command, rows, **notes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
