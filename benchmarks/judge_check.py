"""``judge``: the judge scored on pictures whose truth is known.

Three conditions: as rendered; degraded (blur, colour cast, contrast, displacement, noise, see
degrade.py); and after a round trip through the autoencoder that the painter draws with. And
three kinds of picture in which nothing should be recognised: blank, noise, and half-and-half
blends of two sprites.

The scenes it is scored on and the calibration scenes that the thresholds of judge.py were
chosen on (``--calibrate``) come from different seeds.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.degrade import degrade, noise
from benchmarks.grids import Cell, save_grid
from benchmarks.results import Row, median_row, report, results_file, save, share_row, show
from emoji_world.captions import plain_caption
from emoji_world.judge import Judge, Limits, ObjectMatch, PictureContent
from emoji_world.render import render_scene
from emoji_world.scenes import (
    BACKGROUNDS,
    CANVAS,
    SIZES,
    STYLES,
    TINTS,
    Group,
    PlacedObject,
    Scene,
    draw_scene,
)

CALIBRATION_SEED = 1_001
SCORING_SEED = 2_002
_SHOWN = 8
Spoil = Callable[[np.ndarray], np.ndarray]


@dataclass
class Tally:
    """Outcomes by attribute. Per picture: background, style, count (how many objects), position
    (how the first group stands to the second), all. Per object: found, concept, tint, size."""

    outcomes: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))

    def add(self, scene: Scene, seen: PictureContent) -> bool:
        """Compare one picture; True when everything is right."""
        right = {
            "background": seen.background == scene.background,
            "style": seen.style == scene.style,
            "count": len(seen.objects) == len(scene.objects) and not seen.unrecognised,
        }
        pairs = matched(scene, seen)
        for thing, found in pairs:
            self.outcomes["found"].append(found is not None)
            if found is not None:
                for name in ("concept", "tint", "size"):
                    self.outcomes[name].append(getattr(found, name) == getattr(thing, name))
        whole = all(right.values()) and all(
            found is not None
            and (found.concept, found.tint, found.size) == (thing.concept, thing.tint, thing.size)
            for thing, found in pairs
        )
        if scene.relation is not None:
            right["position"] = _relation_seen(scene, seen)
        right["all"] = whole
        for name, outcome in right.items():
            self.outcomes[name].append(outcome)
        return whole

    def rows(self, prefix: str) -> list[Row]:
        return [share_row(f"{prefix}/{name}", found) for name, found in self.outcomes.items()]


def matched(scene: Scene, seen: PictureContent) -> list[tuple[PlacedObject, ObjectMatch | None]]:
    """Each true object with the nearest thing seen, centres at most 12 pixels apart each way."""
    free = list(seen.objects)
    pairs: list[tuple[PlacedObject, ObjectMatch | None]] = []
    for thing in scene.objects:
        x, y = thing.x + thing.side / 2, thing.y + thing.side / 2

        def distance(found: ObjectMatch, x: float = x, y: float = y) -> float:
            return max(abs(found.centre[0] - x), abs(found.centre[1] - y))

        best = min(free, key=distance, default=None)
        if best is not None and distance(best) <= 12:
            free.remove(best)
            pairs.append((thing, best))
        else:
            pairs.append((thing, None))
    return pairs


def _relation_seen(scene: Scene, seen: PictureContent) -> bool:
    axis = 0 if scene.relation == "left" else 1
    first, second = (
        [thing.centre[axis] for thing in seen.of(group.concept)] for group in scene.groups
    )
    return bool(first and second) and max(first) < min(second)


def scenes(n: int, seed: int) -> list[Scene]:
    rng = random.Random(seed)
    return [draw_scene(rng) for _ in range(n)]


def blend(judge: Judge, rng: random.Random) -> np.ndarray:
    """The mean of two pictures, each of one sprite in the same place: nothing in particular."""
    style, size = rng.choice(STYLES), rng.choice(tuple(SIZES))
    background = rng.choice(tuple(BACKGROUNDS))
    corner = (CANVAS - SIZES[size]) // 2
    halves = []
    for concept in rng.sample(range(len(judge.bank.concepts)), 2):
        tint = rng.choice(TINTS) if rng.random() < 0.4 else None
        thing = PlacedObject(concept, tint, size, corner, corner)
        scene = Scene(style, background, (Group(concept, tint=tint, size=size),), None, (thing,))
        halves.append(render_scene(scene, judge.bank.sprites).astype(np.float32))
    return ((halves[0] + halves[1]) / 2).round().astype(np.uint8)


def run_judge(args: argparse.Namespace) -> None:
    """Score the judge; writes judge.json and judge-errors.webp (pictures with any error)."""
    judge = Judge()
    if args.calibrate:
        calibrate(judge, args.n, args.model)
        return
    rows, wrong, seconds = [], [], []
    generator = np.random.default_rng(SCORING_SEED)
    conditions: dict[str, Spoil] = {
        "clean": lambda pixels: pixels,
        "degraded": lambda pixels: degrade(pixels, generator),
    }
    round_trip = vae_round_trip(args.model)
    if round_trip is not None:
        conditions["vae_round_trip"] = round_trip
    for name, spoil in conditions.items():
        tally = Tally()
        for scene in scenes(max(args.n, 300), SCORING_SEED):
            pixels = spoil(render_scene(scene, judge.bank.sprites))
            begun = time.process_time()
            seen = judge.look(pixels)
            seconds.append(1000 * (time.process_time() - begun))
            if not tally.add(scene, seen) and name != "clean":
                text = f"{name}: {plain_caption(scene)}"
                wrong.append(Cell(Image.fromarray(pixels), text, False))
        rows += tally.rows(f"judge/{name}")
    rows += rejection_rows(judge, args.n, SCORING_SEED)
    rows.append(median_row("judge/cpu_time_a_picture", seconds, "ms", 1))
    show(rows)
    note = "share told right per attribute; nothing_seen/*: share with no object found"
    which = (args.model, "emoji-xl")  # whose autoencoder it is
    save(results_file(args.out, "judge.json", which), report(args.command, rows, what=note))
    title = f"Pictures the judge got wrong in any attribute, other than clean ({len(wrong)})"
    save_grid(results_file(args.out, "judge-errors.webp", which), wrong[:_SHOWN], title)


def rejection_rows(judge: Judge, n: int, seed: int) -> list[Row]:
    """How often nothing is seen where there is nothing."""
    generator, rng = np.random.default_rng(seed), random.Random(seed)
    blank = [np.full((CANVAS, CANVAS, 3), rgb, dtype=np.uint8) for rgb in BACKGROUNDS.values()]
    kinds = {
        "blank": blank,
        "noise": [noise(generator) for _ in range(n)],
        "framed_noise": [framed_noise(generator) for _ in range(n)],
        "blend": [blend(judge, rng) for _ in range(n)],
    }
    return [
        share_row(f"judge/nothing_seen/{name}", [not judge.look(p).objects for p in pictures])
        for name, pictures in kinds.items()
    ]


def framed_noise(generator: np.random.Generator) -> np.ndarray:
    """Noise within a rim of plain background, so that the background alone is no excuse."""
    pixels = noise(generator)
    name = generator.choice(list(BACKGROUNDS))
    for edge in (slice(0, 12), slice(-12, None)):
        pixels[edge] = BACKGROUNDS[name]
        pixels[:, edge] = BACKGROUNDS[name]
    return pixels


def vae_round_trip(model: str) -> Spoil | None:
    """Encoding and decoding by the model's autoencoder; None while it has none."""
    import json

    import diffusers
    import torch

    from bridge.embedded import weights_dir
    from bridge.errors import BridgeError

    # Not through resolve(): the autoencoder may be there before the rest of the model is.
    folder = (Path(model) if Path(model).is_dir() else weights_dir() / model) / "vae"
    if not (folder / "config.json").is_file():
        print(f"  {folder} is missing: no round trip", flush=True)
        return None
    kind = json.loads((folder / "config.json").read_text())["_class_name"]
    try:
        vae = (
            getattr(diffusers, kind).from_pretrained(folder, trust_remote_code=False).float().eval()
        )
    except (OSError, ValueError) as error:
        raise BridgeError(f"{folder}: the autoencoder cannot load: {error}") from error

    @torch.inference_mode()
    def spoil(pixels: np.ndarray) -> np.ndarray:
        sample = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        coded = vae.encode(sample)
        latents = coded.latents if hasattr(coded, "latents") else coded.latent_dist.mode()
        decoded = vae.decode(latents).sample[0].permute(1, 2, 0)
        return np.asarray(((decoded + 1) * 127.5).clamp(0, 255).round().byte().numpy())

    return spoil


