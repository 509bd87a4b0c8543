"""Worked studies on the embedded models, with ``bridge.study`` and the judge.

    python benchmarks/studies.py order       does word order matter more than emphasis?
    python benchmarks/studies.py negation    does "no X" draw X?

Each writes benchmarks/results/study-<name>.json. ``--cache FOLDER`` keeps pictures, so that a run
that was cut off goes on.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import bridge
from benchmarks.results import (
    RESULTS,
    Row,
    command_of,
    commit,
    grouped_share_row,
    report,
    results_file,
    save,
    show,
)
from benchmarks.tasks import Task
from bridge.errors import BridgeError, OptionError
from bridge.lab import Study, Variant, vary
from bridge.lab.variants import Settings
from bridge.lab.variants.words import split_words
from bridge.runtime import resolve_device
from emoji_world.captions import noun_phrase
from emoji_world.phrasings import RELATIONS_HELD_OUT

_TOWERS = ("text_encoder", "text_encoder_2")
_WEIGHTS = (0.5, 0.8, 1.25, 2.0)
# Of the words that say what stands where, those that neither name a thing nor a place.
_JOINING = frozenset({"a", "an", "and", "at", "it", "of", "on", "the"})
Look = Callable[[Any, str], Mapping[str, float]]


def run_order(args: argparse.Namespace) -> None:
    """Eight word orders and eight emphases (two words, four weights) of each task's prompt."""
    from benchmarks.painting import as_array
    from benchmarks.tasks import interleaved, judge_task
    from emoji_world.judge import Judge

    kinds = ("two_objects", "colour", "position", "binding")
    each = max(1, args.n // len(kinds))
    tasks = {task.prompt: task for task in interleaved(each, args.seed, kinds)}
    judge = Judge()

    def look(image: Any, prompt: str) -> dict[str, float]:
        return {"right": float(judge_task(tasks[prompt], judge.look(as_array(image))).right)}

    studies = _studies({prompt: order_variants(task) for prompt, task in tasks.items()}, look, args)
    rows = []
    for operation in ("word-order", "emphasis"):
        for name in ("pixel_distance", "tower_distance"):
            rows.append(_mean_row(f"order/{operation}/{name}", studies, operation, name))
    for tower in _TOWERS:
        for operation in ("word-order", "emphasis"):
            for name in ("pooled_cosine", "token_cosine"):
                where = f"order/{operation}/{name}/{tower}"
                rows.append(_mean_row(where, studies, operation, name, tower))
    rows += [
        grouped_share_row(f"order/{operation}/right", _judged(studies, operation, "right"))
        for operation in ("original", "word-order", "emphasis")
    ]
    _finish("order", rows, args)


def order_variants(task: Task) -> list[Variant]:
    """Eight whole orders of a prompt's words, and the first two words of its task at four weights.

    Neighbour swaps are left out: they leave most of the order as it was.
    """
    orders = vary(task.prompt, ["word-order"], Settings(count=6))
    whole = [each for each in orders if "↔" not in each.detail]
    weighted = [
        Variant(
            "emphasis",
            f"{task.prompt[:start]}({task.prompt[start:end]}:{weight:g}){task.prompt[end:]}",
            f"{task.prompt[start:end]} × {weight:g}",
            "a1111",
        )
        for start, end in task_words(task)[:2]
        for weight in _WEIGHTS
    ]
    return [*whole[:8], *weighted]


def task_words(task: Task) -> list[tuple[int, int]]:
    """Where the words stand in the prompt that the judge's verdict hangs on: nouns, tints and
    relation, not those of frame, ground and style, and a ground's colour least of all.
    """
    things = [noun_phrase(group) for group in task.scene.groups]
    said = [" and ".join(things), " and ".join(reversed(things))]
    if len(things) == 2:
        forms = [form for some in RELATIONS_HELD_OUT.values() for form in some]
        said += [form.format(a=things[0], b=things[1]) for form in forms]
    what = next(text for text in said if text in task.prompt)
    begun, words = task.prompt.index(what), split_words(what)
    return [
        (begun + start, begun + end)
        for word, (start, end) in zip(words.words, words.spans(), strict=True)
        if word not in _JOINING
    ]


def run_negation(args: argparse.Namespace) -> None:
    """Things alone and in pairs, said and denied; how often the thing X is then found."""
    from benchmarks.painting import as_array
    from emoji_world.judge import Judge

    subjects, wanted = negation_subjects(args.n, args.seed)
    judge = Judge()

    def look(image: Any, prompt: str) -> dict[str, float]:
        return {"X": float(judge.look(as_array(image)).count(wanted[prompt]) > 0)}

    studies = _studies(subjects, look, args)
    names = ["original", *dict.fromkeys(v.operation for some in subjects.values() for v in some)]
    rows = [
        grouped_share_row(f"negation/{name}/X is drawn", _judged(studies, name, "X"))
        for name in names
    ]
    for tower in _TOWERS:
        for name in names[1:]:
            where = f"negation/{name}/pooled_above_chance/{tower}"
            rows.append(_mean_row(where, studies, name, "pooled_above_chance", tower))
    _finish("negation", rows, args)


def negation_subjects(n: int, seed: int) -> tuple[dict[str, list[Variant]], dict[str, int]]:
    """``n`` prompts "an X" with what is said of X beside them, and which concept each X is.

    Raises OptionError where there are not as many things.
    """
    from emoji_world.captions import article
    from emoji_world.concepts import CONCEPTS

    # A thing is X once, so that each prompt has one study.
    if not 1 <= n <= len(CONCEPTS):
        raise OptionError(f"n is {n}; give 1 to {len(CONCEPTS)}, as there are so many things")
    chance = random.Random(seed)
    things = chance.sample(range(len(CONCEPTS)), n)
    pairs = [(x, chance.choice([y for y in range(len(CONCEPTS)) if y != x])) for x in things]
    subjects: dict[str, list[Variant]] = {}
    wanted: dict[str, int] = {}
    for x, y in pairs:
        one, other = CONCEPTS[x].one, article(CONCEPTS[y].one)
        prompt = article(one)
        wanted[prompt] = x
        phrases = {
            "no X": f"no {one}",
            "without X": f"without {article(one)}",
            "not X": f"not {article(one)}",
            "Y": other,
            "Y and X": f"{other} and {article(one)}",
            "Y but no X": f"{other} but no {one}",
            "Y without X": f"{other} without {article(one)}",
        }
        subjects[prompt] = [Variant(name, text) for name, text in phrases.items()]
    return subjects, wanted


# ---------------------------------------------------------------- shared


def _studies(
    subjects: Mapping[str, Sequence[Variant]], look: Look, args: argparse.Namespace
) -> list[Study]:
    """A study a prompt, all with one open model."""
    from bridge.towers import open_image_tower

    pipe = bridge.load_pipeline(args.model)
    eye = open_image_tower("emoji-1")
    found = []
    for number, (prompt, variants) in enumerate(subjects.items(), 1):
        found.append(
            bridge.study(
                prompt, variants=list(variants), model=pipe, image_tower=eye, judge=look,
                seeds=list(range(args.seeds)), steps=args.steps, guidance_scale=args.guidance,
                cache=args.cache, heat=False,
            )
        )  # fmt: skip
        print(f"  {number} of {len(subjects)} prompts", flush=True)
    return found


def _judged(studies: Sequence[Study], operation: str, figure: str) -> list[list[bool]]:
    """A study's prompt is a group: its variants and seeds are of one subject."""
    return [
        study.pictures.loc[study.pictures.operation == operation, f"judge_{figure}"]
        .astype(bool)
        .to_list()
        for study in studies
    ]


def _mean_row(
    name: str, studies: Sequence[Study], operation: str, figure: str, tower: str | None = None
) -> Row:
    """The mean over prompts, each the mean of its own variants; prompts are what varies."""
    by_prompt: dict[str, list[float]] = defaultdict(list)
    for study in studies:
        table = study.pictures if tower is None else study.table[study.table.tower == tower]
        for row in table[table.operation == operation].to_dict("records"):
            if row[figure] == row[figure]:  # no NaN
                by_prompt[row["prompt"]].append(row[figure])
    return mean_row(name, [fmean(own) for own in by_prompt.values()])


def mean_row(name: str, values: Sequence[float]) -> Row:
    """The mean with its normal 95 % interval; of one value, that value."""
    mean = fmean(values)
    spread = stdev(values) if len(values) > 1 else 0.0
    half = NormalDist().inv_cdf(0.975) * spread / len(values) ** 0.5
    low, high = round(mean - half, 4), round(mean + half, 4)
    return Row(name, round(mean, 4), low, high, len(values), "")


def _finish(name: str, rows: list[Row], args: argparse.Namespace) -> None:
    show(rows)
    path = results_file(args.out, f"study-{name}.json", (args.model, "emoji-xl"))
    save(path, report(args.command, rows, resolve_device()))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/studies.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=("order", "negation"))
    parser.add_argument("--model", default="emoji-xl")
    parser.add_argument("--n", type=int, default=20, help="prompts")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts")
    parser.add_argument("--seeds", type=int, default=1, help="pictures a phrasing")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--cache", default=None)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    args.command = command_of(parser, args, ("model", "n", "seed", "seeds", "steps", "guidance"))
    commit()  # before the hours in which it may move on
    try:
        {"order": run_order, "negation": run_negation}[args.name](args)
    except BridgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
