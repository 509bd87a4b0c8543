"""Round trip: picture, caption, picture, caption ..., and what gets lost on the way.

    python -m benchmarks.round_trip --n 40 --rounds 5

The first picture is a rendered held-out scene, whose truth is known. The answerer describes it,
the painter draws the description, the answerer describes the drawing, and so on. After each round
the judge, which shares no weights with either, looks for what stood in the first picture. Every
drawing has noise of its own, so a caption that no longer changes is where the two models agree with
each other, and not one picture drawn again.

Both roads run on one CLIP in memory: the pipeline's text tower and the answerer's image tower,
joined (`bridge.towers.join_clip`); the rows ``parameters`` count what is held.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.grids import Cell, save_grid
from benchmarks.painting import as_array, paint
from benchmarks.results import (
    RESULTS,
    Row,
    command_of,
    commit,
    grouped_share_row,
    report,
    results_file,
    save,
    share_row,
    show,
)
from bridge.store import resolve
from bridge.towers import count_parameters, join_clip
from emoji_world.art import load_sprites
from emoji_world.captions import plain_caption
from emoji_world.judge import Judge, PictureContent
from emoji_world.render import render_scene
from emoji_world.scenes import Scene, sample_scene

ASKED = "describe the picture."
_ROWS_SHOWN = 4


@dataclass(frozen=True)
class Drawing:
    """What `benchmarks.painting.paint` needs."""

    prompt: str
    seed: int


@dataclass(frozen=True, eq=False)
class Trip:
    """One scene's way: pictures[0] is the scene, captions[i] describes pictures[i], and
    pictures[i + 1] is drawn from it."""

    scene: Scene
    pictures: list[Image.Image]
    captions: list[str]
    seen: list[PictureContent]


def travel(
    pipe: Any, vlm: Any, judge: Judge, scenes: Sequence[Scene], rounds: int, seed: int, **how: Any
) -> list[Trip]:
    """Send every scene round ``rounds`` times, with fresh noise in each; ``how`` are steps and
    guidance."""
    sprites = load_sprites()
    trips = [Trip(s, [Image.fromarray(render_scene(s, sprites))], [], []) for s in scenes]
    for number in range(rounds + 1):
        for trip in trips:
            trip.seen.append(judge.look(as_array(trip.pictures[-1])))
        told = vlm.answers([trip.pictures[-1] for trip in trips], [ASKED] * len(trips))
        for trip, caption in zip(trips, told, strict=True):
            trip.captions.append(caption)
        print(f"  round {number} of {rounds}: {told[0]!r}", flush=True)
        if number == rounds:
            break
        first = seed + number * len(trips)
        drawings = [Drawing(c or "nothing", first + i) for i, c in enumerate(told)]
        for trip, (_, picture) in zip(trips, paint(pipe, drawings, **how), strict=True):
            trip.pictures.append(picture)
    return trips


def kept(scene: Scene, seen: PictureContent) -> tuple[int, int]:
    """How many of the scene's objects the judge finds, and how many there were."""
    wanted = Counter(thing.concept for thing in scene.objects)
    found = Counter(thing.concept for thing in seen.objects)
    return (wanted & found).total(), wanted.total()


def trip_rows(trips: Sequence[Trip]) -> list[Row]:
    """Drift by round: of things, backgrounds, styles and captions."""
    right = [trip.captions[0] == plain_caption(trip.scene) for trip in trips]
    rows = [share_row("round_trip/0/caption_right", right)]
    for number in range(len(trips[0].seen)):
        head = f"round_trip/{number}"
        counts = [kept(trip.scene, trip.seen[number]) for trip in trips]
        things = [[i < found for i in range(wanted)] for found, wanted in counts]
        rows += [
            grouped_share_row(f"{head}/things_kept", things),
            share_row(
                f"{head}/background_kept",
                [trip.seen[number].background == trip.scene.background for trip in trips],
            ),
            share_row(f"{head}/style_kept", [t.seen[number].style == t.scene.style for t in trips]),
        ]
        if number:
            same = [trip.captions[number] == trip.captions[number - 1] for trip in trips]
            rows.append(share_row(f"{head}/caption_unchanged", same))
    return rows


def memory_rows(pipe: Any, vlm: Any, clip: Any) -> list[Row]:
    """Parameters in memory: each road alone, and both with the CLIP that they share."""
    counts = {
        "drawing": count_parameters(pipe),
        "answering": count_parameters(vlm),
        "clip": count_parameters(clip),
        "all_three_shared": count_parameters(pipe, vlm, clip),
    }
    return [Row(f"round_trip/parameters/{k}", v, v, v, 1, "") for k, v in counts.items()]


def main(argv: Sequence[str] | None = None) -> None:
    from bridge.diffusion import load_pipeline
    from bridge.vlm import load_vlm

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.round_trip",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="emoji-xl", help="draws")
    parser.add_argument("--vlm", default="emoji-llava", help="answers")
    parser.add_argument("--clip", default="emoji-clip", help="the CLIP whose towers both hold")
    parser.add_argument("--n", type=int, default=40, help="scenes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    commit()
    pipe = load_pipeline(args.model, device=args.device)
    vlm = load_vlm(args.vlm, device=args.device)
    assert vlm.vision is not None
    clip = join_clip(resolve(args.clip), pipe.text_encoder, vlm.vision)
    rng = random.Random(f"round-trip/{args.seed}")
    # As many with one thing, where drawing is best, as with whatever comes.
    kinds = [None if i % 2 else "single" for i in range(args.n)]
    scenes = [sample_scene(rng, held_out=True, kind=kind) for kind in kinds]
    how = {"steps": args.steps, "guidance": args.guidance}
    trips = travel(pipe, vlm, Judge(), scenes, args.rounds, args.seed, **how)
    rows = [*trip_rows(trips), *memory_rows(pipe, vlm, clip)]
    show(rows)
    named = ("model", "vlm", "clip", "n", "rounds", "steps", "guidance", "seed")
    command = command_of(parser, args, named)
    which = ((args.model, "emoji-xl"), (args.vlm, "emoji-llava"), (args.clip, "emoji-clip"))
    examples = [trip.captions for trip in trips[:8]]
    path = results_file(args.out, "round_trip.json", *which)
    save(path, report(command, rows, pipe.device, captions=examples))
    cells = [
        Cell(picture, caption, kept(trip.scene, seen)[0] == kept(trip.scene, seen)[1])
        for trip in trips[:_ROWS_SHOWN]
        for picture, caption, seen in zip(trip.pictures, trip.captions, trip.seen, strict=True)
    ]
    title = "Round trips: a scene, then drawings of the caption beneath the picture before"
    path = results_file(args.out, "round_trip.webp", *which)
    save_grid(path, cells, title, columns=args.rounds + 1)  # a row a trip


if __name__ == "__main__":
    main()
