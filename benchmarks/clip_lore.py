"""What a CLIP interview says, measured in the embedded world: docs/clip-lore.md.

    python -m benchmarks.clip_lore               # all parts, some forty minutes of one core
    python -m benchmarks.clip_lore lengths long  # these alone

templates     bare name, one template, an ensemble, on the pictures of `benchmarks.eval_clip`, whose
              own table has the other rows, the linear probe's among them
lengths       what skipping the normalisation costs, both directions and across queries
batch         InfoNCE against the sigmoid loss at batches of 16 to 4,096, equal samples seen
temperature   a fixed against a learnt temperature, and what the clamp at 100 does
long          captions beyond the context, and what helps (benchmarks/long_captions.py)

Each part's rows take the place of its old ones in clip-lore.json; batch and temperature have a
picture each. Stored states, tuned towers and points that were measured are kept in ``--cache``: a
command that ``--minutes`` stopped goes on where it was. Recipes are in benchmarks/stored_heads.py.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import long_captions
from benchmarks.eval_clip import classification_rows, write_things
from benchmarks.results import (
    RESULTS,
    Row,
    commit,
    report,
    save,
    share_row,
    show,
)
from benchmarks.retrieval import first_ranks, make_scenes
from benchmarks.stored_heads import (
    SIGMOID_START,
    Outcome,
    OutOfTime,
    Points,
    Recipe,
    States,
    crossed_row,
    hits_of,
    load_states,
    spread_row,
    train,
)
from bridge.contrastive import CLIP, EvalData, evaluate
from bridge.contrastive.embeddings import unit
from bridge.files import default_cache
from bridge.pictures import LINES, save_figure

FILE = "clip-lore.json"
MODELS = ("emoji-1", "emoji-2")
SEEDS = (1, 2, 3)
# Training captions of the embedded world have these frames.
OWN = (
    "an emoji of a {}", "a {}", "a picture of a {}", "an icon of a {}", "a drawing with a {}",
    "an image of a {}", "draw a {}", "this is a {}",
)  # fmt: skip
GALLERY = 1024

BATCHES = (16, 64, 256, 1024, 4096)
SAMPLES = 131_072
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
_FIRST_RATE = {16: 1, 64: 2, 256: 2, 1024: 3, 4096: 3}  # places in RATES to look around from
MIDDLE = 256  # the batch that temperatures are compared at
FIXED = (1, 3, 10, 30, 100, 300)  # 1 / temperature


@dataclass(frozen=True)
class Work:
    """Where things are kept, and until when new ones are begun."""

    cache: Path
    until: float

    def is_over(self) -> bool:
        return time.monotonic() > self.until

    @cached_property
    def states(self) -> States:
        return load_states(self.cache)

    def points(self) -> Points:
        return Points(
            self.cache / "points.json", lambda recipe: train(self.states, recipe), self.is_over
        )


# ---------------------------------------------------------------- templates


def templates_part(work: Work) -> list[Row]:
    """Top-1 by what `eval_clip` does not measure, and what each step gains."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as given:
        data = write_things(Path(given) / "test", "0", 2)
        for model in MODELS:
            with CLIP(model) as clip:
                rows += template_rows(clip, data)
    return rows


def template_rows(clip: CLIP, data: EvalData) -> list[Row]:
    """The rows of one model; gains are in points, on the same pictures."""
    steps = {
        "bare": clip.classifier(data.labels, "name", head=None),
        "photo": clip.classifier(data.labels, "photo", head=None),
        "clip-7": clip.classifier(data.labels, "clip-7", head=None),
        "own_frame": clip.classifier(data.labels, OWN[:1], head=None),
        "own_frames": clip.classifier(data.labels, OWN, head=None),
    }
    rows: list[Row] = []
    hits: dict[str, np.ndarray] = {}
    for name, by in steps.items():
        done = evaluate(clip, data, task="classification", classifier=by).classification
        assert done is not None
        rows.append(classification_rows(f"templates/{clip.name}/{name}", done)[0])
        of_label = done.targets.numpy().argsort(kind="stable")
        hits[name] = (done.ranks.numpy() == 0)[of_label].reshape(len(data.labels), -1)
    for after, before in (
        ("photo", "bare"), ("clip-7", "photo"), ("own_frame", "bare"), ("own_frames", "own_frame"),
    ):  # fmt: skip
        gained = (hits[after].astype(float) - hits[before]).mean(1)
        rows.append(crossed_row(f"templates/{clip.name}/{after}_over_{before}", gained[None]))
    return rows


