"""Damaged and odd pictures are read or refused with an ImageError that names them: no traceback,
no hang, and no more memory than the bound on pixels allows."""

from __future__ import annotations

import io
import random
import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz_support import Fuzz, damage_bytes
from PIL import Image, PngImagePlugin

from bridge.errors import ImageError
from bridge.images import image_size, load_image
from bridge.prompt.parameters import read_parameters

ROW = "damaged pictures that end in a traceback"
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "I;16", "F", "PA")
KINDS = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F", "LAB"),
    "GIF": ("L", "P", "RGB"),
    "BMP": ("1", "L", "P", "RGB"),
    "JPEG2000": ("L", "RGB", "RGBA"),
    "ICO": ("RGBA",),
    "TGA": ("L", "RGB", "RGBA"),
    "PPM": ("L", "RGB"),
}
TEXT = "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler, Seed: 1, Size: 64x64"


def live(rng: random.Random, mode: str) -> Image.Image:
    """A picture of a mode, with what lies in the corners of PIL's data model."""
    width, height = rng.choice(((1, 1), (1, 7), (9, 4), (16, 16), (40, 24)))
    noise = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 256, (height, width, 4))
    picture = Image.fromarray(noise.astype(np.uint8), "RGBA")
    if mode in ("I", "F", "I;16"):
        grey = picture.convert("L").convert("I" if mode == "I;16" else mode)
        return grey.convert("I;16") if mode == "I;16" else grey
    if mode in ("LAB", "HSV", "YCbCr", "CMYK"):
        made = picture.convert("RGB")
        return Image.new("LAB", made.size, (50, 3, 200)) if mode == "LAB" else made.convert(mode)
    if mode == "PA":
        return picture.convert("LA").convert("PA")
    made = picture.convert(mode)
    if mode in ("P", "L", "RGB") and rng.random() < 0.4:
        made.info["transparency"] = {"P": rng.randrange(4), "L": 7, "RGB": (1, 2, 3)}[mode]
    return made


def encoded(rng: random.Random, kind: str) -> bytes:
    """A file of a kind, some with an orientation and with the web UI's text."""
    picture = live(rng, rng.choice(KINDS[kind]))
    options: dict[str, Any] = {}
    if kind in ("PNG", "JPEG", "WEBP", "TIFF") and rng.random() < 0.6:
        exif = Image.Exif()
        exif[0x0112] = rng.randrange(1, 9) if kind == "TIFF" else rng.randrange(10)
        exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + TEXT.encode("utf-16-be")
        options["exif"] = exif
    if kind == "PNG" and rng.random() < 0.6:
        note = PngImagePlugin.PngInfo()
        note.add_text("parameters", TEXT, zip=rng.random() < 0.5)
        options["pnginfo"] = note
    if kind == "TIFF":
        options["compression"] = rng.choice((None, "tiff_deflate", "tiff_lzw", "packbits"))
    if kind in ("GIF", "WEBP", "TIFF", "PNG") and rng.random() < 0.3:
        options |= {"save_all": True, "append_images": [picture]}
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def png_of(width: int, height: int, rows: bytes) -> bytes:
    """A PNG that says it has a size, whatever it holds."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def said(read: Callable[[], Any], named: str) -> str | None:
    """What is wrong with how a reading ends, if anything is."""
    try:
        read()
    except ImageError as error:
        return None if named in str(error) else f"the picture is not named: {error}"
    except Exception as error:
        return repr(error)
    return None


@pytest.mark.filterwarnings("ignore")
def test_damaged_files(fuzz: Fuzz, tmp_path: Path) -> None:
    path = tmp_path / "a.picture"
    with fuzz(ROW, 500) as run:
        for rng in run.draws():
            data = encoded(rng, rng.choice([*KINDS]))
            for _ in range(rng.choice((0, 1, 1, 2))):
                data = damage_bytes(rng, data or b"x")
            path.write_bytes(data)
            with run.within(60):
                for fault in (
                    said(lambda: load_image(path), str(path)),
                    said(lambda data=data: load_image(data), "the image of"),
                    said(lambda: image_size(path), str(path)),
                    said(lambda: read_parameters(path), str(path)),
                ):
                    run.expect(fault is None, str(fault))
                run.expect(*_agree(path))


def _agree(path: Path) -> tuple[bool, str]:
    """Whether the size that is told beforehand is the size of what is read."""
    try:
        found = load_image(path)
        told = image_size(path)
    except ImageError:
        return True, ""
    return told == (found.height, found.width), f"{told} told, {found.size} (w, h) read"


def test_odd_live_pictures(fuzz: Fuzz) -> None:
    with fuzz(ROW, 150) as run:
        for rng in run.draws():
            picture = live(rng, rng.choice(MODES))
            if rng.random() < 0.5:
                picture.getexif()[0x0112] = rng.choice((0, 1, 6, 8, 9, "x", (3, 3)))
            before = picture.tobytes()
            with run.within(60):
                fault = said(lambda picture=picture: load_image(picture), "PIL image")
                run.expect(fault is None, f"{picture.mode}: {fault}")
                run.expect(picture.tobytes() == before, f"{picture.mode}: the caller's changed")


@pytest.mark.filterwarnings("ignore")
def test_huge_sizes_are_refused_by_the_header(fuzz: Fuzz, tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    with fuzz(ROW, 20) as run:
        for rng in run.draws():
            width = rng.choice((0, 1, 300, 7_100, 65_535, 1 << 20, (1 << 31) - 1))
            height = rng.choice((1, 201, 7_100, 65_535, 1 << 20, (1 << 31) - 1))
            path.write_bytes(png_of(width, height, bytes(rng.choice((0, 10, 1_000_000)))))
            with run.within(60):
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                for read in (load_image, image_size, read_parameters):
                    fault = said(lambda read=read: read(path), str(path))
                    run.expect(fault is None, f"{width}x{height}: {fault}")
                more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
                run.expect(more < 400_000, f"{width}x{height}: {more} kB more memory")
