"""What a CLIP gains and forgets when it is adapted to a style of drawing that it never saw.

    python -m benchmarks.adapt_clip     # some 40 minutes of one core; goes on where it stopped

emoji-1 was trained on three families of emoji. OpenMoji, a fourth (CC-BY-SA-4.0, fetched from npm),
draws the same 320 things in black outlines. `bridge.train_clip` learns from 100, 500 or 3,000
training scenes in that style with the world's captions, which never name the style; three seeds,
each with scenes of its own. Asked are 256 held-out scenes, drawn in all four styles with the same
captions: R@1 both ways within a style, and zero-shot of single things, of ten names and of all.
Everything that was chosen (rates, rank, steps, WiSE-FT's part) was chosen on a validation set of
other scenes, with another seed's training scenes.

``forgotten`` is what R@1 lost over the three old styles, in points; below 0, they gained.
Intervals are over scenes. Writes adapt-clip.json and adapt-clip.webp.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

import bridge
from benchmarks.results import (
    RESULTS,
    Row,
    command_of,
    commit,
    grouped_share_row,
    ratio_interval,
    report,
    save,
    show,
)
from benchmarks.retrieval import first_ranks
from bridge.contrastive import interpolate
from bridge.embedded import IMAGE_TOWER
from bridge.files import default_cache, write_whole
from bridge.pictures import LINES, save_figure
from bridge.training.run_state import CHECKPOINT
from emoji_world.art import HELD_OUT_STYLE, Sprites, load_held_out_sprites, load_sprites
from emoji_world.captions import caption
from emoji_world.concepts import CONCEPTS
from emoji_world.heads import TEMPLATES
from emoji_world.render import render_scene
from emoji_world.scenes import BACKGROUNDS, SIZES, STYLES, Group, Scene, place, sample_scene

NAMES = [concept.name for concept in CONCEPTS]
SEEDS = 3
SCENES = 256
BATCH = 64
STEPS = {100: 32, 500: 64, 3000: 112}  # 20, 8 and 2.4 times through the pairs
Mode = Literal["probe", "lora", "full"]
MODES: dict[Mode, dict[str, Any]] = {
    "probe": {"learning_rate": 1e-3},
    "lora": {"learning_rate": 1e-3, "lora": 32},
    "full": {"learning_rate": 2e-4},
}
WISE_FT = 0.75
Outcomes = dict[str, dict[str, list[int]]]
"""By style and measure, 1 for each scene or thing that was found, 0 for the others."""


@dataclass(frozen=True)
class Part:
    """One model: how it was trained, and the part of what it learnt that is kept."""

    mode: Mode
    pairs: int
    seed: int
    kept: float

    @property
    def trained(self) -> str:
        return f"{self.mode}-{self.pairs}-{self.seed}"

    @property
    def cell(self) -> str:
        """What its seeds share, as rows are named."""
        plain = self.kept == 1 and self.mode != "probe"
        return f"{self.mode}{'_without_wise_ft' if plain else ''}/{self.pairs}"


def parts(seeds: int = SEEDS) -> list[Part]:
    """All, those of the figure to reach first."""
    cells: list[tuple[Mode, int, float]] = [("lora", 500, WISE_FT)]
    cells += [("full", 3000, WISE_FT), ("full", 3000, 1.0), ("lora", 500, 1.0)]
    cells += [("probe", 500, 1.0), ("full", 500, WISE_FT), ("full", 500, 1.0)]
    cells += [("probe", 3000, 1.0), ("lora", 3000, WISE_FT)]
    cells += [(mode, 100, 1.0 if mode == "probe" else WISE_FT) for mode in MODES]
    return [Part(mode, pairs, seed, kept) for mode, pairs, kept in cells for seed in range(seeds)]


# ---------------------------------------------------------------- scenes


@cache
def _sprites(style: str) -> Sprites:
    return load_held_out_sprites() if style == HELD_OUT_STYLE else load_sprites()


def drawn(scene: Scene, style: str) -> Image.Image:
    """The scene's picture with every thing in ``style``."""
    return Image.fromarray(render_scene(replace(scene, style=style), _sprites(style)))


def training_scenes(count: int, seed: int) -> Iterator[tuple[Scene, str]]:
    """Scenes of the training side with a caption each, which does not name the style."""
    rng = random.Random(f"adapt/{seed}")
    for _ in range(count):
        scene = sample_scene(rng)
        yield scene, caption(scene, rng, style=False)


def training_pairs(count: int, seed: int) -> list[dict[str, Any]]:
    """The scenes drawn in the held-out style, as `bridge.train_clip` reads rows."""
    return [
        {"image": drawn(scene, HELD_OUT_STYLE), "text": text}
        for scene, text in training_scenes(count, seed)
    ]


@cache
def asked_scenes(name: str = "asked", count: int = SCENES) -> dict[str, Scene]:
    """Held-out scenes by a caption of each, in phrasings that training never shows."""
    rng = random.Random(f"adapt/{name}")
    found: dict[str, Scene] = {}
    while len(found) < count:
        scene = sample_scene(rng, held_out=True)
        found.setdefault(caption(scene, rng, held_out=True, relation=True, style=False), scene)
    return found


