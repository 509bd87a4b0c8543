"""Make sprites_sample.npz from the rendered artwork: `python tests/data/make_sprites_sample.py`.

Sprites are stored as one atlas, as lossless WebP inside the npz: it keeps the file small.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from bridge.emoji.art import Sprites, load_sprites
from bridge.emoji.concepts import CONCEPTS
from bridge.emoji.scenes import SIZES

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
    """Styles in bands; in a band one row a size; in a row one sprite a concept: uint8 RGBA."""
    bands = []
    for style in range(3):
        for size, side in SIZES.items():
            row = np.zeros((side, 64 * len(concepts), 4), dtype=np.uint8)
            for i, concept in enumerate(concepts):
                row[:, 64 * i : 64 * i + side] = sprites.images[size][style, concept]
            bands.append(row)
    return np.concatenate(bands)


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