# ---------------------------------------------------------------- lengths


def lengths_part(work: Work) -> list[Row]:
    """Retrieval among the same held-out scenes by the cosine and by the plain dot product."""
    scenes = make_scenes(0, GALLERY)
    rows: list[Row] = []
    for model in MODELS:
        with CLIP(model) as clip:
            images = clip.encode_image(long_captions.drawn(list(scenes.values())), normalize=False)
            texts = clip.encode_text(list(scenes), normalize=False)
            rows += length_rows(f"lengths/{model}", images, texts)
    return rows


def length_rows(name: str, images: Tensor, texts: Tensor) -> list[Row]:
    """From pooled states ``(N, P)`` of pictures and their captions, as the towers give them.

    A query's own length changes no order of what is found for it, so each direction is spoilt by
    the lengths of the side that is looked through; and a threshold for all queries by both.
    """
    rows = []
    for side, each in (("pictures", images), ("texts", texts)):
        length = each.norm(dim=-1)
        low, high = np.quantile((length / length.mean()).numpy(), (0.025, 0.975))
        rows.append(Row(f"{name}/{side}/length_over_mean", 1.0, round(float(low), 3),
                        round(float(high), 3), len(each), "x"))  # fmt: skip
    cosine, plain = unit(images) @ unit(texts).T, images @ texts.T
    found: dict[str, tuple[Tensor, Tensor]] = {  # rows are queries
        "text_to_image": (cosine.T, plain.T),
        "image_to_text": (cosine, plain),
    }
    for direction, both in found.items():
        right = [first_ranks(scores.T.numpy())[0] for scores in both]
        for how, hits in zip(("cosine", "plain"), right, strict=True):
            rows.append(share_row(f"{name}/{direction}/{how}/r_at_1", hits))
        lost = np.array(right[0], dtype=float) - np.array(right[1], dtype=float)
        rows.append(crossed_row(f"{name}/{direction}/lost", lost[None]))
        for k in (1, 10):
            a, b = (scores.topk(min(k, len(scores)), dim=1).indices for scores in both)
            rows.append(share_row(f"{name}/{direction}/other_first_{k}", (a != b).any(1).tolist()))
    half = unit(images) @ texts.T
    for how, scores in (("cosine", cosine), ("pictures_only", half), ("plain", plain)):
        rows.append(share_row(f"{name}/one_threshold/{how}", best_pairs(scores)))
    return rows