@cache
def things(name: str = "asked") -> tuple[Scene, ...]:
    """Each thing once, natural colours, on any ground in any size."""
    rng = random.Random(f"adapt/things/{name}")
    found = []
    for concept in range(len(CONCEPTS)):
        groups = (Group(concept, size=rng.choice(tuple(SIZES))),)
        ground = rng.choice(tuple(BACKGROUNDS))
        found.append(Scene(STYLES[0], ground, groups, None, tuple(place(groups, None, rng))))
    return tuple(found)


# ---------------------------------------------------------------- training and measuring


def train(part: Part, folder: Path) -> Path:
    """The trained folder, made first where it is not there yet, or not to its end."""
    if not finished(folder):
        bridge.train_clip(
            IMAGE_TOWER,
            training_pairs(part.pairs, part.seed),
            folder,
            mode=part.mode,
            steps=STEPS[part.pairs],
            batch_size=BATCH,
            seed=part.seed,
            mixed_precision="bf16",
            save_every=16,
            device="cpu",
            **MODES[part.mode],
        )
    return folder


def finished(folder: Path) -> bool:
    """Whether a run went to its end; a stopped one goes on."""
    return (folder / "config.json").exists() and not (folder / CHECKPOINT).exists()


def measure(clip: bridge.CLIP) -> Outcomes:
    asked, shown = asked_scenes(), things()
    texts = clip.encode_text(list(asked))
    # Without the head that ships, which was fitted to the vectors of the model as it was.
    classify = clip.classifier(NAMES, TEMPLATES, head=None)
    found = {}
    for style in (HELD_OUT_STYLE, *STYLES):
        pictures = clip.encode_image(drawn(scene, style) for scene in asked.values())
        to_image, to_text = first_ranks(clip.similarity(pictures, texts).numpy())
        scores = classify.scores(clip.encode_image(drawn(s, style) for s in shown)).numpy()
        hits = {
            "to_image": to_image,
            "to_text": to_text,
            "of_10": of_ten(scores),
            "of_320": (scores.argmax(1) == np.arange(len(scores))).tolist(),
        }
        found[style] = {name: [int(hit) for hit in each] for name, each in hits.items()}
    return found


def of_ten(scores: np.ndarray) -> list[bool]:
    """Of each thing, whether its own name scores above nine others by chance."""
    rng = random.Random("adapt/ten")
    found = []
    for own, row in enumerate(scores):
        others = rng.sample([each for each in range(len(row)) if each != own], 9)
        found.append(bool((row[own] > row[others]).all()))
    return found


def outcomes_of(part: Part | None, cache_folder: Path) -> Outcomes | None:
    """What was measured before of a part, or of the model as it is."""
    path = outcomes_file(part, cache_folder)
    found: Outcomes | None = json.loads(path.read_text()) if path.exists() else None
    return found


def outcomes_file(part: Part | None, cache_folder: Path) -> Path:
    return cache_folder / f"{'before' if part is None else f'{part.trained}-{part.kept:g}'}.json"


def work(part: Part | None, cache_folder: Path) -> None:
    """Train a part where it is not trained, measure it, and keep what was found."""
    if part is None:
        clip = bridge.CLIP(IMAGE_TOWER, device="cpu")
    else:
        folder = train(part, cache_folder / part.trained)
        if part.kept < 1:
            tuned, folder = folder, cache_folder / f"{part.trained}-{part.kept:g}"
            interpolate(IMAGE_TOWER, tuned, part.kept, folder)
        clip = bridge.CLIP(folder, device="cpu")
    found = json.dumps(measure(clip)).encode()
    write_whole(outcomes_file(part, cache_folder), found)


# ---------------------------------------------------------------- figures


def found_of(outcomes: Sequence[Outcomes], styles: Sequence[str], *names: str) -> np.ndarray:
    """Of each scene the share of its questions that were answered right, over seeds, styles and
    measures."""
    return np.mean([one[style][name] for one in outcomes for style in styles for name in names], 0)


RECALL = ("to_image", "to_text")
_SETS = {"new": (HELD_OUT_STYLE,), "old": STYLES}


def share(name: str, outcomes: Sequence[Outcomes], styles: Sequence[str], *names: str) -> Row:
    every = [one[style][each] for one in outcomes for style in styles for each in names]
    return grouped_share_row(name, [[bool(x) for x in group] for group in zip(*every, strict=True)])


def points(name: str, after: np.ndarray, before: np.ndarray) -> Row:
    """The mean difference in points, with its interval over scenes."""
    ends = ratio_interval(after - before, np.ones(len(after)))
    value, low, high = (round(100 * float(end), 2) for end in ((after - before).mean(), *ends))
    return Row(name, value, low, high, len(after), "points")


