"""``ask``: answers to questions about held-out scenes, in held-out phrasings.

Scenes are rendered ones with a held-out pair, tint or count. An answer is right when it equals
the one right answer after lower-casing and dropping a leading article and a final full stop.
``ask/overall`` pools all questions of all kinds; ``ask/overall_short`` leaves out ``caption``,
whose answer must match a whole sentence.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.grids import Cell, save_grid
from benchmarks.results import Row, grouped_share_row, report, results_file, save, share_row, show
from emoji_world.art import load_sprites
from emoji_world.questions import KINDS, Question, questions
from emoji_world.render import render_scene
from emoji_world.scenes import Scene, sample_scene

_ARTICLES = ("a ", "an ", "the ")
_SHOWN = 16


@dataclass(frozen=True)
class SceneQuestion:
    scene: Scene
    question: Question


def make_questions(n: int, seed: int = 0) -> list[SceneQuestion]:
    """``n`` questions of each kind, one or none of a kind a scene; kinds interleaved."""
    rng = random.Random(f"ask/{seed}")
    by_kind: dict[str, list[SceneQuestion]] = {kind: [] for kind in KINDS}
    while any(len(found) < n for found in by_kind.values()):
        scene = sample_scene(rng, held_out=True)
        used = set()
        for question in questions(scene, rng, held_out=True):
            if question.kind not in used and len(by_kind[question.kind]) < n:
                used.add(question.kind)
                by_kind[question.kind].append(SceneQuestion(scene, question))
    return [asked for row in zip(*by_kind.values(), strict=True) for asked in row]


def normal(answer: str) -> str:
    """Lower case, one space between words, no leading article, no final full stop."""
    text = " ".join(answer.lower().split()).removesuffix(".").strip()
    for article in _ARTICLES:
        text = text.removeprefix(article)
    return text


def run_ask(args: argparse.Namespace) -> None:
    """Ask, compare, and write ask.json with a grid of answers, misses included."""
    from bridge.vlm import load_vlm

    vlm = load_vlm(args.vlm, device=args.device)
    sprites = load_sprites()
    asked = make_questions(args.n, args.seed)
    pictures = [render_scene(one.scene, sprites) for one in asked]
    answers = answer_all(vlm, asked, pictures, args.batch)
    right = [
        normal(a) == normal(one.question.answer) for one, a in zip(asked, answers, strict=True)
    ]
    rows = ask_rows(asked, right)
    show(rows)
    examples = [
        {
            "kind": one.question.kind,
            "question": one.question.text,
            "truth": one.question.answer,
            "answer": answer,
        }
        for one, answer in zip(asked[:60], answers, strict=False)
    ]
    which = (args.vlm, "emoji-llava")
    table = report(args.command, rows, vlm.device, rule="exact match", examples=examples)
    save(results_file(args.out, "ask.json", which), table)
    cells = [
        Cell(
            Image.fromarray(pixels),
            f"{one.question.text} - {answer}" + ("" if ok else f" (no: {one.question.answer})"),
            ok,
        )
        for one, pixels, answer, ok in list(zip(asked, pictures, answers, right, strict=True))
        if one.question.kind != "caption"
    ]
    title = f"Answers about held-out scenes; the first {2 * _SHOWN}, misses included"
    save_grid(results_file(args.out, "ask.webp", which), cells[: 2 * _SHOWN], title)


def answer_all(
    vlm: Any, asked: list[SceneQuestion], pictures: list[np.ndarray], batch: int
) -> list[str]:
    """All answers, ``batch`` at once; questions of like length go together, captions apart."""
    order = sorted(
        range(len(asked)),
        key=lambda i: (asked[i].question.kind == "caption", len(asked[i].question.text)),
    )
    answers = [""] * len(asked)
    begun = told = time.monotonic()
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        found = vlm.answers(
            [Image.fromarray(pictures[i]) for i in part], [asked[i].question.text for i in part]
        )
        for i, answer in zip(part, found, strict=True):
            answers[i] = answer
        if time.monotonic() - told > 20:
            told = time.monotonic()
            print(
                f"  {start + len(part)} of {len(order)} answers, {told - begun:.0f} s", flush=True
            )
    return answers


def ask_rows(asked: list[SceneQuestion], right: list[bool]) -> list[Row]:
    """Rows of all questions, of all but captions, and of each kind. Several questions share a
    scene, and scenes are what varies; of a kind a scene has one at most."""
    outcomes = list(zip(asked, right, strict=True))
    short = [(one, ok) for one, ok in outcomes if one.question.kind != "caption"]
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for one, ok in outcomes:
        by_kind[one.question.kind].append(ok)
    return [
        grouped_share_row("ask/overall", _by_scene(outcomes)),
        grouped_share_row("ask/overall_short", _by_scene(short)),
        *(share_row(f"ask/{kind}", oks) for kind, oks in by_kind.items()),
    ]


def _by_scene(outcomes: list[tuple[SceneQuestion, bool]]) -> list[list[bool]]:
    groups: dict[Scene, list[bool]] = defaultdict(list)
    for one, ok in outcomes:
        groups[one.scene].append(ok)
    return list(groups.values())
