"""``draw``: the six kinds of drawing task, scored by the judge."""

from __future__ import annotations

import argparse
from collections import defaultdict

import numpy as np
from PIL import Image

from benchmarks.drawn import keep_pictures, pictures_file, source_of
from benchmarks.grids import Cell, save_grid
from benchmarks.painting import as_array, paint, with_progress
from benchmarks.results import Row, report, results_file, save, share_row, show
from benchmarks.tasks import KINDS, Task, Verdict, interleaved, judge_task
from emoji_world.concepts import CONCEPTS
from emoji_world.judge import Judge, PictureContent

_SHOWN = 8
_Scored = list[tuple[Task, np.ndarray, PictureContent, Verdict]]


def run_draw(args: argparse.Namespace) -> None:
    """Draw, judge, and write draw.json, a grid a kind, and the pictures for ``memorise``."""
    from bridge.diffusion import load_pipeline

    source = source_of(args)
    pipe = load_pipeline(args.model, device=args.device)
    judge = Judge()
    tasks = interleaved(args.n, args.seed)
    pairs = paint(pipe, tasks, steps=args.steps, guidance=args.guidance, batch=args.batch)
    scored: _Scored = []
    for task, picture in with_progress(pairs, len(tasks), args.budget):
        pixels = as_array(picture)
        seen = judge.look(pixels)
        scored.append((task, pixels, seen, judge_task(task, seen)))
    keep_pictures(
        pictures_file(args.model, args.seed),
        source,
        [task.prompt for task, *_ in scored],
        [pixels for _, pixels, _, _ in scored],
    )
    rows = draw_rows(scored)
    show(rows)
    notes = {"rules": "benchmarks/tasks.py", "examples": _examples(scored)}
    which = (args.model, "emoji-xl")
    table = report(args.command, rows, pipe.device, **notes)
    save(results_file(args.out, "draw.json", which), table)
    for kind in KINDS:
        here = [entry for entry in scored if entry[0].kind == kind]
        cells = [
            Cell(Image.fromarray(pixels), task.prompt, verdict.right)
            for task, pixels, _, verdict in here[:_SHOWN]
        ]
        right = sum(verdict.right for *_, verdict in here)
        title = f"{kind}: {right} of {len(here)} right; the first {len(cells)}, misses included"
        save_grid(results_file(args.out, f"draw-{kind}.webp", which), cells, title)


def draw_rows(scored: _Scored) -> list[Row]:
    """A row a kind, then background, style and what the judge could not recognise."""
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for task, _, _, verdict in scored:
        by_kind[task.kind].append(verdict.right)
    verdicts = [verdict for *_, verdict in scored]
    styles = [verdict.style for verdict in verdicts if verdict.style is not None]
    rows = [share_row(f"draw/{kind}", by_kind[kind]) for kind in KINDS if by_kind[kind]]
    rows.append(share_row("draw/all_six", [verdict.right for verdict in verdicts]))
    rows.append(share_row("draw/background", [verdict.background for verdict in verdicts]))
    if styles:
        rows.append(share_row("draw/style_where_named", styles))
    mush = [seen.unrecognised > 0 for _, _, seen, _ in scored]
    rows.append(share_row("draw/something_unrecognised", mush))
    return rows


def _examples(scored: _Scored, n: int = 60) -> list[dict[str, object]]:
    """What was asked and what the judge saw, of the first pictures."""
    return [
        {
            "kind": task.kind,
            "prompt": task.prompt,
            "seed": task.seed,
            "right": verdict.right,
            "seen": describe(seen),
        }
        for task, _, seen, verdict in scored[:n]
    ]


def describe(seen: PictureContent) -> str:
    """What the judge saw in words: "red apple (12,40); cat (70,44); noto, white"."""
    things = [
        " ".join(
            filter(
                None,
                (
                    None if thing.size == "normal" else thing.size,
                    thing.tint,
                    CONCEPTS[thing.concept].name,
                    f"({thing.x},{thing.y})",
                ),
            )
        )
        for thing in seen.objects
    ]
    things += [f"{seen.unrecognised} unrecognised"] if seen.unrecognised else []
    return "; ".join([*things, f"{seen.style}, {seen.background}"])