def gap_closed(name: str, some: np.ndarray, best: np.ndarray, before: np.ndarray) -> Row:
    """How much of the way from ``before`` to ``best`` a model came, with its interval over
    scenes."""
    part, whole = some - before, best - before
    ends = ratio_interval(part, whole)
    value, low, high = (round(100 * float(end), 1) for end in (part.sum() / whole.sum(), *ends))
    return Row(name, value, low, high, len(part), "%")


def rows_of(before: Outcomes, cells: Mapping[str, Sequence[Outcomes]]) -> list[Row]:
    """All figures of the cells that have been measured."""
    rows = []
    for name, styles in _SETS.items():
        rows.append(share(f"before/{name}/r_at_1", [before], styles, *RECALL))
        for ways in ("of_10", "of_320"):
            rows.append(share(f"before/{name}/{ways}", [before], styles, ways))
    start = {name: found_of([before], styles, *RECALL) for name, styles in _SETS.items()}
    best = max(cells, key=lambda cell: _new(cells[cell]).mean())
    for cell, each in cells.items():
        old = found_of(each, STYLES, *RECALL)
        rows += [
            share(f"{cell}/new/r_at_1", each, (HELD_OUT_STYLE,), *RECALL),
            gap_closed(f"{cell}/of_the_way_to_{best}", _new(each), _new(cells[best]), start["new"]),
            points(f"{cell}/forgotten", start["old"], old),
        ]
        if "without" in cell:
            continue
        for ways in ("of_10", "of_320"):
            rows += [share(f"{cell}/{s}/{ways}", each, _SETS[s], ways) for s in _SETS]
    return rows


def _new(outcomes: Sequence[Outcomes]) -> np.ndarray:
    return found_of(outcomes, (HELD_OUT_STYLE,), *RECALL)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Gained against forgotten, a point a cell."""
    from matplotlib.figure import Figure

    value = {row.name: row for row in rows}
    zero = value["before/new/r_at_1"].value
    figure = Figure(figsize=(7, 4))
    axis = figure.subplots()
    colours = {"probe": "tab:green", "lora": "tab:orange", "full": "tab:blue"}
    seen = set()
    for name, row in value.items():
        if not name.endswith("/forgotten"):
            continue
        cell = name.removesuffix("/forgotten")
        kind, pairs = cell.split("/")
        mode, plain = kind.removesuffix("_without_wise_ft"), "without" in kind
        new = value[f"{cell}/new/r_at_1"]
        label = f"{mode}{', no WiSE-FT' if plain else ''}"
        axis.errorbar(
            new.value - zero,
            row.value,
            xerr=[[new.value - new.low], [new.high - new.value]],
            yerr=[[row.value - row.low], [row.high - row.value]],
            fmt="o",
            color=colours[mode],
            mfc="white" if plain else colours[mode],
            elinewidth=0.6,
            label=None if label in seen else label,
        )
        seen.add(label)
        place = (new.value - zero, row.value)
        # Full and LoRA lie on one another: one is labelled above, the other below.
        left, below = plain == (mode == "full"), mode == "lora" and not plain
        axis.annotate(
            f"{int(pairs):,}", place, (-5 if left else 5, -13 if below else 5),
            textcoords="offset points", ha="right" if left else "left", color=colours[mode],
        )  # fmt: skip
    axis.axhline(0, color="grey", linewidth=0.8)
    axis.set(xlabel="gained on the new style, points of R@1", ylabel="forgotten on the old, points")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    figure.tight_layout()
    save_figure(path, figure, dpi=90, colours=LINES)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this and benchmarks/flip.py, which trains on the same pairs, both take."""
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--cache", type=Path, default=default_cache() / "adapt-clip")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="begin no part after so long"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adapt_clip", description=__doc__)
    add_arguments(parser)
    args = parser.parse_args()
    commit()
    args.cache.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    todo: list[Part | None] = [None, *parts(args.seeds)]
    for part in todo:
        if outcomes_of(part, args.cache) is not None:
            continue
        if time.monotonic() - begun > 60 * args.minutes:
            print(f"stopped before {part}; the same command goes on")
            break
        work(part, args.cache)
        print(part, round(time.monotonic() - begun), "s", flush=True)
    args.minutes = math.inf  # it changes no figure
    write(args.seeds, args.cache, args.out, command_of(parser, args))


def write(seeds: int, cache_folder: Path, out: Path, command: str) -> None:
    """The table and the picture of all cells whose seeds have all been measured."""
    before = outcomes_of(None, cache_folder)
    assert before is not None
    cells: dict[str, list[Outcomes]] = {}
    for part in parts(seeds):
        found = outcomes_of(part, cache_folder)
        if found is not None:
            cells.setdefault(part.cell, []).append(found)
    rows = rows_of(before, {k: v for k, v in cells.items() if len(v) == seeds})
    show(rows)
    save(
        out / "adapt-clip.json",
        report(command, rows, steps=STEPS, batch_size=BATCH, wise_ft=WISE_FT, **MODES),
    )
    draw(rows, out / "adapt-clip.webp")


if __name__ == "__main__":
    main()
