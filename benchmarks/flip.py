"""FLIP's patch masking: how much faster a step is, and what it costs in recall.

    python -m benchmarks.flip speed     # a minute of one core, on a machine that does nothing else
    python -m benchmarks.flip           # some 25 minutes of one core; goes on where it stopped

emoji-1 is fine-tuned, both towers, on the 3,000 OpenMoji pairs of benchmarks/adapt_clip.py with no
patches left out, with half and with three quarters: for as many steps as the whole pictures had,
and for as many as take the same time by the speed that was measured; the last tenth of the steps on
whole pictures (``unmasked_ratio``, the default) or none. Asked are the same 256 held-out scenes.
Writes flip.json; ``speed`` its own rows of it.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import bridge
from benchmarks.adapt_clip import (
    BATCH,
    MODES,
    RECALL,
    STEPS,
    Outcomes,
    Part,
    add_arguments,
    finished,
    found_of,
    measure,
    outcomes_of,
    points,
    share,
    training_pairs,
)
from benchmarks.results import Row, command_of, commit, median_row, report, save, show
from benchmarks.train_clip_speed import seconds, stepper
from bridge.embedded import IMAGE_TOWER
from bridge.files import write_whole
from emoji_world.art import HELD_OUT_STYLE
from emoji_world.scenes import STYLES

PAIRS = 3000
SHARES = (0.5, 0.75)
UNMASKED = 0.1
_SPEED = "flip-speed.json"
FASTER = {0.5: 1.57, 0.75: 2.16}  # steps a second over those of whole pictures: `speed`


@dataclass(frozen=True)
class Masked:
    """One run: the part of patches left out, whole pictures at the end, and for how long."""

    share: float
    unmasked: float
    equal: str
    seed: int

    @property
    def steps(self) -> int:
        """As many as whole pictures have, or as take their time: the unmasked ones take longer."""
        whole = STEPS[PAIRS]
        if self.equal == "samples":
            return whole
        return round(whole / (self.unmasked + (1 - self.unmasked) / FASTER[self.share]))

    @property
    def cell(self) -> str:
        tuned = "then_whole" if self.unmasked else "masked_to_the_end"
        return f"{100 * self.share:g}%/equal_{self.equal}/{tuned}"

    @property
    def file(self) -> str:
        return f"{self.cell}-{self.seed}".replace("/", "-").replace("%", "")


def runs(seeds: Sequence[int]) -> list[Masked]:
    """A seed after the other, so that a part of them is a smaller study and not half of one."""
    ways = [("samples", UNMASKED), ("samples", 0.0), ("time", UNMASKED)]
    return [
        Masked(share, unmasked, equal, seed)
        for seed in seeds
        for equal, unmasked in ways
        for share in SHARES
    ]


def work(run: Masked, folder: Path) -> None:
    """Train and measure, and keep what was found."""
    place = folder / run.file
    if not finished(place):
        bridge.train_clip(
            IMAGE_TOWER,
            training_pairs(PAIRS, run.seed),
            place,
            mode="full",
            steps=run.steps,
            batch_size=BATCH,
            seed=run.seed,
            patch_masking=run.share,
            unmasked_ratio=run.unmasked,
            mixed_precision="bf16",
            save_every=16,
            device="cpu",
            **MODES["full"],
        )
    found = json.dumps(measure(bridge.CLIP(place, device="cpu"))).encode()
    write_whole(folder / f"{run.file}.json", found)


def rows_of(cells: Mapping[str, Sequence[Outcomes]], whole: Sequence[Outcomes]) -> list[Row]:
    """Recall on the style that was trained on, and what is lost against whole pictures."""
    rows = [share("whole/new/r_at_1", whole, (HELD_OUT_STYLE,), *RECALL)]
    for name, each in cells.items():
        ends = [found_of(some, (HELD_OUT_STYLE,), *RECALL) for some in (whole, each)]
        old = [found_of(some, STYLES, *RECALL) for some in (whole, each)]
        rows += [
            share(f"{name}/new/r_at_1", each, (HELD_OUT_STYLE,), *RECALL),
            points(f"{name}/new/lost", *ends),
            points(f"{name}/old/lost", *old),
        ]
    return rows


def speed_rows(repeats: int = 7) -> list[Row]:
    """Seconds of the processor a step, in fp32, all shares in turn."""
    clip = bridge.CLIP(IMAGE_TOWER, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        every = (0.0, *SHARES)
        steps = {share: stepper(clip, BATCH, Path(folder), patch_masking=share) for share in every}
        rounds = [{s: seconds(step) for s, step in steps.items()} for _ in range(repeats)]
    rows = [median_row(f"step/{100 * s:g}%", [r[s] for r in rounds[1:]], "s") for s in every]
    for s in SHARES:
        rows.append(median_row(f"faster/{100 * s:g}%", [r[0.0] / r[s] for r in rounds[1:]], "x", 2))
    return rows


def outcomes_of_run(run: Masked, folder: Path) -> Outcomes | None:
    """What was measured before of a run."""
    path = folder / f"{run.file}.json"
    found: Outcomes | None = json.loads(path.read_text()) if path.exists() else None
    return found


def measure_speed(folder: Path) -> None:
    rows = speed_rows()
    show(rows)
    write_whole(folder / _SPEED, json.dumps([asdict(row) for row in rows]).encode())


def run_all(seeds: Sequence[int], folder: Path, minutes: float) -> None:
    """Train and measure what is not there yet, and begin nothing after so many minutes."""
    begun = time.monotonic()
    for run in runs(seeds):
        if outcomes_of_run(run, folder) is None:
            if time.monotonic() - begun > 60 * minutes:
                print(f"stopped before {run}; the same command goes on")
                return
            work(run, folder)
            print(run, round(time.monotonic() - begun), "s", flush=True)


def write(seeds: Sequence[int], folder: Path, out: Path, command: str) -> None:
    """The table of the cells whose seeds have all been measured; whole pictures are from what
    benchmarks/adapt_clip.py kept."""
    whole = [outcomes_of(Part("full", PAIRS, seed, 1.0), folder) for seed in seeds]
    known = [one for one in whole if one is not None]
    cells: dict[str, list[Outcomes]] = {}
    for run in runs(seeds):
        found = outcomes_of_run(run, folder)
        if found is not None:
            cells.setdefault(run.cell, []).append(found)
    cells = {name: each for name, each in cells.items() if len(each) == len(seeds)}
    if not (folder / _SPEED).exists() or (cells and len(known) < len(seeds)):
        raise SystemExit(
            f"{folder} lacks the runs on whole pictures or the speed: `python -m "
            "benchmarks.adapt_clip` and `python -m benchmarks.flip speed` make them"
        )
    rows = [Row(**row) for row in json.loads((folder / _SPEED).read_text())]
    if cells:
        rows += rows_of(cells, known)
    show(rows)
    steps = {run.cell: run.steps for run in runs(seeds) if run.cell in cells}
    save(out / "flip.json", report(command, rows, pairs=PAIRS, batch_size=BATCH, steps=steps))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flip", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("speed", "recall"), default="recall")
    add_arguments(parser)
    args = parser.parse_args()
    commit()
    args.cache.mkdir(parents=True, exist_ok=True)
    if args.what == "speed":
        measure_speed(args.cache)
    else:
        run_all(range(args.seeds), args.cache, args.minutes)
        args.minutes = math.inf  # it changes no figure
        write(range(args.seeds), args.cache, args.out, command_of(parser, args))


if __name__ == "__main__":
    main()
