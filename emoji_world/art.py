"""The artwork: SVG emoji of three free families, rendered to sprites.

Families and licences: Noto Emoji (Apache-2.0), Fluent Emoji flat (MIT), Twemoji
(CC-BY-4.0), each taken from its npm package of the ``@iconify-json`` scope. The artwork
is needed to train and to judge, not to draw or to answer, so it does not ship:
``python -m emoji_world.art`` fetches it with ``npm`` and renders it once into a cache.
"""

from __future__ import annotations

import argparse
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bridge.checks import needed
from bridge.files import default_cache, whole, write_whole
from emoji_world.concepts import CONCEPTS, Concept
from emoji_world.npm import read_package
from emoji_world.scenes import SIZES, STYLES

PACKAGES = {
    "noto": "@iconify-json/noto@1.2.9",
    "fluent": "@iconify-json/fluent-emoji-flat@1.2.6",
    "twemoji": "@iconify-json/twemoji@1.2.5",
}
_DRAWN = 192  # pixels a side an SVG is drawn at before it is trimmed and reduced


@dataclass(frozen=True)
class Sprites:
    """Every concept in every style and size, as straight-alpha RGBA.

    ``images[size_name]`` is uint8 of shape (styles, concepts, s, s, 4), ``s`` being
    ``SIZES[size_name]`` pixels.
    """

    images: dict[str, np.ndarray]

    def get(self, style: str, concept: int, size: str) -> np.ndarray:
        """One sprite, uint8 (s, s, 4)."""
        return self.images[size][STYLES.index(style), concept]


def fetch(folder: Path) -> None:
    """Fetch the icon packages and keep each one's icons.json. Raises as `read_package`."""
    folder.mkdir(parents=True, exist_ok=True)
    for style, package in PACKAGES.items():
        if not (folder / f"{style}.json").exists():
            (icons,) = read_package(package, ["icons.json"])
            write_whole(folder / f"{style}.json", icons)


def _svg(icons: dict[str, Any], name: str) -> str:
    """The SVG text of one iconify icon, its alias resolved."""
    if name not in icons["icons"]:
        name = icons["aliases"][name]["parent"]
    icon = icons["icons"][name]
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}" width="{_DRAWN}" height="{_DRAWN}">{icon["body"]}</svg>'
    )


def _draw(svg: str) -> Image.Image:
    """An SVG trimmed to its ink and centred on a square, so all hands fill their box alike."""
    resvg_py = needed("resvg_py", "train", "the artwork")
    image = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")
    box = image.getchannel("A").point(lambda a: 255 if a > 16 else 0).getbbox()
    image = image.crop(box)
    side = max(image.size)
    square = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _shrink(square: Image.Image, side: int) -> np.ndarray:
    """Reduce to ``side`` pixels with a one-pixel margin; alpha is premultiplied meanwhile."""
    small = square.convert("RGBa").resize((side - 2, side - 2), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    canvas.paste(small.convert("RGBA"), (1, 1))
    return np.asarray(canvas)


def render(folder: Path, concepts: tuple[Concept, ...] = CONCEPTS) -> Sprites:
    """Render every concept from the icons.json files in ``folder``."""
    drawn = []
    for style in STYLES:
        icons = json.loads((folder / f"{style}.json").read_text(encoding="utf-8"))
        drawn.append([_draw(_svg(icons, concept.icons[style])) for concept in concepts])
    return Sprites(
        {
            name: np.stack([np.stack([_shrink(d, side) for d in row]) for row in drawn])
            for name, side in SIZES.items()
        }
    )


def load_sprites(cache: Path | None = None) -> Sprites:
    """The rendered sprites, fetched and rendered first when the cache has none.

    Raises:
        MissingDependencyError: ``npm`` or ``resvg-py`` is missing.
        WeightsError: the packages cannot be fetched.
    """
    cache = cache or default_cache()
    path = cache / f"sprites-{len(CONCEPTS)}.npz"
    if not path.exists():
        fetch(cache)
        drawn = render(cache).images
        with whole(path) as part, part.open("xb") as stream:
            np.savez(stream, **drawn)  # type: ignore[arg-type]
    with np.load(path) as stored:
        return Sprites({name: stored[name] for name in SIZES})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=default_cache())
    args = parser.parse_args()
    sprites = load_sprites(args.cache)
    shapes = {name: images.shape for name, images in sprites.images.items()}
    print(f"{args.cache}: {shapes}")


if __name__ == "__main__":
    main()
