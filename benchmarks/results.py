"""Measured numbers on disk: intervals, rows, and files written whole or not at all."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from bridge.embedded import weights_dir
from bridge.files import write_whole

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
_PLACES = ("out", "cache")  # options of where things are kept


@dataclass(frozen=True)
class Row:
    """One measured value with its 95 % interval and the number of trials behind it."""

    name: str
    value: float
    low: float
    high: float
    n: int
    unit: str


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's score interval (95 %) of a share, as fractions.

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    Raises ValueError unless 0 <= successes <= n and n > 0.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials is no share")
    interval = binomtest(int(successes), int(n)).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def share_row(name: str, outcomes: Sequence[bool]) -> Row:
    """The share of outcomes that are True, in percent, with Wilson's interval."""
    right, n = sum(outcomes), len(outcomes)
    low, high = wilson(right, n)
    value, low, high = (round(100 * share, 2) for share in (right / n, low, high))
    return Row(name, value, low, high, n, "%")


def grouped_share_row(name: str, groups: Sequence[Sequence[bool]]) -> Row:
    """The share of all outcomes that are True, in percent, where outcomes of a group are alike.

    ``n`` is the number of outcomes, but groups are what varies: the 95 % interval is the
    bootstrap's over groups (2,000 resamples, fixed seed). Groups of one outcome each, and outcomes
    that are all the same, have Wilson's interval at the number of groups; a single group of mixed
    outcomes has no spread to draw from, so its interval is its share. Raises ValueError where
    there are no outcomes.
    """
    counts = [(sum(group), len(group)) for group in groups if group]
    if not counts:
        raise ValueError(f"{name}: there are no outcomes")
    right, sizes = np.array(counts).T
    n, share = int(sizes.sum()), right.sum() / sizes.sum()
    if len(counts) == n or share in (0, 1):
        low, high = wilson(round(share * len(counts)), len(counts))
    else:
        low, high = ratio_interval(right, sizes)
    value, low, high = (round(100 * float(end), 2) for end in (share, low, high))
    return Row(name, value, low, high, n, "%")


def ratio_interval(parts: np.ndarray, wholes: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of sum(parts) / sum(wholes): the bootstrap's over pairs (2,000 resamples,
    fixed seed). Resamples without a whole above 0 say nothing and are left out."""
    drawn = np.random.default_rng(0).integers(0, len(wholes), (2000, len(wholes)))
    part, whole = parts[drawn].sum(1), wholes[drawn].sum(1)
    low, high = np.quantile(part[whole > 0] / whole[whole > 0], (0.025, 0.975))
    return float(low), float(high)


def median_row(name: str, values: Sequence[float], unit: str, digits: int = 3) -> Row:
    """The median with its bootstrap 95 % interval (2,000 resamples, fixed seed)."""
    rng = random.Random(0)
    medians = sorted(_median(rng.choices(values, k=len(values))) for _ in range(2000))
    value, low, high = (round(v, digits) for v in (_median(values), medians[49], medians[1949]))
    return Row(name, value, low, high, len(values), unit)


def _median(values: Sequence[float]) -> float:
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


def report(command: str, rows: Sequence[Row], on: object = "cpu", **notes: Any) -> dict[str, Any]:
    """A table in the project's format, measured ``on`` a torch device; ``notes`` go beside it
    (settings, what was left out)."""
    return {
        "command": command,
        "machine": machine(on),
        "versions": versions(),
        "commit": commit(),
        **({"notes": notes} if notes else {}),
        "rows": [asdict(row) for row in rows],
    }


def save(path: Path, table: dict[str, Any]) -> None:
    """Write a table as JSON, a line for each row, atomically."""
    text = json.dumps(table, indent=1, ensure_ascii=False)
    text = re.sub(r"[{\[]\n[^{}\[\]]+[}\]]", lambda found: _one_line(found[0]), text)
    write_whole(path, (text + "\n").encode())


def _one_line(text: str) -> str:
    """JSON's own line breaks and indents taken out; within strings there are none."""
    return " ".join(line.strip() for line in text.split("\n"))


def results_file(out: Path, name: str, *models: tuple[str, str]) -> Path:
    """``name`` in ``out``, told apart from the results of the shipped models.

    ``models`` are pairs of the model measured and the shipped one in its place. Another one's name
    goes before the ending; a folder that is the shipped one counts as it.
    """
    others = [_name_of(model) for model, shipped in models if not _is_shipped(model, shipped)]
    file = Path(name)
    return out / ("-".join([file.stem, *others]) + file.suffix)


def _is_shipped(model: str, shipped: str) -> bool:
    folder = Path(model).expanduser()
    return model == shipped or folder.resolve() == (weights_dir() / shipped).resolve()


def _name_of(model: str) -> str:
    return Path(model).expanduser().resolve().name


def command_of(
    parser: argparse.ArgumentParser, args: argparse.Namespace, always: Sequence[str] = ()
) -> str:
    """The command line that gives ``args``: every option that is not at its default, and those of
    ``always``, whose defaults may change.

    Where results and pictures are kept changes no figure and is left out.
    """
    parts = [parser.prog]
    for action in parser._actions:
        value = getattr(args, action.dest, None)
        usual = value == action.default and action.dest not in always
        if value is None or action.dest in _PLACES or (action.option_strings and usual):
            continue
        parts += action.option_strings[-1:]
        if value is not True:
            parts += map(_typed, value if isinstance(value, list | tuple) else [value])
    return " ".join(parts)


def _typed(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else shlex.quote(str(value))


def show(rows: Sequence[Row]) -> None:
    """Print rows as an aligned table."""
    width = max((len(row.name) for row in rows), default=0)
    for row in rows:
        print(
            f"{row.name:<{width}}  {row.value:>9g} {row.unit:<4} "
            f"[{row.low:g}, {row.high:g}]  n={row.n}",
            flush=True,
        )


def machine(device: object = "cpu") -> str:
    """The processor, its cores, the threads torch uses, and the GPU if ``device`` is one."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = (line.partition(":") for line in info.read_text().splitlines())
        name = next((v.strip() for k, _, v in lines if k.strip() == "model name"), name)
    text = f"{platform.system()} {name}, {os.cpu_count()} cores"
    torch = sys.modules.get("torch")
    if torch is not None:
        text += f", {torch.get_num_threads()} torch threads"
        if str(device).startswith("cuda"):
            text += f", {torch.cuda.get_device_name(device)}"
    return text


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("torch", "transformers", "diffusers", "numpy", "pillow"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def commit() -> str:
    """The commit the code is at, marked when code or weights differ from it.

    Kept from the first call, which commands make when they start: the tree may change
    while they run.
    """
    try:
        head = _git("rev-parse", "HEAD")
        changed = _git(
            "status", "--porcelain", "--", "bridge", "benchmarks/*.py", "demos", "weights"
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+changes" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