def calibrate(judge: Judge, n: int, model: str) -> None:
    """Print how true things and blends fit, on the calibration seed: where to draw the line."""
    open_judge = Judge(judge.bank, Limits(fit=-1.0, inside=-1.0))
    generator, rng = np.random.default_rng(CALIBRATION_SEED), random.Random(CALIBRATION_SEED)
    spoils: dict[str, Spoil] = {"degraded": lambda pixels: degrade(pixels, generator)}
    round_trip = vae_round_trip(model)
    if round_trip is not None:
        spoils["round trip"] = round_trip
    groups: dict[str, list[ObjectMatch]] = {name: [] for name in spoils}
    for scene in scenes(n, CALIBRATION_SEED):
        pixels = render_scene(scene, judge.bank.sprites)
        for name, spoil in spoils.items():
            pairs = matched(scene, open_judge.look(spoil(pixels)))
            groups[name] += [f for thing, f in pairs if f and f.concept == thing.concept]
    groups["blends"] = [f for _ in range(n) for f in open_judge.look(blend(judge, rng)).objects[:1]]
    print("share accepted of", *(f"{name} ({len(found)})," for name, found in groups.items()))
    for fit in (0.85, 0.88, 0.9, 0.91, 0.92, 0.93):
        for inside in (0.6, 0.66, 0.7, 0.72, 0.74, 0.76):
            kept = (
                sum(f.fit >= fit and f.inside >= inside for f in found) / len(found)
                for found in groups.values()
            )
            print(f"fit {fit:<5} inside {inside:<5}", *(f"{share:.3f}" for share in kept))
