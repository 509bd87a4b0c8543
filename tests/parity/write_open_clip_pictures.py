"""Write tests/data/open_clip_pictures.json: what open_clip 3.3 makes of pictures, in 8-bit RGB.

``PYTHONPATH=.:tests/parity:tests .venv-parity/bin/python tests/parity/write_open_clip_pictures.py``
"""

from __future__ import annotations

import json
from typing import Any

import conftest  # noqa: F401 - declares what torchvision misses
import open_clip
import torch
from open_clip_peer import WAYS
from support.drawn_pictures import MODES, picture
from support.places import DATA

SIDE = 7
# The second and third have a rest of 3 where what is cut is divided by 4: there halves round up.
SIZES = ((640, 427), (33, 23), (25, 40), (9, 30), (7, 7), (3, 8))


def shown(way: dict[str, Any], number: int, size: tuple[int, int]) -> str:
    """The pixels as hex digits, rows of RGB."""
    names = ("mean", "std", "resize_mode", "interpolation")
    transform = open_clip.image_transform(
        SIDE, False, **{name: way.get(name) for name in names}, fill_color=way.get("fill_color", 0)
    )
    normalize = transform.transforms[-1]
    mean, std = (torch.tensor(each)[:, None, None] for each in (normalize.mean, normalize.std))
    values = ((transform(picture(number, size)) * std + mean) * 255).round().to(torch.uint8)
    return values.permute(1, 2, 0).numpy().tobytes().hex()


def main() -> None:
    cases = [
        {"way": way, "picture": number, "size": size, "pixels": shown(WAYS[way], number, size)}
        for place, way in enumerate(WAYS)
        for number in range(place, len(MODES), 2)
        for size in (SIZES[(number + place) % len(SIZES)],)
    ]
    found = {"open_clip": open_clip.__version__, "side": SIDE, "ways": WAYS, "cases": cases}
    text = json.dumps(found, indent=None, separators=(",", ":")).replace('{"way"', '\n{"way"')
    (DATA / "open_clip_pictures.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
