"""``emphasis``: does a word's weight do what it says? How often a thing is drawn, by its weight.

Prompts name two things; the second carries the weight, in every emphasis formula. The judge counts
how often each of the two is found. The same prompts and the same noise serve every weight and
formula, so that only the weight differs.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.painting import as_array, paint
from benchmarks.results import Row, report, results_file, save, share_row, show
from bridge.encoding.emphasis import EmphasisName
from bridge.pictures import CHART, save_figure
from emoji_world.captions import noun_phrase
from emoji_world.concepts import CONCEPTS
from emoji_world.judge import Judge
from emoji_world.scenes import Group

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
_ACROSS = 3  # panels a row of the chart


@dataclass(frozen=True)
class Pair:
    """Two things by concept, the weight of the second, and the seed of the picture's noise."""

    first: int
    second: int
    seed: int
    weight: float = 1.0

    @property
    def prompt(self) -> str:
        first, second = (noun_phrase(Group(concept)) for concept in (self.first, self.second))
        return f"{first} and ({second}:{self.weight:g}), noto"


def make_pairs(n: int, seed: int) -> list[Pair]:
    """``n`` pairs of different things; the same for the same seed."""
    rng = random.Random(f"emphasis/{seed}")
    drawn = [rng.sample(range(len(CONCEPTS)), 2) for _ in range(n)]
    return [Pair(first, second, seed) for seed, (first, second) in enumerate(drawn)]


def run_emphasis(args: argparse.Namespace) -> None:
    """Draw, judge, and write emphasis.json, anew after each formula, and emphasis.webp."""
    from bridge.diffusion import load_pipeline
    from bridge.encoding import EMPHASES

    pipe = load_pipeline(args.model, device=args.device)
    judge = Judge()
    pairs = make_pairs(args.pairs, args.seed)
    which = (args.model, "emoji-xl")
    methods = [name for name in EMPHASES if name != "none"]
    rows: list[Row] = []
    for number, method in enumerate(methods, 1):
        for weight in WEIGHTS:
            weighted = [replace(pair, weight=weight) for pair in pairs]
            found = _found(pipe, judge, weighted, method, args)
            rows += [
                share_row(f"emphasis/{method}/{weight:g}/{name}", [seen[i] for seen in found])
                for i, name in enumerate(("plain", "weighted"))
            ]
            show(rows[-2:])
        done = f"{number} of {len(methods)} formulas"
        table = report(args.command, rows, pipe.device, done=done)
        save(results_file(args.out, "emphasis.json", which), table)
    draw_chart(rows, results_file(args.out, "emphasis.webp", which))


def _found(
    pipe: Any, judge: Judge, pairs: Sequence[Pair], method: EmphasisName, args: argparse.Namespace
) -> list[tuple[bool, bool]]:
    """Whether the plain and the weighted thing were found, for each pair."""
    settings = {"steps": args.steps, "guidance": args.guidance, "batch": args.batch}
    looks = (
        (pair, judge.look(as_array(picture)))
        for pair, picture in paint(pipe, pairs, emphasis=method, **settings)
    )
    return [(seen.count(pair.first) > 0, seen.count(pair.second) > 0) for pair, seen in looks]


def draw_chart(rows: Sequence[Row], path: Path) -> None:
    """One panel a formula: share found over weight, with 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    methods = list(dict.fromkeys(row.name.split("/")[1] for row in rows))
    down = -(-len(methods) // _ACROSS)
    figure, axes = pyplot.subplots(
        down, _ACROSS, figsize=(3 * _ACROSS, 2.6 * down), sharex=True, sharey=True, squeeze=False
    )
    for axis in axes.flat[len(methods) :]:
        axis.set_visible(False)
    for axis, method in zip(axes.flat, methods, strict=False):
        for name, colour in (("weighted", "C1"), ("plain", "C0")):
            here = [r for r in rows if r.name.startswith(f"emphasis/{method}/")]
            here = [r for r in here if r.name.endswith(f"/{name}")]
            weights = [float(row.name.split("/")[2]) for row in here]
            axis.plot(weights, [row.value for row in here], color=colour, marker="o", ms=3,
                      label=f"the {name} thing")  # fmt: skip
            axis.fill_between(
                weights, [r.low for r in here], [r.high for r in here], color=colour, alpha=0.15
            )
        axis.set(title=method, ylim=(0, 100))
        axis.axvline(1, color="gray", lw=0.5)
        axis.grid(alpha=0.3)
    figure.supxlabel("weight", fontsize=10)
    figure.supylabel("found, %", fontsize=10)
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    save_figure(path, figure, 90, CHART)
    pyplot.close(figure)
