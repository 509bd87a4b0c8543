"""The heads that ship beside the CLIPs' weights: ``python -m emoji_world.heads``.

Fitted on 6,000 training scenes of one thing each (none of the held-out tints), in any style, size
and colour on any ground, with its bare name: a minute of two cores. emoji-multilingual lands near
emoji-1's texts and not on them, so it has a head of its own, of bare names in all its languages.
`bridge.contrastive.head` says what a head is; benchmarks/classify.py and benchmarks/languages.py
measure what they gain, the first for names outside the fit too.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image

from bridge.contrastive.classifier import class_vectors
from bridge.contrastive.clip import CLIP
from bridge.contrastive.head import FILE, Head, fit_head
from bridge.embedded import weights_dir
from bridge.lab.variants.vocabulary import LANGUAGES, names_in
from bridge.manifest import write_manifest
from emoji_world.art import load_sprites
from emoji_world.concepts import CONCEPTS
from emoji_world.render import render_scene
from emoji_world.scenes import Scene, sample_scene

TEMPLATES = ("a {}", "a small {}", "a big {}")
SCENES = 6000
BARE = ("{}",)  # "a" is English
_MODELS = {"emoji-clip": "emoji-1", "emoji-clip-2": "emoji-2"}


def scenes(count: int = SCENES) -> list[Scene]:
    """Training scenes of one thing each."""
    rng = random.Random("heads/0")
    return [sample_scene(rng, kind="single") for _ in range(count)]


def fit(clip: CLIP, some: Sequence[Scene], kept: Sequence[int] | None = None) -> Head:
    """A head of scenes; with ``kept``, of those whose thing is one of these concepts."""
    concepts = list(range(len(CONCEPTS)) if kept is None else kept)
    place = {concept: row for row, concept in enumerate(concepts)}
    used = [scene for scene in some if scene.groups[0].concept in place]
    texts = class_vectors(clip, [[CONCEPTS[each].name] for each in concepts], TEMPLATES)
    rows = [place[scene.groups[0].concept] for scene in used]
    vectors = clip.encode_image(_drawn(used), batch_size=64)
    return fit_head(vectors, texts, torch.tensor(rows, dtype=torch.long), templates=TEMPLATES)


def fit_languages(clip: CLIP, some: Sequence[Scene], languages: Sequence[str]) -> Head:
    """A head of scenes and of what their things are called in each of these languages."""
    named = [[concept.name for concept in CONCEPTS], *map(names_in, languages)]
    texts = class_vectors(clip, [[name] for names in named for name in names], BARE)
    rows = [
        language * len(CONCEPTS) + scene.groups[0].concept
        for language in range(len(named))
        for scene in some
    ]
    vectors = clip.encode_image(_drawn(some), batch_size=64).repeat(len(named), 1)
    return fit_head(vectors, texts, torch.tensor(rows, dtype=torch.long), templates=BARE)


def _drawn(some: Sequence[Scene]) -> Iterator[Image.Image]:
    sprites = load_sprites()
    return (Image.fromarray(render_scene(scene, sprites)) for scene in some)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=weights_dir())
    args = parser.parse_args()
    some = scenes()
    heads = {folder: fit(CLIP(name), some) for folder, name in _MODELS.items()}
    many = CLIP("emoji-1", text="emoji-multilingual")
    heads["emoji-multilingual"] = fit_languages(many, some, LANGUAGES)
    for folder, head in heads.items():
        path = args.weights / folder / FILE
        head.save(path)
        print(f"{path}: {path.stat().st_size} bytes")
    write_manifest(args.weights)


if __name__ == "__main__":
    main()
