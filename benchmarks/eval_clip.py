"""The shipped CLIPs by the field's figures, on pictures that a user could have in folders.

    python -m benchmarks.eval_clip               # some four minutes on one core

A folder for each of the 320 things of the embedded world with pictures of it in all three styles,
natural colours, on backgrounds and at places by chance, is written as a user would have it, and
measured as `bridge eval-clip` does: zero-shot with the bare names and with templates, a linear
probe fitted on pictures of another seed, calibration; and retrieval both ways among the 256
held-out scenes of ``clip.json``, by a .csv with a caption each. Pictures of one thing are alike, so
intervals of classification are over things.

Writes eval-clip.json, and eval-clip.webp: the calibration of the first model with bare names.
"""

from __future__ import annotations

import argparse
import csv
import io
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import bridge
from benchmarks.results import (
    RESULTS,
    Row,
    command_of,
    commit,
    grouped_share_row,
    report,
    save,
    show,
)
from benchmarks.retrieval import make_pairs
from bridge.contrastive import EvalData, evaluate, read_eval_data
from bridge.contrastive.evaluation import Classification, Share
from bridge.contrastive.report import reliability_svg
from bridge.pictures import CHART, save_small
from bridge.progress import ProgressLine
from emoji_world.art import load_sprites
from emoji_world.concepts import CONCEPTS
from emoji_world.render import render_scene
from emoji_world.scenes import BACKGROUNDS, SIZES, STYLES, Group, Scene, place


def write_things(root: Path, seed: str, each: int) -> EvalData:
    """A folder for each concept with ``each`` pictures in every style, read as a user's is."""
    sprites = load_sprites()
    rng = random.Random(f"eval-clip/{seed}")
    for at, concept in enumerate(CONCEPTS):
        folder = root / concept.name.replace(" ", "_")
        folder.mkdir(parents=True)
        for style in STYLES:
            for number in range(each):
                groups = (Group(at, size=rng.choice(tuple(SIZES))),)
                background = rng.choice(tuple(BACKGROUNDS))
                scene = Scene(style, background, groups, None, tuple(place(groups, None, rng)))
                picture = Image.fromarray(render_scene(scene, sprites))
                picture.save(folder / f"{style}-{number}.png", compress_level=1)
    return read_eval_data(root)


def write_scenes(root: Path, seed: int) -> EvalData:
    """The held-out scenes of ``clip.json`` with a caption each, as a .csv."""
    root.mkdir(parents=True)
    with (root / "scenes.csv").open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(("path", "caption"))
        for number, (picture, text) in enumerate(zip(*make_pairs(seed), strict=True)):
            Image.fromarray(picture).save(root / f"{number}.png", compress_level=1)
            table.writerow((f"{number}.png", text))
    return read_eval_data(root / "scenes.csv")


def classification_rows(name: str, found: Classification) -> list[Row]:
    """Top-1 and top-5 with intervals over things; the other figures as they are."""
    rows = []
    for k in (1, 5):
        hits = (found.ranks < k).tolist()
        groups: dict[int, list[bool]] = {}
        for target, hit in zip(found.targets.tolist(), hits, strict=True):
            groups.setdefault(target, []).append(hit)
        rows.append(grouped_share_row(f"{name}/top_{k}", list(groups.values())))
    rows.append(_row(f"{name}/mean_per_class_recall", found.mean_per_class_recall))
    if found.calibration is not None:
        rows.append(_row(f"{name}/calibration_error", found.calibration.error))
    return rows


def _row(name: str, share: Share) -> Row:
    value, low, high = (round(100 * each, 2) for each in (share.value, share.low, share.high))
    return Row(name, value, low, high, share.n, "%")


def measure(
    model: str, data: EvalData, train: EvalData, scenes: EvalData, templates: Sequence[str]
) -> tuple[list[Row], Classification]:
    """The rows of one model, and its zero-shot predictions by bare names."""
    rows: list[Row] = []
    found: dict[str, Classification] = {}
    with bridge.CLIP(model) as clip, ProgressLine(sys.stderr) as show_progress:
        watched: dict[str, Any] = {"on_progress": show_progress}
        ways = {name: clip.classifier(data.labels, name, head=None) for name in templates}
        if clip.head is not None:
            ways["head"] = clip.classifier(data.labels)
        for name, by in ways.items():
            done = evaluate(clip, data, task="classification", classifier=by, **watched)
            assert done.classification is not None
            found[name] = done.classification
            rows += classification_rows(f"{model}/zero_shot/{name}", done.classification)
        probe = evaluate(clip, data, task="probe", train=train, **watched).probe
        assert probe is not None
        rows += classification_rows(f"{model}/probe", probe.classification)
        done = evaluate(clip, scenes, task="retrieval", **watched)
        rows += [_row(f"{model}/{name}", share) for name, share in done.figures().items()]
    return rows, found[templates[0]]


def draw(path: Path, found: Classification) -> None:
    """The reliability diagram, drawn as the command's own file is."""
    import matplotlib
    import resvg_py

    assert found.calibration is not None
    drawn = resvg_py.svg_to_bytes(
        svg_string=reliability_svg(found.calibration),
        width=864,
        skip_system_fonts=True,
        font_files=[str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))],
        sans_serif_family="DejaVu Sans",
    )
    save_small(path, Image.open(io.BytesIO(bytes(drawn))), CHART)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.eval_clip")
    parser.add_argument("--models", nargs="+", default=["emoji-1", "emoji-2"])
    parser.add_argument("--templates", nargs="+", default=["name", "clip-7", "clip-80"])
    parser.add_argument("--each", type=int, default=2, help="pictures of a thing in a style")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    commit()
    torch.set_num_threads(1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as given:
        root = Path(given)
        data = write_things(root / "test", f"{args.seed}", args.each)
        train = write_things(root / "train", f"{args.seed}/train", args.each)
        scenes = write_scenes(root / "scenes", args.seed)
        for at, model in enumerate(args.models):
            some, found = measure(model, data, train, scenes, args.templates)
            rows += some
            if at == 0:
                draw(args.out / "eval-clip.webp", found)
    show(rows)
    notes = {"labels": len(data.labels), "pictures": len(data), "fitted_on": len(train)}
    command = command_of(parser, args, ("models", "templates", "each", "seed"))
    save(args.out / "eval-clip.json", report(command, rows, **notes))


if __name__ == "__main__":
    main()