def best_pairs(scores: Tensor) -> list[bool]:
    """Of the N best pairs of all N * N, at one threshold for all, which are right?"""
    count = len(scores)
    places = scores.flatten().topk(count).indices
    return (places // count == places % count).tolist()


# ---------------------------------------------------------------- batch sizes


def recipe_of(loss: str, batch: int, rate: float, seed: int) -> Recipe:
    """A run of the comparison of losses, each from its paper's start."""
    made = Recipe(loss, batch, SAMPLES, rate, seed)
    return replace(made, start=SIGMOID_START) if loss == "sigmoid" else made


def best_rate(points: Points, loss: str, batch: int) -> float:
    """The best learning rate on the validation side by seed 0, which no figure uses: from a
    first guess to the neighbour that is better, until none is."""

    def worth(at: int) -> float:
        known = 0 <= at < len(RATES)
        return points.get(recipe_of(loss, batch, RATES[at], 0)).validation if known else -1.0

    at = _FIRST_RATE[batch]
    while (found := max((at, at - 1, at + 1), key=worth)) != at:
        at = found
    return RATES[at]


def batch_part(work: Work) -> list[Row]:
    """R@1 by batch size of both losses, and the difference on the same scenes and seeds."""
    points = work.points()
    rows: list[Row] = []
    for batch in BATCHES:
        hits = {}
        for loss in ("infonce", "sigmoid"):
            rate = best_rate(points, loss, batch)
            done = [points.get(recipe_of(loss, batch, rate, seed)) for seed in SEEDS]
            hits[loss] = hits_of(done)
            name = f"batch/{batch}/{loss}"
            rows.append(crossed_row(f"{name}/r_at_1", hits[loss]))
            rows.append(spread_row(f"{name}/scale", [each.scale for each in done], "x"))
            rows.append(spread_row(f"{name}/loss_at_the_end", [each.loss for each in done]))
            rows.append(spread_row(f"{name}/rate", [rate]))
        rows.append(crossed_row(f"batch/{batch}/sigmoid_over_infonce",
                                hits["sigmoid"] - hits["infonce"]))  # fmt: skip
    # Is it the large batch that is worse, or the few steps? As many steps as the one before has.
    for loss in ("infonce", "sigmoid"):
        usual = recipe_of(loss, BATCHES[-1], best_rate(points, loss, BATCHES[-2]), SEEDS[0])
        longer = replace(usual, samples=SAMPLES * BATCHES[-1] // BATCHES[-2])
        name = f"batch/{BATCHES[-1]}_with_the_steps_of_{BATCHES[-2]}/{loss}/r_at_1"
        rows.append(crossed_row(name, hits_of([points.get(longer)])))
    return rows


# ---------------------------------------------------------------- temperature


def temperature_part(work: Work) -> list[Row]:
    """Fixed temperatures beside the learnt one; then the limit, where it could matter."""
    points = work.points()
    rate = best_rate(points, "infonce", MIDDLE)
    usual = recipe_of("infonce", MIDDLE, rate, 0)

    def runs(**changes: Any) -> list[Outcome]:
        return [points.get(replace(usual, seed=seed, **changes)) for seed in SEEDS]

    rows: list[Row] = []
    learnt = hits_of(runs())
    for scale in FIXED:
        hits = hits_of(runs(scale="fixed", start=math.log(scale)))
        rows.append(crossed_row(f"temperature/fixed_{scale}/r_at_1", hits))
        rows.append(crossed_row(f"temperature/fixed_{scale}/below_learnt", learnt - hits))
    for place, changes in WHERE_THE_CLAMP_COULD_MATTER.items():
        both = {limit: runs(scale=limit, **changes) for limit in ("clamped", "free")}
        for limit, done in both.items():
            name = f"temperature/{place}/{limit}"
            rows.append(crossed_row(f"{name}/r_at_1", hits_of(done)))
            rows.append(spread_row(f"{name}/scale", [each.scale for each in done], "x"))
            rows.append(spread_row(f"{name}/highest_loss", [each.worst for each in done]))
        rows.append(crossed_row(f"temperature/{place}/gained_by_clamp",
                                hits_of(both["clamped"]) - hits_of(both["free"])))  # fmt: skip
    for model in MODELS:
        with CLIP(model) as clip:
            assert clip.scoring is not None
            rows.append(spread_row(f"temperature/{model}/scale", [clip.scoring.scale], "x"))
    return rows


WHERE_THE_CLAMP_COULD_MATTER: dict[str, dict[str, Any]] = {
    "usual": {},
    "high_rate": {"rate": 3e-2},
    "learnt_by_heart": {"scenes": 1024, "samples": 2 * SAMPLES, "rate": 1e-2},
    "started_at_300": {"start": math.log(300)},
    "twins_in_a_batch": {"twins": True},
}


# ---------------------------------------------------------------- long captions


def long_part(work: Work) -> list[Row]:
    """See benchmarks/long_captions.py."""
    return long_captions.measure(work.cache, (0, 1), work.is_over)


# ---------------------------------------------------------------- pictures


def draw_batches(rows: Sequence[Row], path: Path) -> None:
    """R@1 over the batch size, a line a loss."""
    from matplotlib.figure import Figure

    by_name = {row.name: row for row in rows}
    figure = Figure(figsize=(5.5, 3.2))
    axis = figure.subplots()
    for loss, label, colour in (("infonce", "InfoNCE", "C0"), ("sigmoid", "sigmoid", "C1")):
        own = [by_name[f"batch/{batch}/{loss}/r_at_1"] for batch in BATCHES]
        _line(axis, BATCHES, own, label, colour)
    axis.set_xscale("log", base=2)
    axis.set_xticks(BATCHES, [f"{batch:,}" for batch in BATCHES])
    axis.set(xlabel=f"pairs in a batch, {SAMPLES:,} seen in all", ylabel="R@1 of 1,024, %")
    _finish(figure, axis, path)


def draw_temperatures(rows: Sequence[Row], path: Path) -> None:
    """R@1 over the fixed scale, and the learnt one as a rule where it ended."""
    from matplotlib.figure import Figure

    by_name = {row.name: row for row in rows}
    figure = Figure(figsize=(5.5, 3.2))
    axis = figure.subplots()
    own = [by_name[f"temperature/fixed_{scale}/r_at_1"] for scale in FIXED]
    _line(axis, FIXED, own, "fixed", "C0")
    learnt = by_name["temperature/usual/clamped/r_at_1"]
    ended = by_name["temperature/usual/clamped/scale"].value
    axis.axhline(learnt.value, color="C1", lw=1)
    _line(axis, [ended], [learnt], "learnt from 1/0.07, where it ended", "C1")
    axis.axvline(100, color="gray", lw=1, ls=":", label="CLIP's limit")
    axis.set_xscale("log")
    axis.set_xticks(FIXED, [str(scale) for scale in FIXED])
    axis.set(xlabel="what cosines are multiplied by, 1/τ", ylabel="R@1 of 1,024, %")
    _finish(figure, axis, path)


def _line(axis: Any, at: Sequence[float], rows: Sequence[Row], label: str, colour: str) -> None:
    values = np.array([row.value for row in rows])
    spread = np.abs(np.array([[row.low, row.high] for row in rows]).T - values)
    axis.errorbar(at, values, yerr=spread, fmt="o-", ms=4, lw=1.2, color=colour, label=label)


def _finish(figure: Any, axis: Any, path: Path) -> None:
    axis.set_ylim(40, 100)
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    save_figure(path, figure, 90, LINES)


# ---------------------------------------------------------------- the command

PARTS: dict[str, Callable[[Work], list[Row]]] = {
    "templates": templates_part,
    "lengths": lengths_part,
    "batch": batch_part,
    "temperature": temperature_part,
    "long": long_part,
}
PICTURES: dict[str, Callable[[Sequence[Row], Path], None]] = {
    "batch": draw_batches,
    "temperature": draw_temperatures,
}


def merge(path: Path, part: str, rows: Sequence[Row]) -> None:
    """Put a part's rows in the place of its old ones; the notes say at which commit."""
    old = json.loads(path.read_text("utf-8")) if path.is_file() else {"rows": [], "notes": {}}
    by_part = {
        name: [row for row in old["rows"] if row["name"].startswith(f"{name}/")] for name in PARTS
    }
    by_part[part] = [asdict(row) for row in rows]
    notes = old["notes"] | {part: f"python -m benchmarks.clip_lore {part}, at {commit()}"}
    table = report("python -m benchmarks.clip_lore", [], **notes)
    save(path, table | {"rows": [row for each in by_part.values() for row in each]})


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        prog="python -m benchmarks.clip_lore",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin nothing new after")
    parser.add_argument("--cache", type=Path, default=default_cache() / "clip-lore")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    unknown = [part for part in args.parts if part not in PARTS]
    if unknown:
        parser.error(f"{unknown[0]} is not a part; parts are {', '.join(PARTS)}")
    commit()
    torch.set_num_threads(1)
    work = Work(args.cache, time.monotonic() + 60 * args.minutes)
    for part in args.parts or PARTS:
        try:
            rows = PARTS[part](work)
        except OutOfTime:
            print(f"{part}: the time is over; run it again to go on")
            return 1
        show(rows)
        merge(args.out / FILE, part, rows)
        if part in PICTURES:
            PICTURES[part](rows, args.out / f"clip-lore-{part}.webp")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
