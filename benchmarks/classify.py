"""``python -m benchmarks.classify``: ten bare names, which is the picture of?

320 things in three styles, three times: on white at the usual size, on white and big, and on any
ground in any size. Every picture is asked for once against nine other names at random (seed in
``--seed``), as a new user does, and once against all 319. Rows: bare names by plain cosine; CLIP's
own templates; the templates of the shipped head without it; with it; and a head fitted on half of
the things, measured on the other half, which it never saw. ``tags`` are scenes of one to four
things, every label with a threshold of its own found on other scenes.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.results import RESULTS, Row, ratio_interval, report, save, share_row, show
from bridge.contrastive import CLIP, Classifier
from emoji_world.art import load_sprites
from emoji_world.concepts import CONCEPTS
from emoji_world.heads import TEMPLATES, fit, scenes
from emoji_world.render import render_scene
from emoji_world.scenes import BACKGROUNDS, SIZES, STYLES, Group, Scene, place, sample_scene

NAMES = [concept.name for concept in CONCEPTS]
ALL = range(len(NAMES))


@cache
def shown(ground: str | None, size: str | None, seed: int) -> list[Scene]:
    """Each thing in each style; None is any ground, any size."""
    rng = random.Random(f"classify/{seed}/{ground}/{size}")
    found = []
    for style in STYLES:
        for concept in ALL:
            group = (Group(concept, 1, None, size or rng.choice(list(SIZES))),)
            behind = ground or rng.choice(list(BACKGROUNDS))
            found.append(Scene(style, behind, group, None, tuple(place(group, None, rng))))
    return found


def encode(clip: CLIP, some: Sequence[Scene]) -> Tensor:
    """Their vectors."""
    sprites = load_sprites()
    drawn = (Image.fromarray(render_scene(scene, sprites)) for scene in some)
    return clip.encode_image(drawn, batch_size=64)


def among(scores: Tensor, truth: Sequence[int], of: Sequence[int], seed: int) -> list[bool]:
    """Of each picture whether its own name scores above nine others of ``of``."""
    rng = random.Random(f"ten/{seed}")
    found = []
    for row, own in zip(scores.tolist(), truth, strict=True):
        others = rng.sample([each for each in of if each != own], 9)
        found.append(all(row[own] > row[other] for other in others))
    return found


def rows_of(name: str, classify: Classifier, vectors: Tensor, seed: int) -> list[Row]:
    """Ten-way and 320-way."""
    scores = classify.scores(vectors)
    truth = [*ALL] * len(STYLES)
    right = (scores.argmax(1) == torch.tensor(truth, dtype=torch.long)).tolist()
    return [
        share_row(f"classify/{name}/of_10", among(scores, truth, ALL, seed)),
        share_row(f"classify/{name}/of_320", right),
    ]


def tag_rows(clip: CLIP, seed: int, count: int = 1000) -> list[Row]:
    """Several labels a picture: F1 and the share of scenes with all labels right."""
    rng = random.Random(f"tags/{seed}")
    some = [sample_scene(rng) for _ in range(6 * count)]
    truth = torch.zeros(len(some), len(NAMES), dtype=torch.bool)
    for row, scene in enumerate(some):
        for group in scene.groups:
            truth[row, group.concept] = True
    vectors = encode(clip, some)
    rows = []
    for name, head in (("plain", None), ("head", "own")):
        classify = clip.classifier(NAMES, TEMPLATES, head=head)  # type: ignore[arg-type]
        classify = classify.calibrate(vectors[count:], truth[count:])
        found = classify.tags(vectors[:count])
        right = [{NAMES[i] for i in each.nonzero().flatten()} for each in truth[:count]]
        twice = [2 * len(set(a) & b) for a, b in zip(found, right, strict=True)]
        both = [len(a) + len(b) for a, b in zip(found, right, strict=True)]
        ends = ratio_interval(np.array(twice), np.array(both))
        f1, low, high = (round(100 * end, 2) for end in (sum(twice) / sum(both), *ends))
        rows.append(Row(f"classify/tags/{name}/f1", f1, low, high, count, "%"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clip", default="emoji-1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    clip = CLIP(args.clip)
    rng = random.Random("halves")
    seen = sorted(rng.sample(ALL, len(NAMES) // 2))
    unseen = sorted(set(ALL) - set(seen))
    half = fit(clip, scenes(), seen)
    ways = {
        "bare_name": clip.classifier(NAMES, "name", head=None),
        "a_photo_of": clip.classifier(NAMES, "photo", head=None),
        "clip_7": clip.classifier(NAMES, "clip-7", head=None),
        "clip_80": clip.classifier(NAMES, "clip-80", head=None),
        "three_sizes": clip.classifier(NAMES, TEMPLATES, head=None),
        "head_bare_name": clip.classifier(NAMES, "name"),
        "head": clip.classifier(NAMES),
    }
    rows: list[Row] = []
    for name, scene in {
        "white": ("white", "normal"), "big": ("white", "big"), "any": (None, None)
    }.items():  # fmt: skip
        some = shown(*scene, args.seed)
        vectors = encode(clip, some)
        for way, classify in ways.items():
            rows += rows_of(f"{name}/{way}", classify, vectors, args.seed)
        truth = [*ALL] * len(STYLES)
        kept = [row for row, own in enumerate(truth) if own in set(unseen)]
        scores = clip.classifier(NAMES, TEMPLATES, head=half).scores(vectors[kept])
        right = among(scores, [truth[row] for row in kept], unseen, args.seed)
        rows.append(share_row(f"classify/{name}/head_of_other_things/of_10", right))
        show(rows)
    rows += tag_rows(clip, args.seed)
    show(rows)
    save(args.out / "classify.json", report("python -m benchmarks.classify", rows, clip.device))


if __name__ == "__main__":
    main()
