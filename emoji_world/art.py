"""The artwork: SVG emoji of three free families, rendered to sprites.

Families and licences: Noto Emoji (Apache-2.0), Fluent Emoji flat (MIT), Twemoji
(CC-BY-4.0), each taken from its npm package of the ``@iconify-json`` scope. The artwork
is needed to train and to judge, not to draw or to answer, so it does not ship:
``python -m emoji_world.art`` fetches it with ``npm`` and renders it once into a cache.

A fourth family, OpenMoji (CC-BY-SA-4.0), has all of the concepts too and was never trained on:
`load_held_out_sprites`.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bridge.checks import needed
from bridge.errors import WeightsError
from bridge.files import default_cache, whole, write_whole
from emoji_world.concepts import CONCEPTS, Concept
from emoji_world.npm import read_package
from emoji_world.scenes import SIZES, STYLES

PACKAGES = {
    "noto": "@iconify-json/noto@1.2.9",
    "fluent": "@iconify-json/fluent-emoji-flat@1.2.6",
    "twemoji": "@iconify-json/twemoji@1.2.5",
}
HELD_OUT_STYLE = "openmoji"
_HELD_OUT_PACKAGE = "@iconify-json/openmoji@1.2.29"
_VARIATION = "\ufe0f"  # asks for colour; icon names are listed without it
_DRAWN = 192  # pixels a side an SVG is drawn at before it is trimmed and reduced


@dataclass(frozen=True)
class Sprites:
    """Every concept in every style and size, as straight-alpha RGBA.

    ``images[size_name]`` is uint8 of shape (styles, concepts, s, s, 4), ``s`` being
    ``SIZES[size_name]`` pixels; ``styles`` are those of its first axis.
    """

    images: dict[str, np.ndarray]
    styles: tuple[str, ...] = STYLES

    def get(self, style: str, concept: int, size: str) -> np.ndarray:
        """One sprite, uint8 (s, s, 4)."""
        return self.images[size][self.styles.index(style), concept]


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
    return Sprites(_in_sizes(drawn))


def _in_sizes(drawn: Sequence[Sequence[Image.Image]]) -> dict[str, np.ndarray]:
    """A row of squares for each style, as `Sprites` keeps them."""
    return {
        name: np.stack([np.stack([_shrink(d, side) for d in row]) for row in drawn])
        for name, side in SIZES.items()
    }


def render_held_out(
    icons: dict[str, Any], names: dict[str, str], concepts: tuple[Concept, ...] = CONCEPTS
) -> Sprites:
    """Render every concept in the held-out style.

    Args:
        icons: the package's icons.json.
        names: its chars.json, an icon's name by the emoji's code points: "1f431", "2764".
        concepts: what is drawn.

    Raises:
        WeightsError: the package has no icon of a concept.
    """
    codes = ["-".join(f"{ord(sign):x}" for sign in _plain(each.emoji)) for each in concepts]
    missing = [each.name for each, code in zip(concepts, codes, strict=True) if code not in names]
    if missing:
        raise WeightsError(f"{_HELD_OUT_PACKAGE} has no icon of {', '.join(missing)}.")
    drawn = [_draw(_svg(icons, names[code])) for code in codes]
    return Sprites(_in_sizes([drawn]), (HELD_OUT_STYLE,))


def _plain(emoji: str) -> str:
    return emoji.replace(_VARIATION, "")


def load_sprites(cache: Path | None = None) -> Sprites:
    """The rendered sprites, fetched and rendered first when the cache has none.

    Raises:
        MissingDependencyError: ``npm`` or ``resvg-py`` is missing.
        WeightsError: the packages cannot be fetched.
    """
    cache = cache or default_cache()

    def made() -> Sprites:
        fetch(cache)
        return render(cache)

    return Sprites(_kept(cache / f"sprites-{len(CONCEPTS)}.npz", made))


def load_held_out_sprites(cache: Path | None = None) -> Sprites:
    """As `load_sprites`, in the one style that nothing was trained on."""

    def made() -> Sprites:
        files = read_package(_HELD_OUT_PACKAGE, ["icons.json", "chars.json"])
        icons, names = (json.loads(each) for each in files)
        return render_held_out(icons, names)

    path = (cache or default_cache()) / f"sprites-{HELD_OUT_STYLE}-{len(CONCEPTS)}.npz"
    return Sprites(_kept(path, made), (HELD_OUT_STYLE,))


def _kept(path: Path, made: Callable[[], Sprites]) -> dict[str, np.ndarray]:
    """The images in a file, made first where there is none."""
    if not path.exists():
        drawn = made().images
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as part, part.open("xb") as stream:
            np.savez(stream, **drawn)  # type: ignore[arg-type]
    with np.load(path) as stored:
        return {name: stored[name] for name in SIZES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=default_cache())
    args = parser.parse_args()
    sprites = load_sprites(args.cache)
    shapes = {name: images.shape for name, images in sprites.images.items()}
    print(f"{args.cache}: {shapes}")


if __name__ == "__main__":
    main()
