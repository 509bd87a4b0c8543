"""load_image: every kind of file a person may hand over, really built."""

from __future__ import annotations

import base64
import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from urllib.parse import quote_from_bytes

import numpy as np
import pytest
from PIL import Image

from bridge.errors import BridgeError, ImageError
from bridge.images import MAX_PIXELS, image_size, load_image

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def photo(width: int = 24, height: int = 16) -> Image.Image:
    """A picture with four differently coloured corners."""
    x = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    y = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))


def png_header(width: int, height: int) -> bytes:
    """A well-formed PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 64))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


# -- what is accepted ---------------------------------------------------------------------


def test_path_bytes_pil_and_array_give_the_same_picture(tmp_path: Path) -> None:
    picture = photo()
    file = tmp_path / "a photo ☃.png"
    picture.save(file)
    for form in (file, str(file), file.read_bytes(), bytearray(file.read_bytes()), picture):
        got = load_image(form)
        assert got.mode == "RGB"
        assert got.tobytes() == picture.tobytes()
    assert load_image(np.asarray(picture)).tobytes() == picture.tobytes()


def test_a_live_image_is_copied_not_aliased() -> None:
    picture = photo()
    load_image(picture).putpixel((0, 0), (1, 2, 3))
    assert picture.getpixel((0, 0)) != (1, 2, 3)


def test_one_pixel() -> None:
    assert load_image(encoded(Image.new("RGB", (1, 1), RED))).getpixel((0, 0)) == RED


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "BMP", "TIFF", "PPM"])
def test_formats(kind: str) -> None:
    got = np.asarray(load_image(encoded(photo(), kind)), dtype=float)
    assert np.abs(got - np.asarray(photo(), dtype=float)).mean() < 12


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animation_gives_the_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE, WHITE)]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
    with Image.open(io.BytesIO(data)) as check:
        assert check.n_frames == 3
    assert load_image(data).getpixel((4, 4)) == RED


def test_a_live_animation_gives_the_frame_it_stands_at() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(data)) as live:
        live.seek(1)
        assert load_image(live).getpixel((4, 4)) == BLUE
        assert live.tell() == 1


def test_cmyk_jpeg() -> None:
    data = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)
    red, green, blue = load_image(data).getpixel((4, 4))
    assert red > 240 and green < 15 and blue < 15


def test_palette_with_and_without_transparency() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    got = load_image(encoded(palette))
    assert [got.getpixel((x, 0)) for x in (0, 1)] == [RED, BLUE]
    got = load_image(encoded(palette, transparency=1))
    assert [got.getpixel((x, 0)) for x in (0, 1)] == [RED, WHITE]


def test_transparency_is_laid_over_white() -> None:
    rgba = Image.new("RGBA", (3, 1), (255, 0, 0, 255))
    rgba.putpixel((1, 0), (255, 0, 0, 0))
    rgba.putpixel((2, 0), (0, 0, 0, 128))
    got = load_image(encoded(rgba))
    assert [got.getpixel((x, 0)) for x in (0, 1)] == [RED, WHITE]
    assert got.getpixel((2, 0)) == pytest.approx((127, 127, 127), abs=1)
    grey = Image.new("LA", (1, 1), (10, 0))
    assert load_image(encoded(grey)).getpixel((0, 0)) == WHITE
    premultiplied = Image.new("RGBA", (1, 1), (255, 0, 0, 0)).convert("RGBa")
    assert load_image(premultiplied).getpixel((0, 0)) == WHITE


def test_grey_and_bilevel() -> None:
    assert load_image(encoded(Image.new("L", (2, 2), 77))).getpixel((0, 0)) == (77, 77, 77)
    assert load_image(encoded(Image.new("1", (2, 2), 1))).getpixel((0, 0)) == WHITE


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    want = [(0, 0, 0), (100, 100, 100), WHITE]
    for form in (encoded(Image.fromarray(values)), values):
        got = load_image(form)
        assert [got.getpixel((x, 0)) for x in range(3)] == want
    big_endian = Image.frombytes("I;16B", (3, 1), values.astype(">u2").tobytes())
    assert [load_image(big_endian).getpixel((x, 0)) for x in range(3)] == want
    wide = Image.fromarray(values.astype(np.int32))
    assert wide.mode == "I"
    assert [load_image(wide).getpixel((x, 0)) for x in range(3)] == want


def test_float_pictures() -> None:
    values = np.array([[0.0, 0.5, 1.0]])
    assert load_image(values).getpixel((1, 0)) == (128, 128, 128)
    assert load_image(values * 255).getpixel((2, 0)) == WHITE
    tiff = encoded(Image.fromarray(values.astype(np.float32)), "TIFF")
    assert load_image(tiff).getpixel((2, 0)) == WHITE


def test_boolean_and_single_channel_arrays() -> None:
    assert load_image(np.ones((2, 2), dtype=bool)).getpixel((0, 0)) == WHITE
    assert load_image(np.full((2, 3, 1), 9, dtype=np.uint8)).size == (3, 2)
    assert load_image(np.zeros((2, 2, 4), dtype=np.uint8)).getpixel((0, 0)) == WHITE
    assert load_image(np.asarray(photo())[:, ::-1]).size == (24, 16)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    """Every orientation of one scene comes out as that scene."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = photo() if orientation == 1 else photo().transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = load_image(encoded(stored, "PNG", exif=exif))
    assert got.tobytes() == photo().tobytes()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_refuse_the_picture() -> None:
    data = encoded(photo(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert load_image(data).size == (24, 16)


# -- what is refused ----------------------------------------------------------------------


def test_not_an_image(tmp_path: Path) -> None:
    file = tmp_path / "notes.png"
    file.write_text("dear diary", encoding="utf-8")
    with pytest.raises(ImageError, match=r"notes\.png.*not an image"):
        load_image(file)
    with pytest.raises(ImageError, match="not an image"):
        load_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_truncated(kind: str, kept: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(ImageError, match=r"truncated|damaged|cannot be read"):
        load_image(data[: int(len(data) * kept)])


def test_names_that_no_file_has(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="File name too long"):
        load_image(str(tmp_path / ("n" * 5_000)))
    with pytest.raises(ImageError, match=r"no such image file: .~nobody"):
        load_image("~nobody-of-that-name/a.png")
    with pytest.raises(ImageError, match="cannot be read"):
        load_image("\ud800.png")


def test_missing_directory_empty_and_special(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such image file"):
        load_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="directory"):
        load_image(tmp_path)
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match="empty"):
        load_image(tmp_path / "empty.png")
    with pytest.raises(ImageError, match="empty"):
        load_image(b"")
    with pytest.raises(ImageError, match="not a path"):
        load_image("a\0b.png")
    with pytest.raises(ImageError, match="not a path"):
        load_image("")
    with pytest.raises(ImageError, match="download"):
        load_image("https://example.org/cat.png")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="regular file"):
        load_image(tmp_path / "pipe")


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (10_000, 10_000), (7_072, 7_072)])
def test_too_big_is_refused_before_decoding(width: int, height: int) -> None:
    """The files hold 64 bytes of pixels: decoding them would report truncation instead."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ImageError, match="too big") as caught:
            load_image(png_header(width, height))
    assert f"{MAX_PIXELS:,}" in str(caught.value)
    count = str(width * height)
    assert count in str(caught.value).replace(",", "")


def test_the_bomb_warning_as_an_error_is_caught_too() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match="too big"):
            load_image(png_header(10_000, 10_000))


def test_too_narrow() -> None:
    with pytest.raises(ImageError, match="too narrow"):
        load_image(Image.new("RGB", (1, 201)))
    assert load_image(Image.new("RGB", (1, 200))).size == (1, 200)


def test_zero_size() -> None:
    with pytest.raises(ImageError, match="no pixels"):
        load_image(Image.new("RGB", (0, 5)))
    with pytest.raises(ImageError, match="no pixels"):
        load_image(np.zeros((4, 0, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(5, dtype=np.uint8),
        np.zeros((3, 16, 16), dtype=np.uint8),
        np.zeros((1, 2, 2, 3), dtype=np.uint8),
        np.full((4, 4), np.nan),
        np.full((4, 4), -0.5),
        np.full((4, 4), 300.0),
        np.array([["a", "b"]]),
        np.zeros((2, 2), dtype=complex),
    ],
)
def test_arrays_that_are_no_pictures(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match="array of shape"):
        load_image(array)


@pytest.mark.parametrize("thing", [None, 5, ["a.png"], object()])
def test_other_types(thing: object) -> None:
    with pytest.raises(BridgeError, match=type(thing).__name__):
        load_image(thing)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "written", ["data:image/png;base64,", "DATA:;BASE64,", "data:a/b;x=y;base64,"]
)
def test_an_address_that_holds_the_picture(written: str) -> None:
    data = encoded(photo())
    text = base64.b64encode(data).decode()
    lines = "\n".join(text[start : start + 60] for start in range(0, len(text), 60))
    for body in (text, lines, text.rstrip("="), text.replace("+", "-").replace("/", "_")):
        assert load_image(written + body).tobytes() == photo().tobytes()
    assert load_image("data:image/png," + quote_from_bytes(data)).tobytes() == photo().tobytes()
    assert image_size(written + text) == (16, 24)


def test_a_local_address(tmp_path: Path) -> None:
    (tmp_path / "a b.png").write_bytes(encoded(photo()))
    assert load_image((tmp_path / "a b.png").as_uri()).tobytes() == photo().tobytes()
    with pytest.raises(ImageError, match="another machine"):
        load_image("file://elsewhere/a.png")


@pytest.mark.parametrize(
    ("address", "match"),
    [
        ("data:image/png;base64,!!!" + "A" * 2_900_000, "not base64"),
        ("data:image/png;base64," + "A" * 2_900_000, "not an image"),
        ("data:image/png;base64", "no comma"),
        ("data:,", "empty"),
        ("data:" + "A" * 2_900_000, "no comma"),
        ("https://example.org/" + "A" * 2_900_000, "download the picture"),
        ("HTTP://example.org/a.png", "download the picture"),
        ("s3://bucket/a.png", "download the picture"),
        ("A" * 2_900_000, "cannot be read"),
    ],
)
def test_addresses_that_are_no_pictures(address: str, match: str) -> None:
    with pytest.raises(ImageError, match=match) as caught:
        load_image(address)
    assert len(str(caught.value)) < 300
