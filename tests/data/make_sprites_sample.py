"""Make sprites_sample.npz from the rendered artwork: `python tests/data/make_sprites_sample.py`.

Only the largest sprites are stored, as one atlas in lossless WebP inside the npz, which keeps the
file small; tests/support/judge_world.py reduces them to the smaller sizes.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from emoji_world.art import Sprites, load_sprites
from emoji_world.concepts import CONCEPTS
from emoji_world.scenes import SIZES

HERE = Path(__file__).resolve().parent
NAMES = (
    "cat",
    "dog",
    "apple",
    "banana",
    "car",
    "bicycle",
    "umbrella",
    "key",
    "penguin",
    "rose",
)


def atlas(sprites: Sprites, concepts: list[int]) -> np.ndarray:
    """One row a style, in it one of the largest sprites a concept: uint8 RGBA."""
    largest = max(SIZES, key=lambda size: SIZES[size])
    return np.concatenate([np.hstack(row[concepts]) for row in sprites.images[largest]])


def main() -> None:
    by_name = {concept.name: i for i, concept in enumerate(CONCEPTS)}
    concepts = [by_name[name] for name in NAMES]
    buffer = io.BytesIO()
    # exact: the colours under transparent pixels count where sprites are resized.
    picture = Image.fromarray(atlas(load_sprites(), concepts))
    picture.save(buffer, "WEBP", lossless=True, exact=True, quality=100, method=6)
    webp = np.frombuffer(buffer.getvalue(), dtype=np.uint8)
    np.savez(HERE / "sprites_sample.npz", webp=webp, names=np.array(NAMES), concepts=concepts)


if __name__ == "__main__":
    main()
