"""What becomes of a picture before a tower: open_clip's own pixels, and transparency over white.

``tests/data/open_clip_pictures.json`` holds what open_clip 3.3 made of the pictures
(``tests/parity/write_open_clip_pictures.py``); it is not installed here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from support.drawn_pictures import MODES, picture
from support.open_clip_folders import HEADS, plain, write
from support.places import DATA
from support.tiny_models import tiny_clip_tokenizer
from torch import nn

import bridge
from bridge.errors import ImageError, OptionError, UnsupportedModelError
from bridge.images import load_image
from bridge.towers import ImageTower, open_image_tower
from bridge.towers.image_processor import Alpha, open_clip_pictures

SAID = json.loads((DATA / "open_clip_pictures.json").read_text())


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> ImageTower:
    """A tower in open_clip's layout."""
    folder = tmp_path_factory.mktemp("tower")
    write(folder, plain(nn.GELU).state(False), HEADS, tiny_clip_tokenizer())
    config = {"model_cfg": HEADS, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return open_image_tower(folder, device="cpu")


@pytest.fixture(scope="module")
def clip(embedded: Callable[[str], Path]) -> ImageTower:
    """A tower in transformers' layout."""
    embedded("emoji-clip")
    return open_image_tower("emoji-1", device="cpu")


@pytest.mark.parametrize("way", SAID["ways"])
def test_pixels_are_open_clips(way: str) -> None:
    processor = open_clip_pictures(SAID["ways"][way], (SAID["side"],) * 2, "there")
    mean, std = (torch.tensor(each)[:, None, None] for each in (processor.mean, processor.std))
    cases = [case for case in SAID["cases"] if case["way"] == way]
    assert len(cases) >= 5
    for case in cases:
        shown = processor(picture(case["picture"], tuple(case["size"])))["pixel_values"][0]
        found = ((shown * std + mean) * 255).round().to(torch.uint8)
        assert found.permute(1, 2, 0).numpy().tobytes().hex() == case["pixels"], case


def test_a_tower_resizes_in_the_pictures_own_mode(tower: ImageTower) -> None:
    """COCO's usual size: the cut is at 8 of 48 - 32, where transformers' arithmetic would differ
    by a pixel; and a palette is resized by its nearest entries."""
    photo = picture(0, (640, 427))
    resized = photo.resize((47, 32), Image.Resampling.BICUBIC)
    left = round((47 - 32) / 2)
    cut = resized.crop((left, 0, left + 32, 32))
    assert torch.equal(tower.pixels(photo), tower.pixels(cut))
    few = picture(MODES.index("P"), (64, 64))
    nearest = few.resize((32, 32), Image.Resampling.NEAREST).convert("RGB")
    assert torch.equal(tower.pixels(few, alpha="drop"), tower.pixels(nearest, alpha="drop"))


@pytest.mark.parametrize("mode", MODES)
def test_every_tower_sees_what_a_vlm_sees(mode: str, tower: ImageTower, clip: ImageTower) -> None:
    image = picture(MODES.index(mode) + len(MODES), (150, 140))
    assert torch.equal(clip.pixels(image), clip.pixels(load_image(image)))
    if "transparency" in image.info or mode not in ("P", "1", "CMYK", "YCbCr", "RGB", "L"):
        assert torch.equal(tower.pixels(image), tower.pixels(load_image(image)))


def test_alpha_is_dropped_where_that_is_asked_for(tower: ImageTower, clip: ImageTower) -> None:
    hidden = Image.merge("RGBA", [*picture(0, (128, 128)).split(), Image.new("L", (128, 128), 0)])
    white = Image.new("RGB", (128, 128), "white")
    assert torch.equal(clip.pixels(hidden), clip.pixels(white))
    assert torch.equal(tower.pixels(hidden), tower.pixels(white))
    assert torch.equal(clip.pixels(hidden, alpha="drop"), clip.pixels(hidden.convert("RGB")))
    assert torch.equal(
        clip.encode(hidden, alpha="drop").pooled, clip.encode(hidden.convert("RGB")).pooled
    )
    for each in (tower, clip):
        assert each.pixels(hidden.convert("LA").convert("La"), alpha="drop").isfinite().all()
        with pytest.raises(OptionError, match="'black'"):
            each.pixels(hidden, alpha="black")


def test_a_tower_reads_paths_bytes_and_arrays(
    tower: ImageTower, clip: ImageTower, tmp_path: Path
) -> None:
    """As a VLM does: the right way up; with its alpha dropped where that is asked for."""
    image = picture(0, (150, 140))
    hidden = Image.merge("RGBA", [*image.split(), Image.new("L", image.size, 0)])
    image.save(tmp_path / "a.png")
    hidden.save(tmp_path / "b.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    for each in (tower, clip):
        wanted = each.pixels(image)
        read = (tmp_path / "a.png").read_bytes()
        for given in (str(tmp_path / "a.png"), tmp_path / "a.png", read, np.asarray(image)):
            assert torch.equal(each.pixels(given), wanted)
            assert torch.equal(each.pixels([given, image]), torch.cat([wanted, wanted]))
        assert torch.equal(each.pixels(np.stack([np.asarray(image)] * 2)), torch.cat([wanted] * 2))
        for alpha in get_args(Alpha):
            shown = each.pixels(tmp_path / "b.png", alpha=alpha)
            assert torch.equal(shown, each.pixels(hidden, alpha=alpha))
        turned = image.transpose(Image.Transpose.ROTATE_270)
        assert torch.equal(each.pixels(tmp_path / "turned.png"), each.pixels(turned))
        assert torch.equal(each.encode(tmp_path / "a.png").pooled, each.encode(image).pooled)
        with pytest.raises(ImageError, match=r"images\[1\]: no such image file: '/no/such\.png'"):
            each.encode([image, "/no/such.png"])
        for nothing, why in (([], "images is empty"), (None, r"images\[0\]: .*NoneType")):
            with pytest.raises(ImageError, match=why):
                each.encode(nothing)


def test_a_tensor_of_another_size_is_refused(tower: ImageTower, clip: ImageTower) -> None:
    for wrong in (torch.zeros(1, 3, 40, 40), torch.zeros(3, 32, 32), torch.zeros(1, 1, 32, 32)):
        for each in (tower, clip):
            with pytest.raises(ImageError, match=r"\(B, 3, (32, 32|128, 128)\)"):
                each.encode(wrong)


@pytest.mark.parametrize(
    "told", [{"resize_mode": "tile"}, {"interpolation": "nearest"}, {"mode": "L"}]
)
def test_a_way_that_open_clip_does_not_know_is_refused(told: dict[str, Any]) -> None:
    (name, value), *_ = told.items()
    with pytest.raises(UnsupportedModelError, match=rf"there .*preprocess_cfg\.{name}='{value}'"):
        open_clip_pictures(told, (32, 32), "there")


def test_overlays_show_a_transparent_picture_on_white() -> None:
    hidden = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    shown = bridge.lab.overlay(hidden, torch.zeros(2, 2), strength=0)
    assert shown.getcolors() == [(64, (255, 255, 255))]
